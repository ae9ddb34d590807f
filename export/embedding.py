"""The table of token embeddings: rows are gathered from it, never multiplied.

Blocks stay blocks (ONNX Runtime's GatherBlockQuantized), a third of the size or less of the float32 that would hold
them.
"""

import numpy as np

from export.emitter import MICROSOFT, Emitter
from export.linear import WHOLE, in_blocks

NAME = "embed_tokens"


def embed(emitter: Emitter, tokens: str, table: np.ndarray, stored: str, values: int) -> str:
    """tokens [...], table [vocab, hidden] float32 -> [..., hidden] of the type `values`.

    `stored` is a product of export/linear.py, as whose weights the table is kept; in blocks `values` are float32.
    """
    if (whole := WHOLE.get(stored)) is not None:
        rows = emitter.node("Gather", emitter.weight(NAME, table.astype(whole, copy=False)), tokens, axis=0)
        return rows if whole == emitter.dtype(values) else emitter.node("Cast", rows, to=values)
    packed, scale, bits, block = in_blocks(table, stored)
    rows = emitter.weight(NAME, packed.reshape(len(table), -1))
    return emitter.node(
        "GatherBlockQuantized", rows, tokens, emitter.weight(f"{NAME}.scale", scale), domain=MICROSOFT, bits=bits,
        block_size=block, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
