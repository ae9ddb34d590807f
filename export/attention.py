"""Attention of packed trees as two functions of our own, TreePlan once a step and TreeAttention in each layer.

With the native library its TreeAttention runs, and TreePlan gives nothing. Without it these bodies do: a Scan over the
rows whose body is one GroupQueryAttention, since the operator itself refuses a batch of several rows with several new
tokens and a past. The cache is [rows, 1, kv_heads, capacity, head_dim], so that Scan's slices need no Squeeze; with one
buffer bound as the Scan's input and output nothing is copied and the cost follows the real lengths. The Scan's body
cuts its row's nodes out of the packed projection and pads only its result. Why one Scan serves decode and prefill rows
alike: docs/decisions/0001-one-scan-a-layer.md. What the native operator does: 0011-tree-attention.md there.

TreePlan       depth int64 [tokens], length and count int64 [rows], ancestors bool [rows, nodes, nodes] -> PLAN
TreeAttention  qkv float [tokens, (heads + 2 kv_heads) * head_dim] before the rotary embedding, key and value, depth,
               length, count, ancestors, cos and sin [positions, head_dim / 2], PLAN
               -> attended [tokens, heads * head_dim], new_key, new_value: the memory of key and value
               attributes heads, kv_heads

In these bodies, beyond a row's count one more place of its cache may be written, and a row of length 0 must bring a
chain: with an empty past GroupQueryAttention counts positions itself.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from export.emitter import BFLOAT16, FLOAT, GORGON, INT32, INT64, MICROSOFT, OPSETS

HIDDEN_SCORE = -1e9  # added to the score of a node that must not be seen; finite, so that no row turns to NaN
# What a Scan's body gets of each row: name, type, shape of a row's slice.
ROW_INPUTS: tuple[tuple[str, int, list[int | str]], ...] = (
    ("bias", FLOAT, [1, 1, "nodes", "nodes"]), ("start", INT64, [1]), ("end", INT64, [1]), ("square", INT64, [2]),
    ("left", INT64, [8]), ("right", INT64, [6]), ("last", INT32, [1]), ("total", INT32, []),
)  # fmt: skip
PLAN = ("unpad", "stand_in", "position", *(name for name, _, _ in ROW_INPUTS))
STEP = ("depth", "length", "count", "ancestors")


class _Body:
    """The nodes of a function; constants are nodes in it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.node("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def function(
        self, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Sequence[str] = ()
    ) -> onnx.FunctionProto:
        return helper.make_function(GORGON, name, inputs, outputs, self.nodes, list(OPSETS), attributes=attributes)


def tree_plan() -> onnx.FunctionProto:
    """What every layer's Scan needs of the step's inputs."""
    body = _Body()
    emit, const = body.node, body.constant
    row_axis, column_axis = const([0]), const([1])
    end = emit("CumSum", "count", const(0))
    start = emit("Sub", end, "count")
    tokens = emit("Shape", "depth")  # [1]
    token = emit("Range", const(0), emit("Squeeze", tokens), const(1))
    # a token's row is the number of rows that end at or before it
    over = emit("LessOrEqual", emit("Unsqueeze", end, row_axis), emit("Unsqueeze", token, column_axis))
    row = emit("ReduceSum", emit("Cast", over, to=INT64), column_axis, keepdims=0)  # [tokens]
    position = emit("Add", emit("Gather", "length", row, axis=0), "depth")
    nodes = emit("Shape", "ancestors", start=1, end=2)
    first = emit("Sub", emit("Mul", row, nodes), emit("Gather", start, row, axis=0))
    emit("Add", first, token, name="unpad")  # [tokens]: each token's place in [rows * nodes]
    # A row alone with its root attends with two nodes where there is place for two: the token after it stands in,
    # the last one for the last row's. So a single query never takes the operator's other way to sum.
    both = emit("Concat", token, emit("Sub", tokens, const([1])), axis=0)
    emit("Unsqueeze", both, row_axis, name="stand_in")
    emit("Gather", position, "stand_in", axis=0, name="position")  # [1, tokens + 1]
    seen = emit("Max", "count", emit("Min", nodes, const([2])))  # [rows]
    bias = emit("Where", "ancestors", const(0, np.float32), const(HIDDEN_SCORE, np.float32))
    seen_column = emit("Unsqueeze", seen, column_axis)  # [rows, 1]
    past_column = emit("Unsqueeze", "length", column_axis)
    emit("Unsqueeze", bias, const([1, 2]), name="bias")
    emit("Unsqueeze", start, column_axis, name="start")
    emit("Add", "start", seen_column, name="end")
    emit("Concat", seen_column, seen_column, axis=1, name="square")
    emit("Pad", past_column, const([0, 3, 0, 4]), name="left")
    emit("Pad", emit("Sub", nodes, seen_column), const([0, 4, 0, 1]), name="right")
    emit("Cast", emit("Add", "length", seen), to=INT32, name="total")
    emit("Unsqueeze", emit("Sub", "total", const(1, np.int32)), column_axis, name="last")
    return body.function("TreePlan", STEP, PLAN)


