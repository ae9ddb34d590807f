"""What becomes of weights that were quantized before: which of them an artifact keeps to the bit."""

from collections import Counter
from collections.abc import Mapping

from export.checkpoint import EMBEDDING, LM_HEAD
from export.decoder import EXACT_EMBEDDING, lm_head_precision
from export.tensors import BLOCKS

KEPT: Mapping[str, tuple[str, ...]] = {
    "fp32": BLOCKS, "int8": (), "int8-block32": ("Q4_0", "Q5_0", "Q8_0"), "int4": ("Q4_0",),
}  # fmt: skip
BETTER = ("int4", "int8-block32")  # the smallest first


def remark(dtypes: Mapping[str, str], precision: str) -> str | None:
    """One line for people, None where nothing was quantized before. `dtypes`: the stored type of each tensor."""
    quantized = {name: dtype for name, dtype in dtypes.items() if dtype in BLOCKS}
    if not quantized:
        return None
    again = Counter(dtype for name, dtype in quantized.items() if not _kept(name, dtype, precision))
    kept = Counter(quantized.values()) - again
    parts = []
    if kept:
        parts.append(f"keeps the values of {_count(kept)} bit for bit")
    if again:
        parts.append(f"rounds {_count(again)} again")
    better = [other for other in BETTER if sum(_kept(n, d, other) for n, d in quantized.items()) > sum(kept.values())]
    advice = f"; --precision {better[0]} keeps more" if better else ""
    return f"{precision} {', '.join(parts)}{advice}"


def _kept(name: str, dtype: str, precision: str) -> bool:
    if name == EMBEDDING:
        return precision in EXACT_EMBEDDING
    return dtype in KEPT[lm_head_precision(precision) if name == LM_HEAD else precision]


def _count(dtypes: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
