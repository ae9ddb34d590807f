"""Attention of the padded form: rows padded to the same number of nodes, one Attention a layer for all of them.

Every shape follows from (rows, nodes): no operator depends on a value of the step, none needs the host. Keys and values
go through one TensorScatter each into a cache that is bound in place, as TensorRT reads it too. What a node may see is
one bias for all layers; `nonpad_kv_seqlen` says the same about the end of each row once more, so that CUDA's kernel
stops reading there. How prefill and commit work on each provider: docs/decisions/0013-the-padded-form.md.

Inputs   tokens, depth int64 [rows, nodes]    depth: of each node below its row's committed tokens
         length, count int64 [rows]           committed tokens of each row, and its nodes in this step, at least 1
         ancestors bool [rows, nodes, nodes]  who sees whom, itself included; past a row's count, nodes see node 0 only
         key_i, value_i [rows, kv_heads, capacity, head_dim]
Outputs  new_key_i, new_value_i               the same memory as key_i, value_i

All nodes of a row are written, from its length on, those past its count too: length + nodes is at most the capacity.
"""

import numpy as np

from export.config import ModelConfig
from export.emitter import BFLOAT16, BOOL, FLOAT, FLOAT16, INT64, Emitter
from runtime.manifest import capacity_of

# Added to the score of a node that must not be seen: far below the others, and finite together with any score, so that
# no row turns to NaN. In float16, which ends at 65,504, that holds for scores up to about 30,000.
HIDDEN_SCORE: dict[int, float] = {FLOAT: -1e9, BFLOAT16: -1e9, FLOAT16: -3e4}


class PaddedAttention:
    def __init__(self, emitter: Emitter, config: ModelConfig, values: int) -> None:
        self._emitter, self._config, self._values = emitter, config, values
        self._capacity = capacity_of(config.context)
        self._cache_shape = [config.kv_heads, self._capacity, config.head_dim]

    def begin(self, rotary: tuple[str, str]) -> None:
        self._rotary = rotary
        for name, kind, shape in (
            ("tokens", INT64, ["rows", "nodes"]), ("depth", INT64, ["rows", "nodes"]), ("length", INT64, ["rows"]),
            ("count", INT64, ["rows"]), ("ancestors", BOOL, ["rows", "nodes", "nodes"]),
        ):  # fmt: skip
            self._emitter.input(name, kind, shape)
        for i in range(self._config.layers):
            for part in ("key", "value"):
                self._emitter.input(f"{part}_{i}", self._values, ["rows", *self._cache_shape])
                self._emitter.output(f"new_{part}_{i}", self._values, ["rows", *self._cache_shape])
        emit, const = self._emitter.node, self._emitter.constant
        length = emit("Unsqueeze", "length", const([1]))  # [rows, 1]
        self._position = emit("Add", length, "depth")  # [rows, nodes]
        self._end = emit("Add", "length", "count")  # [rows]
        self._bias = self._seen(length)

    def _seen(self, length: str) -> str:
        """[rows, 1, nodes, capacity]: 0 where a node sees a slot of the cache, else HIDDEN_SCORE.

        A row's tree lies from its length on: a product with the slots' one-hot rows puts its columns there.
        """
        emit, const = self._emitter.node, self._emitter.constant
        slot = self._emitter.weight("slots", np.arange(self._capacity))
        past = emit("Unsqueeze", emit("Less", slot, length), const([1]))  # [rows, 1, capacity]
        one = emit("Cast", emit("GreaterOrEqual", "depth", const(0)), to=INT64)  # [rows, nodes]
        node = emit("CumSum", one, const(1), exclusive=1)  # [rows, nodes]: 0, 1, 2, ...
        place = emit("Unsqueeze", emit("Add", node, length), const([2]))  # [rows, nodes, 1]
        columns = emit("Cast", emit("Equal", slot, place), to=FLOAT)  # [rows, nodes, capacity]
        tree = emit("Cast", emit("MatMul", emit("Cast", "ancestors", to=FLOAT), columns), to=BOOL)
        dtype = self._emitter.dtype(self._values)
        bias = emit("Where", emit("Or", past, tree), const(0, dtype), const(HIDDEN_SCORE[self._values], dtype))
        return emit("Unsqueeze", bias, const([1]))

    def attend(self, i: int, qkv: str) -> str:
        """qkv [rows, nodes, (heads + 2 kv_heads) * head_dim] of layer i -> attended [rows, nodes, heads * head_dim]."""
        emit, const, config = self._emitter.node, self._emitter.constant, self._config
        widths = const([n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)])
        query, key, value = self._emitter.nodes("Split", qkv, widths, names=("", "", ""), axis=-1)
        query, key = (
            emit("RotaryEmbedding", x, *self._rotary, self._position, num_heads=n)
            for x, n in ((query, config.heads), (key, config.kv_heads))
        )
        for part, new in (("key", key), ("value", value)):
            update = self._by_heads(new, config.kv_heads)
            emit("TensorScatter", f"{part}_{i}", update, "length", axis=2, name=f"new_{part}_{i}")
        attended = emit(
            "Attention", self._by_heads(query, config.heads), f"new_key_{i}", f"new_value_{i}", self._bias, "", "",
            self._end,
        )  # fmt: skip
        together = emit("Transpose", attended, perm=[0, 2, 1, 3])
        return emit("Reshape", together, const([0, 0, config.heads * config.head_dim]))

    def _by_heads(self, x: str, heads: int) -> str:
        """[rows, nodes, heads * head_dim] -> [rows, heads, nodes, head_dim]"""
        emit = self._emitter.node
        split = emit("Reshape", x, self._emitter.constant([0, 0, heads, self._config.head_dim]))
        return emit("Transpose", split, perm=[0, 2, 1, 3])

    def flat(self, x: str) -> str:
        """[rows, nodes, hidden] -> [rows * nodes, hidden]"""
        return self._emitter.node("Reshape", x, self._emitter.constant([-1, self._config.hidden]))