def tree_attention(heads: int, kv_heads: int, head_dim: int, capacity: int, rounded: bool) -> onnx.FunctionProto:
    """`rounded`: to bfloat16 before a product that rounds to 8 bits anyway.

    A path with gaps is summed in another order here, which moves attention by about 1e-7. Rounded, it is mostly the
    same bits again, and speculation exact: docs/decisions/0005-exactness.md. The native operator sums in one order.
    """
    body = _Body()
    emit = body.node
    emit("Gather", "qkv", "stand_in", axis=0, name="packed")  # [1, tokens + 1, (heads + 2 kv_heads) * head_dim]
    rows = _row_graph(heads, kv_heads, head_dim, capacity, body)
    scanned = ["key", "value", *(name for name, _, _ in ROW_INPUTS)]
    body.nodes.append(
        helper.make_node("Scan", scanned, ["padded", "new_key", "new_value"], body=rows, num_scan_inputs=len(scanned))
    )
    flat = emit("Reshape", "padded", body.constant([-1, heads * head_dim]))  # [rows * nodes, heads * head_dim]
    if rounded:
        emit("Cast", emit("Cast", emit("Gather", flat, "unpad", axis=0), to=BFLOAT16), to=FLOAT, name="attended")
    else:
        emit("Gather", flat, "unpad", axis=0, name="attended")
    inputs = ["qkv", "key", "value", *STEP, "cos", "sin", *PLAN]
    return body.function("TreeAttention", inputs, ["attended", "new_key", "new_value"], ["heads", "kv_heads"])


def _row_graph(heads: int, kv_heads: int, head_dim: int, capacity: int, outer: _Body) -> onnx.GraphProto:
    """One row: its nodes attend to its cache and to each other as the tree says."""
    const, node = outer.constant, helper.make_node
    inside = lambda name: f"row_{name}"  # noqa: E731
    attention = node(
        "GroupQueryAttention",
        [
            inside("qkv"), "", "", inside("key"), inside("value"), inside("last"), inside("total"), "cos", "sin",
            inside("position"), inside("mask"),
        ],
        [inside("attended"), inside("new_key"), inside("new_value")],
        domain=MICROSOFT, do_rotary=1,
    )  # fmt: skip
    for name, of in (("num_heads", "heads"), ("kv_num_heads", "kv_heads")):
        attention.attribute.append(AttributeProto(name=name, ref_attr_name=of, type=AttributeProto.INT))
    nodes = [
        node("Slice", ["packed", inside("start"), inside("end"), const([1])], [inside("qkv")]),
        node("Slice", ["position", inside("start"), inside("end"), const([1])], [inside("position")]),
        node("Slice", [inside("bias"), const([0, 0]), inside("square"), const([2, 3])], [inside("tree")]),
        # zeros on the left: every node sees the whole past
        node("Pad", [inside("tree"), inside("left")], [inside("mask")]),
        attention,
        node("Pad", [inside("attended"), inside("right")], [inside("padded")]),
    ]
    value = lambda name, kind, shape: helper.make_tensor_value_info(inside(name), kind, shape)  # noqa: E731
    cache = [1, kv_heads, capacity, head_dim]
    inputs = [value(part, FLOAT, cache) for part in ("key", "value")]
    inputs += [value(name, kind, shape) for name, kind, shape in ROW_INPUTS]
    outputs = [value("padded", FLOAT, [1, "nodes", heads * head_dim])]
    outputs += [value(part, FLOAT, cache) for part in ("new_key", "new_value")]
    return helper.make_graph(nodes, "row", inputs, outputs)
