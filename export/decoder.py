"""The decoder's graph, ragged form: packed tokens through the linear layers, attention row by row.

Attention is a function of our own in each layer, with one body for the native library and one of stock operators:
export/attention.py. The cache is written in place: one buffer is bound as its input and as its output.

Inputs   tokens int64 [tokens]        packed: row 0's nodes, then row 1's, ...
         depth int64 [tokens]         of each node below its row's committed tokens
         length int64 [rows]          committed tokens of each row
         count int64 [rows]           nodes of each row in this step
         ancestors bool [rows, nodes, nodes]  who sees whom, itself included; beyond a row's count ignored
         wanted int64 [wanted]        packed indices of the nodes whose logits are wanted
         key_i, value_i float [rows, 1, kv_heads, capacity, head_dim]
Outputs  logits float [wanted, vocab], argmax int64 [wanted], hidden float [wanted, hidden] after the final norm,
         new_key_i, new_value_i       the same memory as key_i, value_i

A row brings at least one node; what the attention's stock body asks for beyond that is said there.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.attention import PLAN, STEP, tree_attention, tree_plan
from export.config import ModelConfig, inverse_frequencies
from export.emitter import BOOL, FLOAT, INT64, MICROSOFT, Emitter
from export.linear import linear
from runtime.manifest import capacity_of

EXACT_EMBEDDING = ("fp32", "int8-block32")  # float16 does not hold the values of a block with a float16 scale
Tensor = Callable[[str], np.ndarray]
Progress = Callable[[str], None]


def lm_head_precision(precision: str) -> str:
    """The vocabulary product of an int4 model stays in int8: it decides the answer, and is flat in the nodes."""
    return "int8" if precision == "int4" else precision


def build_decoder(config: ModelConfig, tensor: Tensor, precision: str, directory: Path, progress: Progress) -> None:
    """Writes decoder.onnx and decoder.onnx.data, holding no more than one layer's projection in memory."""
    with Emitter(directory / "decoder.onnx") as emitter:
        _Decoder(emitter, config, tensor, precision, progress).build()


