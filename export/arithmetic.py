"""How each precision multiplies, in numpy: the rounding of weights and of activations that an artifact does.

With it the reference rounds where the artifact rounds, so that what is left between the two is a small multiple of
float32's own noise, and a wrong export shows at any precision.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from export.emitter import FLOAT
from export.linear import INT4_BLOCK, INT8_BLOCK
from export.numerics import Numerics
from export.quantize import int4, int4_values, int8, int8_block_values, int8_blocks

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x [tokens, in], weight [out, in] -> [tokens, out]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The products of one precision, and how an embedding's and attention's values are kept."""

    layers: Product
    vocabulary: Product
    drafts: Product
    embedding: Callable[[np.ndarray], np.ndarray]
    attended: Callable[[np.ndarray], np.ndarray]


def exact_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    product: np.ndarray = x @ weight.T
    return product


def int8_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """W8A8: a scale per token and per output channel."""
    levels, scale = int8(weight)
    rounded, token_scale = _rounded(x)
    product: np.ndarray = rounded @ levels.astype(np.float32) * scale * token_scale
    return product


def int4_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """MatMulNBits at accuracy level 4: a scale per token and block beside the weights' own."""
    product: np.ndarray = _in_blocks(x, INT4_BLOCK) @ int4_values(*int4(weight, INT4_BLOCK), x.shape[1]).T
    return product


def int8_block_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """As int4_product, with 8 bits a weight."""
    product: np.ndarray = _in_blocks(x, INT8_BLOCK) @ int8_block_values(*int8_blocks(weight, INT8_BLOCK), x.shape[1]).T
    return product


def int4_value_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """MatMulNBits of values that are not rounded: of weights alone."""
    product: np.ndarray = x @ int4_values(*int4(weight, INT4_BLOCK), x.shape[1]).T
    return product


def _in_blocks(x: np.ndarray, block: int) -> np.ndarray:
    """Every token's values rounded to 8 bits in blocks, a scale each."""
    tokens, width = x.shape
    padded = np.zeros((tokens, -(-width // block), block), np.float32)
    padded.reshape(tokens, -1)[:, :width] = x
    levels, scale = _rounded(padded)
    rounded: np.ndarray = (levels * scale).reshape(tokens, -1)[:, :width]
    return rounded


def _rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers from -127 to 127, and the scale [..., 1] that brings them back."""
    scale = np.abs(x).max(axis=-1, keepdims=True) * np.float32(1 / 127)
    return np.rint(x / np.where(scale == 0, np.float32(1), scale)), scale


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def _bfloat16(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def _same(x: np.ndarray) -> np.ndarray:
    return x


EXACT = Arithmetic(exact_product, exact_product, exact_product, _same, _same)
# by their names in export/linear.py; 16 bits round everywhere: their noise is in the self-test's limit, not here
PRODUCTS: Mapping[str, Product] = {
    "fp32": exact_product, "fp16": exact_product, "bf16": exact_product, "int8": int8_product,
    "int8-block32": int8_block_product, "int4": int4_product, "int4-fp16": int4_value_product,
}  # fmt: skip


def arithmetic(numerics: Numerics) -> Arithmetic:
    """What an artifact of these numerics rounds. A table in blocks holds what was in the file's: it rounds nothing."""
    return Arithmetic(
        PRODUCTS[numerics.layers],
        PRODUCTS[numerics.vocabulary],
        PRODUCTS[numerics.drafts],
        embedding=_half if numerics.embedding == "fp16" and numerics.values == FLOAT else _same,
        attended=_bfloat16 if numerics.rounds else _same,
    )
