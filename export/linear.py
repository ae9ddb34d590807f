"""One linear layer in each precision: y = x W^T + b over packed tokens.

fp32, fp16, bf16: MatMul. int8: W8A8 per token and output channel. int4, int8-block32: MatMulNBits. Operators and their
measured speed: docs/decisions/0002-linear-layers.md. int4 and int8 are functions of ours: with the native library its
operators run, and else their bodies (docs/decisions/0010-native-operators.md). int4-fp16 is MatMulNBits of float16
values, for GPUs.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from export import quantize
from export.emitter import FUNCTION_OPSETS, GORGON, MICROSOFT, Emitter

INT4_BLOCK = 32
INT8_BLOCK = 32  # as in GGUF's Q8_0
SIZES = ("K", "N", "block_size")  # attributes of MatMulNBits
ACCURACY = 4  # MatMulNBits quantizes the activations to int8, a scale per token and block
WHOLE: Mapping[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def linear(
    emitter: Emitter, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None, precision: str, result: str = ""
) -> str:
    """x [..., in], weight [out, in] float32 -> [..., out], named `result` if that is given."""
    product = "" if bias is not None else result
    if precision in MATMULS:
        weights, sizes = quantized(emitter, name, weight, precision)
        y = emitter.call(MATMULS[precision], x, *weights, name=product, **sizes)
    else:
        y = _float(emitter, x, name, weight, precision, product)
    if bias is None:
        return y
    return emitter.node("Add", y, emitter.weight(f"{name}.bias", bias.astype(values_of(precision))), name=result)


def quantized(
    emitter: Emitter, name: str, weight: np.ndarray, precision: str
) -> tuple[tuple[str, str], Mapping[str, Any]]:
    """What a function of MATMULS takes for the weight [out, in]: its inputs after x, and its attributes."""
    levels, scale = quantize.int8(weight) if precision == "int8" else quantize.int4(weight, INT4_BLOCK)
    names = emitter.weight(name, levels), emitter.weight(f"{name}.scale", scale)
    return names, {} if precision == "int8" else _sizes(weight, INT4_BLOCK)


def _sizes(weight: np.ndarray, block: int) -> Mapping[str, Any]:
    return {"K": weight.shape[1], "N": weight.shape[0], "block_size": block}


def values_of(precision: str) -> Any:
    """numpy's type of what a product takes and gives."""
    return np.float16 if precision == "int4-fp16" else WHOLE.get(precision, np.float32)


def linear_each(emitter: Emitter, x: str, names: Sequence[str], weights: Iterable[np.ndarray], precision: str) -> str:
    """x [tokens, layers, in], each layer's name and weight [out, in] -> [tokens, layers, out]: its own part of x each.

    x may have fewer layers than there are weights: its own are the first of these.
    In int4 one operator for all of them: what is around a small product costs as much as the product.
    """
    if precision == "int4":
        return _int4_each(emitter, x, names, weights)
    products = [
        linear(emitter, _layer(emitter, x, i), name, weight, None, precision)
        for i, (name, weight) in enumerate(zip(names, weights, strict=True))
    ]
    return emitter.node("Concat", *products, axis=1)


def _layer(emitter: Emitter, x: str, i: int) -> str:
    """[tokens, 1, in] of x [tokens, layers, in], no tokens' where x has no such layer."""
    return emitter.node("Slice", x, *map(emitter.constant, ([i], [i + 1], [1])))


def _int4_each(emitter: Emitter, x: str, names: Sequence[str], weights: Iterable[np.ndarray]) -> str:
    inputs: list[str] = []
    for name, weight in zip(names, weights, strict=True):
        own, sizes = quantized(emitter, name, weight, "int4")
        inputs += own
    return emitter.call(matmul_int4_each(len(names)), x, *inputs, layers=len(names), **sizes)


def _float(emitter: Emitter, x: str, name: str, weight: np.ndarray, precision: str, result: str) -> str:
    if (whole := WHOLE.get(precision)) is not None:
        return emitter.node("MatMul", x, emitter.weight(name, weight.T.astype(whole)), name=result)
    packed, scale, bits, block = in_blocks(weight, precision)
    scales = emitter.weight(f"{name}.scale", scale.astype(values_of(precision)))
    inputs = x, emitter.weight(name, packed), scales
    # CUDA multiplies the values as they are
    accuracy = {} if precision == "int4-fp16" else {"accuracy_level": ACCURACY}
    return emitter.node(
        "MatMulNBits", *inputs, name=result, domain=MICROSOFT, bits=bits, **_sizes(weight, block), **accuracy
    )


