"""What is multiplied how, in each graph form and precision, and as which type values are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from export.checkpoint import EMBEDDING, LM_HEAD
from export.emitter import BFLOAT16, FLOAT, FLOAT16
from export.tensors import BLOCKS


@dataclass(frozen=True, slots=True)
class Numerics:
    """`layers`, `vocabulary` and `drafts`, the heads' products by the vocabulary, name a product of export/linear.py;
    `embedding` one whose weights are stored as the table is; `values` is the type of all that is between products, keys
    and values included.
    """

    layers: str
    vocabulary: str
    drafts: str
    values: int = FLOAT
    embedding: str = "fp32"
    rounds: bool = False  # products round their input to 8 bits


# A vocabulary product decides the answer and is flat in the nodes: int4 keeps it in int8, unless it was int4 before.
# The heads' only drafts, and most of their time goes into reading it: docs/decisions/0007-the-heads.md.
# float16 does not hold the values of a block with a float16 scale: int8-block32 keeps its embedding whole.
NUMERICS: Mapping[str, Mapping[str, Numerics]] = {
    "ragged": {
        "fp32": Numerics("fp32", "fp32", "fp32"),
        "int8": Numerics("int8", "int8", "int4", embedding="fp16", rounds=True),
        "int8-block32": Numerics("int8-block32", "int8-block32", "int4", rounds=True),
        "int4": Numerics("int4", "int8", "int4", embedding="fp16", rounds=True),
    },
    "padded": {
        "fp32": Numerics("fp32", "fp32", "fp32"),
        "fp16": Numerics("fp16", "fp16", "fp16", FLOAT16, "fp16"),
        "bf16": Numerics("bf16", "bf16", "bf16", BFLOAT16, "bf16"),
        "int4": Numerics("int4-fp16", "fp16", "int4-fp16", FLOAT16, "fp16"),
    },
}
# Which of GGUF's blocks a product's weights hold to the bit; float16 holds a block's scale, but not its multiples.
KEPT: Mapping[str, tuple[str, ...]] = {
    "fp32": BLOCKS, "fp16": (), "bf16": (), "int8": (), "int8-block32": ("Q4_0", "Q5_0", "Q8_0"), "int4": ("Q4_0",),
    "int4-fp16": (),
}  # fmt: skip
IN_BLOCKS = ("int4", "int8-block32")  # the smallest first


def numerics(form: str, precision: str, dtypes: Mapping[str, str]) -> Numerics:
    """Of a checkpoint whose tensors have these stored types, by name.

    A precision in blocks keeps those that the vocabulary product and the embedding have in the file.
    """
    usual = NUMERICS[form][precision]
    if usual.layers not in IN_BLOCKS:
        return usual
    table = dtypes[EMBEDDING]
    head = dtypes.get(LM_HEAD, table)  # tied
    vocabulary = next((name for name in (usual.vocabulary, *IN_BLOCKS) if head in KEPT[name]), usual.vocabulary)
    embedding = next((name for name in (*IN_BLOCKS, "fp32") if table in KEPT[name]), usual.embedding)
    return replace(usual, vocabulary=vocabulary, embedding=embedding)