class _Decoder:
    def __init__(
        self, emitter: Emitter, config: ModelConfig, tensor: Tensor, precision: str, progress: Progress
    ) -> None:
        self.emitter, self.config, self.tensor, self.precision = emitter, config, tensor, precision
        self.progress = progress
        self.capacity = capacity_of(config.context)
        self.cache_shape = [1, config.kv_heads, self.capacity, config.head_dim]
        self.tree_attention = tree_attention(
            config.heads, config.kv_heads, config.head_dim, self.capacity, rounded=precision != "fp32"
        )

    def build(self) -> None:
        emit = self.emitter.node
        self._inputs()
        self._rotary()
        self.plan = self.emitter.calls(tree_plan(), *STEP, names=PLAN)
        x = self._embed()
        layer_out: str | None = None  # what the last layer adds to x, folded into the next norm
        for i in range(self.config.layers):
            self.progress(f"layer {i + 1} of {self.config.layers}")
            self.emitter.scope = f"layer_{i}/"
            normed, x = self._norm(x, layer_out, f"model.layers.{i}.input_layernorm.weight")
            attended = self._attention(i, normed)
            normed, x = self._norm(x, attended, f"model.layers.{i}.post_attention_layernorm.weight")
            layer_out = self._mlp(i, normed)
        self.progress("vocabulary")
        self.emitter.scope = ""
        normed, _ = self._norm(x, layer_out, "model.norm.weight")
        hidden = emit("Gather", normed, "wanted", axis=0, name="hidden")
        name = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        precision = lm_head_precision(self.precision)
        logits = linear(self.emitter, hidden, "lm_head", self.tensor(name), None, precision, result="logits")
        emit("ArgMax", logits, axis=-1, keepdims=0, name="argmax")
        self.emitter.output("logits", FLOAT, ["wanted", self.config.vocab])
        self.emitter.output("argmax", INT64, ["wanted"])
        self.emitter.output("hidden", FLOAT, ["wanted", self.config.hidden])
        self.emitter.save("decoder")

    def _inputs(self) -> None:
        for name, kind, shape in (
            ("tokens", INT64, ["tokens"]), ("depth", INT64, ["tokens"]), ("length", INT64, ["rows"]),
            ("count", INT64, ["rows"]), ("ancestors", BOOL, ["rows", "nodes", "nodes"]), ("wanted", INT64, ["wanted"]),
        ):  # fmt: skip
            self.emitter.input(name, kind, shape)
        for i in range(self.config.layers):
            for part in ("key", "value"):
                self.emitter.input(f"{part}_{i}", FLOAT, ["rows", *self.cache_shape])
                self.emitter.output(f"new_{part}_{i}", FLOAT, ["rows", *self.cache_shape])

    def _rotary(self) -> None:
        """cos and sin [capacity, head_dim / 2]: nodes past the context still have a position."""
        angle = np.arange(self.capacity)[:, None] * inverse_frequencies(self.config)
        self.cos = self.emitter.weight("cos", np.cos(angle).astype(np.float32))
        self.sin = self.emitter.weight("sin", np.sin(angle).astype(np.float32))

    def _embed(self) -> str:
        """Gathered, never multiplied; beside quantized weights the table is kept in half the size."""
        half = self.precision not in EXACT_EMBEDDING
        table = self.tensor("model.embed_tokens.weight")
        if half:
            table = table.astype(np.float16)
        rows = self.emitter.node("Gather", self.emitter.weight("embed_tokens", table), "tokens", axis=0)
        return self.emitter.node("Cast", rows, to=FLOAT) if half else rows

    def _norm(self, x: str, added: str | None, name: str) -> tuple[str, str]:
        """RMS norm of x (+ added); returns the normed value and the sum."""
        weight, epsilon = self.emitter.weight(name, self.tensor(name)), self.config.norm_eps
        if added is None:
            return self.emitter.node("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon), x
        normed, _, _, total = self.emitter.nodes(
            "SkipSimplifiedLayerNormalization", x, added, weight, names=("", "-", "-", ""), domain=MICROSOFT,
            epsilon=epsilon,
        )  # fmt: skip
        return normed, total

    def _projection(self, x: str, prefix: str, parts: tuple[str, ...], has_bias: bool) -> str:
        """One product for several projections of the same input, side by side."""
        weight = np.concatenate([self.tensor(f"{prefix}.{part}.weight") for part in parts])
        bias = np.concatenate([self.tensor(f"{prefix}.{part}.bias") for part in parts]) if has_bias else None
        return linear(self.emitter, x, f"{prefix}.{'_'.join(parts)}", weight, bias, self.precision)

    def _attention(self, i: int, x: str) -> str:
        config, prefix = self.config, f"model.layers.{i}.self_attn"
        packed = self._projection(x, prefix, ("q_proj", "k_proj", "v_proj"), config.attention_bias)
        attended, _, _ = self.emitter.calls(
            self.tree_attention, packed, f"key_{i}", f"value_{i}", *STEP, self.cos, self.sin, *self.plan,
            names=("", f"new_key_{i}", f"new_value_{i}"), heads=config.heads, kv_heads=config.kv_heads,
        )  # fmt: skip
        return self._projection(attended, prefix, ("o_proj",), config.attention_bias)

    def _mlp(self, i: int, x: str) -> str:
        emit, prefix = self.emitter.node, f"model.layers.{i}.mlp"
        both = self._projection(x, prefix, ("gate_proj", "up_proj"), self.config.mlp_bias)
        gate, up = self.emitter.nodes("Split", both, names=("", ""), axis=-1, num_outputs=2)
        silu = emit("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
        return self._projection(emit("Mul", silu, up), prefix, ("down_proj",), self.config.mlp_bias)
