"""The decoder's graph: everything that the graph forms share. How attention and cache are made is the form's own.

Inputs   of the form: export/ragged.py, export/padded.py
         wanted int64 [wanted]        indices of the nodes whose logits are wanted, into all of the step's
Outputs  logits float [wanted, vocab], argmax int64 [wanted], hidden [wanted, hidden] after the final norm,
         those of the form, and in the padded form peak float [wanted], the logit of argmax
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from onnx import helper

from export.config import ModelConfig, inverse_frequencies
from export.embedding import embed
from export.emitter import FLOAT, FUNCTION_OPSETS, GORGON, INT64, MICROSOFT, OPSET, Emitter
from export.fused import Norm, norm_product
from export.linear import MATMULS, linear
from export.numerics import Numerics
from export.padded import PaddedAttention
from export.progress import Say
from export.ragged import RaggedAttention
from runtime.manifest import capacity_of

OPSETS = {"ragged": OPSET, "padded": 24}
Tensor = Callable[[str], np.ndarray]
BEST_TOKEN = helper.make_function(  # logits [..., vocab] -> argmax [...]
    GORGON, "BestToken", ["logits"], ["argmax"],
    [helper.make_node("ArgMax", ["logits"], ["argmax"], axis=-1, keepdims=0)], list(FUNCTION_OPSETS),
)  # fmt: skip


class Attention(Protocol):
    """What a graph form makes of the step's inputs, and of each layer's projections."""

    def begin(self, rotary: tuple[str, str]) -> None:
        """The form's inputs and outputs, and what all layers share; `rotary` names cos and sin."""

    def attend(self, i: int, qkv: str) -> str:
        """Layer i's projections side by side [..., (heads + 2 kv_heads) * head_dim] -> [..., heads * head_dim]."""

    def flat(self, x: str) -> str:
        """[..., hidden] -> [tokens, hidden], in the order that `wanted` counts in."""


def build_decoder(
    config: ModelConfig, tensor: Tensor, form: str, numerics: Numerics, directory: Path, progress: Say
) -> None:
    """Writes decoder.onnx and decoder.onnx.data, holding no more than one layer's projection in memory."""
    with Emitter(directory / "decoder.onnx", OPSETS[form]) as emitter:
        if form == "ragged":
            _Decoder(
                emitter, config, tensor, numerics, RaggedAttention(emitter, config, numerics.rounds), progress
            ).build()
        else:
            padded = PaddedAttention(emitter, config, numerics.values)
            _StandardDecoder(emitter, config, tensor, numerics, padded, progress).build()