def in_blocks(weight: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Packed levels uint8 [out, blocks, bytes], scales float32 [out, blocks], and a block's bits and length."""
    if precision == "int8-block32":
        return *quantize.int8_blocks(weight, INT8_BLOCK), 8, INT8_BLOCK
    return *quantize.int4(weight, INT4_BLOCK), 4, INT4_BLOCK


def _matmul_int4() -> onnx.FunctionProto:
    """Inputs x [..., K], packed uint8 and scale as `quantize.int4` makes them; output [..., N]."""
    node, inputs = int4_node("x", "packed", "scale", "y"), ["x", "packed", "scale"]
    return helper.make_function(GORGON, "MatMulInt4", inputs, ["y"], [node], list(FUNCTION_OPSETS), attributes=SIZES)


@cache
def matmul_int4_each(layers: int) -> onnx.FunctionProto:
    """Inputs x [tokens, layers, K], each layer's packed and scale; output [tokens, layers, N]: its part of x each.

    Where x has fewer layers, the last weights find an empty part.
    """
    weights = [(f"packed_{i}", f"scale_{i}") for i in range(layers)]
    parts, products = [f"x_{i}" for i in range(layers)], [f"y_{i}" for i in range(layers)]
    body = [
        *(helper.make_node("Constant", [], [f"at_{i}"], value_ints=[i]) for i in range(layers + 1)),
        *(helper.make_node("Slice", ["x", f"at_{i}", f"at_{i + 1}", "at_1"], [parts[i]]) for i in range(layers)),
        *(int4_node(x, *weight, y) for x, weight, y in zip(parts, weights, products, strict=True)),
        helper.make_node("Concat", products, ["y"], axis=1),
    ]
    inputs, attributes = ["x", *(name for pair in weights for name in pair)], ["layers", *SIZES]
    return helper.make_function(
        GORGON, "MatMulInt4Each", inputs, ["y"], body, list(FUNCTION_OPSETS), attributes=attributes
    )


def int4_node(x: str, packed: str, scale: str, y: str) -> onnx.NodeProto:
    """MatMulNBits in a function that has SIZES for attributes."""
    node = helper.make_node("MatMulNBits", [x, packed, scale], [y], domain=MICROSOFT, bits=4, accuracy_level=ACCURACY)
    node.attribute.extend(AttributeProto(name=n, ref_attr_name=n, type=AttributeProto.INT) for n in SIZES)
    return node


def _matmul_int8() -> onnx.FunctionProto:
    """Inputs x [..., in], weight int8 and scale as `quantize.int8` makes them; output [..., out]."""
    body = int8_nodes("x", "y")
    return helper.make_function(GORGON, "MatMulInt8", ["x", "weight", "scale"], ["y"], body, list(FUNCTION_OPSETS))


def int8_nodes(x: str, y: str) -> list[onnx.NodeProto]:
    """The product of x by a function's `weight` and `scale`.

    u8 activations with zero point 128 by s8 weights, the pair that reaches the AMX and VNNI kernels. A token that is
    all zeros has scale 0; what 0 / 0 rounds to does not matter, since it is multiplied by 0.
    """
    node = helper.make_node
    constant = lambda name, value, dtype: node(  # noqa: E731
        "Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, dtype), name)
    )
    return [
        constant("zero", 128, np.uint8), constant("one", 1, np.float32), constant("share", 1 / 127, np.float32),
        constant("last", [-1], np.int64),
        node("Abs", [x], ["magnitude"]),
        node("ReduceMax", ["magnitude", "last"], ["largest"], keepdims=1),
        node("Mul", ["largest", "share"], ["token_scale"]),
        node("Div", [x, "token_scale"], ["scaled"]),
        node("QuantizeLinear", ["scaled", "one", "zero"], ["quantized"]),
        node("MatMulIntegerToFloat", ["quantized", "weight", "one", "scale", "zero"], ["sums"], domain=MICROSOFT),
        node("Mul", ["sums", "token_scale"], [y]),
    ]  # fmt: skip


MATMUL_INT4, MATMUL_INT8 = _matmul_int4(), _matmul_int8()
MATMULS: Mapping[str, onnx.FunctionProto] = {"int4": MATMUL_INT4, "int8": MATMUL_INT8}
