"""Attention of the ragged form: packed tokens, and in each layer a Scan over the rows.

The Scan's body is one GroupQueryAttention: the operator itself refuses a batch of several rows with several new tokens
and a past. The cache is [rows, 1, kv_heads, capacity, head_dim], so that Scan's slices need no Squeeze; with one buffer
bound as the Scan's input and output nothing is copied and the cost follows the real lengths. The body cuts its row's
nodes out of the packed projection and pads only its result. Why one Scan serves decode and prefill rows alike:
docs/decisions/0001-one-scan-a-layer.md.

Inputs   tokens int64 [tokens]        packed: row 0's nodes, then row 1's, ...
         depth int64 [tokens]         of each node below its row's committed tokens
         length int64 [rows]          committed tokens of each row
         count int64 [rows]           nodes of each row in this step
         ancestors bool [rows, nodes, nodes]  who sees whom, itself included; beyond a row's count ignored
         key_i, value_i float [rows, 1, kv_heads, capacity, head_dim]
Outputs  new_key_i, new_value_i       the same memory as key_i, value_i

Beyond a row's count, one more place of its cache may be written. A row of length 0 must bring a chain: with an empty
past the operator counts positions itself.
"""

import numpy as np
import onnx
from onnx import helper

from export.config import ModelConfig
from export.emitter import BOOL, FLOAT, INT32, INT64, MICROSOFT, Emitter
from runtime.manifest import capacity_of

HIDDEN_SCORE = -1e9  # added to the score of a node that must not be seen; finite, so that no row turns to NaN