class _Decoder:
    def __init__(
        self, emitter: Emitter, config: ModelConfig, tensor: Tensor, numerics: Numerics, attention: Attention,
        progress: Say,
    ) -> None:  # fmt: skip
        self.emitter, self.config, self.tensor, self.numerics = emitter, config, tensor, numerics
        self.attention, self.progress = attention, progress

    def build(self) -> None:
        emit = self.emitter.node
        self.attention.begin(self._rotary())
        self.emitter.input("wanted", INT64, ["wanted"])
        x = self._embed()
        layer_out: str | None = None  # what the last layer adds to x, folded into the next norm
        for i in range(self.config.layers):
            self.progress(f"layer {i + 1} of {self.config.layers}")
            self.emitter.scope = f"layer_{i}/"
            attended, x = self._attention(i, x, layer_out)
            layer_out, x = self._mlp(i, x, attended)
        self.progress("vocabulary")
        self.emitter.scope = ""
        normed, _ = self._norm(x, layer_out, "model.norm.weight")
        hidden = emit("Gather", self.attention.flat(normed), "wanted", axis=0, name="hidden")
        self._answer(hidden)
        self.emitter.output("logits", FLOAT, ["wanted", self.config.vocab])
        self.emitter.output("argmax", INT64, ["wanted"])
        self.emitter.output("hidden", self.numerics.values, ["wanted", self.config.hidden])
        self.emitter.save("decoder")

    def _answer(self, hidden: str) -> None:
        logits = self._vocabulary(hidden, "logits")
        self.emitter.call(BEST_TOKEN, logits, name="argmax")

    def _vocabulary(self, hidden: str, result: str) -> str:
        name = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        precision = self.numerics.vocabulary
        return linear(self.emitter, hidden, "lm_head", self.tensor(name), None, precision, result=result)

    def _rotary(self) -> tuple[str, str]:
        """cos and sin [capacity, head_dim / 2]: nodes past the context still have a position."""
        angle = np.arange(capacity_of(self.config.context))[:, None] * inverse_frequencies(self.config)
        return self._weight("cos", np.cos(angle)), self._weight("sin", np.sin(angle))

    def _weight(self, name: str, array: np.ndarray) -> str:
        """A tensor in the type of the values between products."""
        return self.emitter.weight(name, array.astype(self.emitter.dtype(self.numerics.values)))

    def _embed(self) -> str:
        table, numerics = self.tensor("model.embed_tokens.weight"), self.numerics
        return embed(self.emitter, "tokens", table, numerics.embedding, numerics.values)

    def _norm(self, x: str, added: str | None, name: str) -> tuple[str, str]:
        """RMS norm of x (+ added); returns the normed value and the sum."""
        weight, epsilon = self._weight(name, self.tensor(name)), self.config.norm_eps
        if added is None:
            return self.emitter.node("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon), x
        normed, _, _, total = self.emitter.nodes(
            "SkipSimplifiedLayerNormalization", x, added, weight, names=("", "-", "-", ""), domain=MICROSOFT,
            epsilon=epsilon,
        )  # fmt: skip
        return normed, total

    def _side_by_side(self, prefix: str, parts: Sequence[str], kind: str) -> np.ndarray:
        """Of several projections of the same input, for one product."""
        return np.concatenate([self.tensor(f"{prefix}.{part}.{kind}") for part in parts])

    def _projection(self, x: str, prefix: str, parts: Sequence[str], has_bias: bool) -> str:
        bias = self._side_by_side(prefix, parts, "bias") if has_bias else None
        weight = self._side_by_side(prefix, parts, "weight")
        return linear(self.emitter, x, f"{prefix}.{'_'.join(parts)}", weight, bias, self.numerics.layers)

    def _fused(
        self, x: str, added: str, norm: str, prefix: str, parts: Sequence[str], gated: bool = False
    ) -> tuple[str, str]:
        """`_norm` and `_projection` in one operator, without a bias; returns the product and the norm's sum."""
        of = Norm(x, added, self._weight(norm, self.tensor(norm)), self.config.norm_eps)
        weight = self._side_by_side(prefix, parts, "weight")
        return norm_product(self.emitter, of, f"{prefix}.{'_'.join(parts)}", weight, self.numerics.layers, gated)

    def _attention(self, i: int, x: str, added: str | None) -> tuple[str, str]:
        """What attention adds to x + added, and that sum."""
        prefix, bias = f"model.layers.{i}.self_attn", self.config.attention_bias
        norm, parts = f"model.layers.{i}.input_layernorm.weight", ("q_proj", "k_proj", "v_proj")
        if added is not None and self._fuses(bias):
            qkv, total = self._fused(x, added, norm, prefix, parts)
        else:
            normed, total = self._norm(x, added, norm)
            qkv = self._projection(normed, prefix, parts, bias)
        return self._projection(self.attention.attend(i, qkv), prefix, ("o_proj",), bias), total

    def _mlp(self, i: int, x: str, added: str) -> tuple[str, str]:
        """As `_attention`."""
        prefix, bias = f"model.layers.{i}.mlp", self.config.mlp_bias
        norm, parts = f"model.layers.{i}.post_attention_layernorm.weight", ("gate_proj", "up_proj")
        if self._fuses(bias):
            inner, total = self._fused(x, added, norm, prefix, parts, gated=True)
        else:
            normed, total = self._norm(x, added, norm)
            both = self._projection(normed, prefix, parts, bias)
            gate, up = self.emitter.nodes("Split", both, names=("", ""), axis=-1, num_outputs=2)
            inner = self.emitter.node("Mul", self._silu(gate), up)
        return self._projection(inner, prefix, ("down_proj",), bias), total

    def _fuses(self, bias: bool) -> bool:
        return not bias and self.numerics.layers in MATMULS

    def _silu(self, x: str) -> str:
        return self.emitter.node("QuickGelu", x, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)


class _StandardDecoder(_Decoder):
    """The same in ONNX's own operators, which TensorRT reads; but for an int4 product, which ONNX has not."""

    def _norm(self, x: str, added: str | None, name: str) -> tuple[str, str]:
        total = x if added is None else self.emitter.node("Add", x, added)
        weight = self._weight(name, self.tensor(name))
        normed = self.emitter.node("RMSNormalization", total, weight, axis=-1, epsilon=self.config.norm_eps)
        return normed, total

    def _silu(self, x: str) -> str:
        return self.emitter.node("Mul", x, self.emitter.node("Sigmoid", x))  # ONNX Runtime makes one operator of both

    def _answer(self, hidden: str) -> None:
        """TopK, since it gives the lowest of equal ids on every provider, and the logit with it."""
        emit, const = self.emitter.node, self.emitter.constant
        if self.numerics.values == FLOAT:
            logits = self._vocabulary(hidden, "logits")
        else:
            logits = emit("Cast", self._vocabulary(hidden, ""), to=FLOAT, name="logits")
        peak, argmax = self.emitter.nodes("TopK", logits, const([1]), names=("", ""), axis=-1)
        emit("Squeeze", argmax, const([1]), name="argmax")
        emit("Squeeze", peak, const([1]), name="peak")
        self.emitter.output("peak", FLOAT, ["wanted"])
