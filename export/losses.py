"""What becomes of weights that were quantized before: which of them an artifact keeps to the bit."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from export.checkpoint import EMBEDDING, LM_HEAD
from export.numerics import NUMERICS
from export.tensors import BLOCKS

# by each product; float16 holds a block's scale, but not its multiples
KEPT: Mapping[str, tuple[str, ...]] = {
    "fp32": BLOCKS, "fp16": (), "bf16": (), "int8": (), "int8-block32": ("Q4_0", "Q5_0", "Q8_0"), "int4": ("Q4_0",),
    "int4-fp16": (),
}  # fmt: skip
BETTER = ("int4", "int8-block32")  # the smallest first


def remark(dtypes: Mapping[str, str], form: str, precision: str) -> str | None:
    """One line for people, None where nothing was quantized before. `dtypes`: the stored type of each tensor."""
    quantized = {name: dtype for name, dtype in dtypes.items() if dtype in BLOCKS}
    if not quantized:
        return None
    again = Counter(dtype for name, dtype in quantized.items() if not _kept(name, dtype, form, precision))
    kept = Counter(quantized.values()) - again
    parts = []
    if kept:
        parts.append(f"keeps the values of {_count(kept)} bit for bit")
    if again:
        parts.append(f"rounds {_count(again)} again")
    # by its products: a larger artifact that keeps the embedding alone is no advice
    products = {name: dtype for name, dtype in quantized.items() if name != EMBEDDING}
    count = lambda other: sum(_kept(name, dtype, form, other) for name, dtype in products.items())  # noqa: E731
    better = [other for other in BETTER if other in NUMERICS[form] and count(other) > count(precision)]
    advice = f"; --precision {better[0]} keeps more" if better else ""
    return f"{precision} {', '.join(parts)}{advice}"


def _kept(name: str, dtype: str, form: str, precision: str) -> bool:
    numerics = NUMERICS[form][precision]
    if name == EMBEDDING:
        return numerics.embedding is np.float32
    return dtype in KEPT[numerics.vocabulary if name == LM_HEAD else numerics.layers]


def _count(dtypes: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
