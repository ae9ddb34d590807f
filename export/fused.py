"""A product in one operator with the norm before it, and the gate after it: docs/decisions/0010-native-operators.md.

NormMatMul  x and added [..., in], norm [in], the weights of MatMulInt4 or MatMulInt8
            -> y [..., out], the product of RMS norm(x + added); total [..., in], x + added
            attribute epsilon, and those of the product
NormGated   the same, and of y's first half SiLU, multiplied by its second: [..., out / 2]
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, helper

from export.emitter import FUNCTION_OPSETS, GORGON, MICROSOFT, Emitter
from export.linear import SIZES, int4_node, int8_nodes, quantized

NODES = {"int4": lambda x, y: [int4_node(x, "packed", "scale", y)], "int8": lambda x, y: int8_nodes(x, y)}
WEIGHTS = {"int4": ("packed", "scale"), "int8": ("weight", "scale")}


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm of x + added, by the names of values."""

    x: str
    added: str
    weight: str
    epsilon: float


def norm_product(
    emitter: Emitter, norm: Norm, name: str, weight: np.ndarray, precision: str, gated: bool
) -> tuple[str, str]:
    """weight [out, in] float32 -> y and total, in a precision of FUSED."""
    weights, sizes = quantized(emitter, name, weight, precision)
    inputs, function = (norm.x, norm.added, norm.weight, *weights), FUSED[precision, gated]
    y, total = emitter.calls(function, *inputs, names=("", ""), epsilon=norm.epsilon, **sizes)
    return y, total


def _function(precision: str, gated: bool) -> onnx.FunctionProto:
    node = helper.make_node
    norm = node(
        "SkipSimplifiedLayerNormalization", ["x", "added", "norm"], ["normed", "", "", "total"], domain=MICROSOFT
    )
    norm.attribute.append(AttributeProto(name="epsilon", ref_attr_name="epsilon", type=AttributeProto.FLOAT))
    body = [norm, *NODES[precision]("normed", "both" if gated else "y")]
    if gated:
        body += [
            node("Split", ["both"], ["gate", "up"], axis=-1, num_outputs=2),
            node("QuickGelu", ["gate"], ["silu"], domain=MICROSOFT, alpha=1.0),
            node("Mul", ["silu", "up"], ["y"]),
        ]
    attributes = ["epsilon", *(SIZES if precision == "int4" else ())]
    return helper.make_function(
        GORGON, f"Norm{'Gated' if gated else 'MatMul'}{precision.capitalize()}",
        ["x", "added", "norm", *WEIGHTS[precision]], ["y", "total"], body, list(FUNCTION_OPSETS), attributes=attributes,
    )  # fmt: skip


FUSED: Mapping[tuple[str, bool], onnx.FunctionProto] = {
    (precision, gated): _function(precision, gated) for precision in WEIGHTS for gated in (False, True)
}
