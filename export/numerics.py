"""What is multiplied how, in each graph form and precision, and as which type values are kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from export.emitter import BFLOAT16, FLOAT, FLOAT16


@dataclass(frozen=True, slots=True)
class Numerics:
    """`layers`, `vocabulary` and `drafts`, the heads' products by the vocabulary, name a product of export/linear.py;
    `values` is the type of all that is between products, keys and values included, `embedding` how the table is stored.
    """

    layers: str
    vocabulary: str
    drafts: str
    values: int = FLOAT
    embedding: Any = np.float32
    rounds: bool = False  # products round their input to 8 bits


# A vocabulary product decides the answer and is flat in the nodes: in an int4 model it is not int4.
# The heads' only drafts, and most of their time goes into reading it: docs/decisions/0007-the-heads.md.
# float16 does not hold the values of a block with a float16 scale: int8-block32 keeps its embedding whole.
NUMERICS: Mapping[str, Mapping[str, Numerics]] = {
    "ragged": {
        "fp32": Numerics("fp32", "fp32", "fp32"),
        "int8": Numerics("int8", "int8", "int4", embedding=np.float16, rounds=True),
        "int8-block32": Numerics("int8-block32", "int8-block32", "int4", rounds=True),
        "int4": Numerics("int4", "int8", "int4", embedding=np.float16, rounds=True),
    },
    "padded": {
        "fp32": Numerics("fp32", "fp32", "fp32"),
        "fp16": Numerics("fp16", "fp16", "fp16", FLOAT16, np.float16),
        "bf16": Numerics("bf16", "bf16", "bf16", BFLOAT16, ml_dtypes.bfloat16),
        "int4": Numerics("int4-fp16", "fp16", "int4-fp16", FLOAT16, np.float16),
    },
}