class RaggedAttention:
    def __init__(self, emitter: Emitter, config: ModelConfig) -> None:
        self._emitter, self._config = emitter, config
        self._cache_shape = [1, config.kv_heads, capacity_of(config.context), config.head_dim]

    def begin(self, rotary: tuple[str, str]) -> None:
        """The step's inputs, and what every layer's Scan needs of them, computed once; `rotary` names cos and sin."""
        self._rotary = rotary
        for name, kind, shape in (
            ("tokens", INT64, ["tokens"]), ("depth", INT64, ["tokens"]), ("length", INT64, ["rows"]),
            ("count", INT64, ["rows"]), ("ancestors", BOOL, ["rows", "nodes", "nodes"]),
        ):  # fmt: skip
            self._emitter.input(name, kind, shape)
        for i in range(self._config.layers):
            for part in ("key", "value"):
                self._emitter.input(f"{part}_{i}", FLOAT, ["rows", *self._cache_shape])
                self._emitter.output(f"new_{part}_{i}", FLOAT, ["rows", *self._cache_shape])
        self._plan()

    def _plan(self) -> None:
        emit, const = self._emitter.node, self._emitter.constant
        row_axis, column_axis = const([0]), const([1])
        end = emit("CumSum", "count", const(0))
        start = emit("Sub", end, "count")
        tokens = emit("Shape", "tokens")  # [1]
        token = emit("Range", const(0), emit("Squeeze", tokens), const(1))
        # a token's row is the number of rows that end at or before it
        over = emit("LessOrEqual", emit("Unsqueeze", end, row_axis), emit("Unsqueeze", token, column_axis))
        row = emit("ReduceSum", emit("Cast", over, to=INT64), column_axis, keepdims=0)  # [tokens]
        position = emit("Add", emit("Gather", "length", row, axis=0), "depth")
        nodes = emit("Shape", "ancestors", start=1, end=2)
        first = emit("Sub", emit("Mul", row, nodes), emit("Gather", start, row, axis=0))
        self._unpad = emit("Add", first, token)  # [tokens]: each token's place in [rows * nodes]
        # A row alone with its root attends with two nodes where there is place for two: the token after it stands in,
        # the last one for the last row's. So a single query never takes the operator's other way to sum.
        self._stand_in = emit("Unsqueeze", emit("Concat", token, emit("Sub", tokens, const([1])), axis=0), row_axis)
        self._position = emit("Gather", position, self._stand_in, axis=0)  # [1, tokens + 1]
        seen = emit("Max", "count", emit("Min", nodes, const([2])))  # [rows]
        bias = emit("Where", "ancestors", const(0, np.float32), const(HIDDEN_SCORE, np.float32))
        total = emit("Cast", emit("Add", "length", seen), to=INT32)
        seen_column = emit("Unsqueeze", seen, column_axis)  # [rows, 1]
        start_column = emit("Unsqueeze", start, column_axis)
        past_column = emit("Unsqueeze", "length", column_axis)
        self._row_inputs = [
            (emit("Unsqueeze", bias, const([1, 2])), "bias", FLOAT, [1, 1, "nodes", "nodes"]),
            (start_column, "start", INT64, [1]),
            (emit("Add", start_column, seen_column), "end", INT64, [1]),
            (emit("Concat", seen_column, seen_column, axis=1), "square", INT64, [2]),
            (emit("Pad", past_column, const([0, 3, 0, 4])), "left", INT64, [8]),
            (emit("Pad", emit("Sub", nodes, seen_column), const([0, 4, 0, 1])), "right", INT64, [6]),
            (emit("Unsqueeze", emit("Sub", total, const(1, np.int32)), column_axis), "last", INT32, [1]),
            (total, "total", INT32, []),
        ]

    def attend(self, i: int, qkv: str) -> str:
        """qkv [tokens, (heads + 2 kv_heads) * head_dim] of layer i -> attended [tokens, heads * head_dim]."""
        emit = self._emitter.node
        packed = emit("Gather", qkv, self._stand_in, axis=0)  # [1, tokens + 1, (heads + 2 kv_heads) * head_dim]
        names = [f"key_{i}", f"value_{i}", *(name for name, *_ in self._row_inputs)]
        padded = f"{self._emitter.scope}attended"
        self._emitter.scan(names, [padded, f"new_key_{i}", f"new_value_{i}"], self._row_body(i, packed))
        width = self._config.heads * self._config.head_dim
        flat = emit("Reshape", padded, self._emitter.constant([-1, width]))  # [rows * nodes, width]
        return emit("Gather", flat, self._unpad, axis=0)

    def flat(self, x: str) -> str:
        """x [tokens, hidden], as it is."""
        return x

    def _row_body(self, i: int, packed: str) -> onnx.GraphProto:
        """One row: its nodes attend to its cache and to each other as the tree says."""
        config, const, node = self._config, self._emitter.constant, helper.make_node
        inside = lambda name: f"row_{i}/{name}"  # noqa: E731
        nodes = [
            node("Slice", [packed, inside("start"), inside("end"), const([1])], [inside("qkv")]),
            node("Slice", [self._position, inside("start"), inside("end"), const([1])], [inside("position")]),
            node("Slice", [inside("bias"), const([0, 0]), inside("square"), const([2, 3])], [inside("tree")]),
            # zeros on the left: every node sees the whole past
            node("Pad", [inside("tree"), inside("left")], [inside("mask")]),
            node(
                "GroupQueryAttention",
                [
                    inside("qkv"), "", "", inside("key"), inside("value"), inside("last"), inside("total"),
                    *self._rotary, inside("position"), inside("mask"),
                ],
                [inside("attended"), inside("new_key"), inside("new_value")],
                domain=MICROSOFT, num_heads=config.heads, kv_num_heads=config.kv_heads, do_rotary=1,
            ),
            node("Pad", [inside("attended"), inside("right")], [inside("padded")]),
        ]  # fmt: skip
        value = lambda name, kind, shape: helper.make_tensor_value_info(inside(name), kind, shape)  # noqa: E731
        inputs = [value(part, FLOAT, self._cache_shape) for part in ("key", "value")]
        inputs += [value(name, kind, shape) for _, name, kind, shape in self._row_inputs]
        outputs = [value("padded", FLOAT, [1, "nodes", config.heads * config.head_dim])]
        outputs += [value(part, FLOAT, self._cache_shape) for part in ("new_key", "new_value")]
        return helper.make_graph(nodes, f"row_{i}", inputs, outputs)
