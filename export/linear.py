"""One linear layer in each precision: y = x W^T + b over packed tokens.

fp32: MatMul. int8: W8A8 per token and output channel. int4, int8-block32: MatMulNBits. Operators and their measured
speed: docs/decisions/0002-linear-layers.md.
"""

import numpy as np

from export import quantize
from export.emitter import MICROSOFT, Emitter

INT4_BLOCK = 32
INT8_BLOCK = 32  # as in GGUF's Q8_0
ACCURACY = 4  # MatMulNBits quantizes the activations to int8, a scale per token and block


def linear(
    emitter: Emitter, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None, precision: str, result: str = ""
) -> str:
    """x [tokens, in], weight [out, in] float32 -> [tokens, out], named `result` if that is given."""
    product = "" if bias is not None else result
    if precision == "fp32":
        y = emitter.node("MatMul", x, emitter.weight(name, weight.T), name=product)
    elif precision == "int8":
        y = _int8(emitter, x, name, weight, product)
    elif precision == "int8-block32":
        y = _blocks(emitter, x, name, *quantize.int8_blocks(weight, INT8_BLOCK), (8, INT8_BLOCK), weight.shape, product)
    else:
        y = _blocks(emitter, x, name, *quantize.int4(weight, INT4_BLOCK), (4, INT4_BLOCK), weight.shape, product)
    return y if bias is None else emitter.node("Add", y, emitter.weight(f"{name}.bias", bias), name=result)


def _blocks(
    emitter: Emitter, x: str, name: str, packed: np.ndarray, scale: np.ndarray, form: tuple[int, int],
    shape: tuple[int, ...], result: str,
) -> str:  # fmt: skip
    """`form`: bits of a weight, weights of a block."""
    bits, block = form
    return emitter.node(
        "MatMulNBits", x, emitter.weight(name, packed), emitter.weight(f"{name}.scale", scale), name=result,
        domain=MICROSOFT, K=shape[1], N=shape[0], bits=bits, block_size=block, accuracy_level=ACCURACY,
    )  # fmt: skip


def _int8(emitter: Emitter, x: str, name: str, weight: np.ndarray, result: str) -> str:
    """u8 activations (zero point 128) by s8 weights: the pair that reaches the AMX and VNNI kernels.

    A token that is all zeros has scale 0; what 0 / 0 rounds to does not matter, since it is multiplied by 0.
    """
    levels, scale = quantize.int8(weight)
    zero, one = emitter.constant(128, np.uint8), emitter.constant(1, np.float32)
    largest = emitter.node("ReduceMax", emitter.node("Abs", x), emitter.constant([-1]), keepdims=1)
    token_scale = emitter.node("Mul", largest, emitter.constant(1 / 127, np.float32))
    quantized = emitter.node("QuantizeLinear", emitter.node("Div", x, token_scale), one, zero)
    weight_scale = emitter.weight(f"{name}.scale", scale)
    product = emitter.node(
        "MatMulIntegerToFloat", quantized, emitter.weight(name, levels), one, weight_scale, zero, domain=MICROSOFT
    )
    return emitter.node("Mul", product, token_scale, name=result)
