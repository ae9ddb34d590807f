"""Attention of the ragged form: packed tokens, and in each layer a function over the rows (export/attention.py).

Inputs   tokens int64 [tokens]        packed: row 0's nodes, then row 1's, ...
         depth int64 [tokens]         of each node below its row's committed tokens
         length int64 [rows]          committed tokens of each row
         count int64 [rows]           nodes of each row in this step
         ancestors bool [rows, nodes, nodes]  who sees whom, itself included; beyond a row's count ignored
         key_i, value_i float [rows, 1, kv_heads, capacity, head_dim]
Outputs  new_key_i, new_value_i       the same memory as key_i, value_i: the cache is written in place

A row brings at least one node; what the function's stock body asks for beyond that is said there.
"""

from export.attention import PLAN, STEP, tree_attention, tree_plan
from export.config import ModelConfig
from export.emitter import BOOL, FLOAT, INT64, Emitter
from runtime.manifest import capacity_of


class RaggedAttention:
    def __init__(self, emitter: Emitter, config: ModelConfig, rounded: bool) -> None:
        """`rounded`: the products after it round to 8 bits anyway."""
        self._emitter, self._config = emitter, config
        capacity = capacity_of(config.context)
        self._cache_shape = [1, config.kv_heads, capacity, config.head_dim]
        self._function = tree_attention(config.heads, config.kv_heads, config.head_dim, capacity, rounded)

    def begin(self, rotary: tuple[str, str]) -> None:
        """The step's inputs, and what every layer needs of them, computed once; `rotary` names cos and sin."""
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
        self._plan = self._emitter.calls(tree_plan(), *STEP, names=PLAN)

    def attend(self, i: int, qkv: str) -> str:
        attended, _, _ = self._emitter.calls(
            self._function, qkv, f"key_{i}", f"value_{i}", *STEP, *self._rotary, *self._plan,
            names=("", f"new_key_{i}", f"new_value_{i}"), heads=self._config.heads, kv_heads=self._config.kv_heads,
        )  # fmt: skip
        return attended

    def flat(self, x: str) -> str:
        """x [tokens, hidden], as it is."""
        return x
