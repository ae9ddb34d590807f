"""What becomes of weights that were quantized before: which of them an artifact keeps to the bit."""

from collections import Counter
from collections.abc import Mapping

from export.checkpoint import EMBEDDING, LM_HEAD
from export.numerics import IN_BLOCKS, KEPT, NUMERICS, Numerics, numerics
from export.tensors import BLOCKS


def remark(dtypes: Mapping[str, str], form: str, precision: str) -> str | None:
    """One line for people, None where nothing was quantized before. `dtypes`: the stored type of each tensor."""
    quantized = {name: dtype for name, dtype in dtypes.items() if dtype in BLOCKS}
    if not quantized:
        return None
    tied = LM_HEAD not in dtypes

    def kept(other: str) -> set[str]:
        how = numerics(form, other, dtypes)
        return {name for name, dtype in quantized.items() if all(dtype in KEPT[w] for w in _ways(name, how, tied))}

    mine = kept(precision)
    again = Counter(dtype for name, dtype in quantized.items() if name not in mine)
    parts = []
    if mine:
        parts.append(f"keeps the values of {_count(Counter(quantized[name] for name in mine))} bit for bit")
    if again:
        parts.append(f"rounds {_count(again)} again")
    # by its products: a larger artifact that keeps the embedding alone is no advice
    products = quantized.keys() - (set() if tied else {EMBEDDING})
    counts = {other: len(kept(other) & products) for other in (precision, *IN_BLOCKS) if other in NUMERICS[form]}
    best = max(counts, key=counts.__getitem__)  # the first of equal ones
    advice = f"; --precision {best} keeps more" if best != precision else ""
    return f"{precision} {', '.join(parts)}{advice}"


def _ways(name: str, how: Numerics, tied: bool) -> tuple[str, ...]:
    """How a tensor's values are stored in the artifact: a tied embedding's in two ways."""
    if name == EMBEDDING:
        return (how.embedding, how.vocabulary) if tied else (how.embedding,)
    return (how.vocabulary if name == LM_HEAD else how.layers,)


def _count(dtypes: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
