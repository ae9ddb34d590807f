"""A Llama forward pass in numpy and float32: what an artifact is checked against.

It shares no code with the graphs, but for the config. Weights are asked for once, layer by layer, so that a checkpoint
larger than memory still passes; all spans go through a layer together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from export.arithmetic import EXACT, Arithmetic
from export.config import ModelConfig, inverse_frequencies
from export.heads import MedusaHeads
from export.progress import Say, unheard

Tensor = Callable[[str], np.ndarray]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens computed together: `position` [tokens] of each, and `sees` [tokens, tokens], itself included.

    `ordered`: attention as native operators compute it, which has no need to be rounded as stock ones' is.
    """

    tokens: np.ndarray
    position: np.ndarray
    sees: np.ndarray
    ordered: bool = False


def chain(tokens: Sequence[int]) -> Span:
    """Each token sees itself and all before it."""
    n = len(tokens)
    return Span(np.array(tokens, np.int64), np.arange(n), np.tri(n, dtype=bool))


def chain_and_tree(tokens: Sequence[int], nodes: Sequence[int], parents: Sequence[int]) -> Span:
    """A chain, then a tree on its end: node i's parent is node `parents[i]`, -1 for the root."""
    n = len(tokens)
    sees = np.zeros((n + len(nodes), n + len(nodes)), bool)
    sees[:, :n] = np.tri(n + len(nodes), n, dtype=bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            sees[n + i, n:] = sees[n + parent, n:]
        sees[n + i, n + i] = True
    depth = sees[n:, n:].sum(axis=1) - 1
    return Span(np.array([*tokens, *nodes], np.int64), np.concatenate([np.arange(n), n + depth]), sees)


class Reference:
    """One model's forward pass, with the products of `arithmetic`. Its methods read the weights anew each time."""

    def __init__(
        self, config: ModelConfig, tensor: Tensor, arithmetic: Arithmetic = EXACT, progress: Say = unheard
    ) -> None:
        self._config, self._tensor, self._arithmetic, self._progress = config, tensor, arithmetic, progress

    def hidden_states(self, spans: Sequence[Span]) -> list[np.ndarray]:
        """Each span's [tokens, hidden], after the final norm."""
        config, tensor = self._config, self._tensor
        ends = np.cumsum([len(span.tokens) for span in spans])[:-1]
        x = self._arithmetic.embedding(
            tensor("model.embed_tokens.weight")[np.concatenate([span.tokens for span in spans])]
        )
        angles = np.concatenate([span.position for span in spans])[:, None] * inverse_frequencies(config)
        rotation = np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]
        masks = [np.where(span.sees, np.float32(0), np.float32(-np.inf)) for span in spans]
        for i in range(config.layers):
            self._progress(f"self-test: layer {i + 1} of {config.layers}")
            layer = f"model.layers.{i}"
            normed = _norm(x, tensor(f"{layer}.input_layernorm.weight"), config.norm_eps)
            x = x + self._attention(f"{layer}.self_attn", normed, rotation, spans, masks, ends)
            normed = _norm(x, tensor(f"{layer}.post_attention_layernorm.weight"), config.norm_eps)
            x = x + self._mlp(f"{layer}.mlp", normed)
        return np.split(_norm(x, tensor("model.norm.weight"), config.norm_eps), ends)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """hidden [rows, hidden] -> [rows, vocab]"""
        self._progress("self-test: vocabulary")
        return self._arithmetic.vocabulary(hidden, self._tensor("lm_head.weight"))

    def head_logits(self, heads: MedusaHeads, hidden: np.ndarray) -> np.ndarray:
        """hidden [rows, hidden] -> [rows, heads, vocab]"""
        layer, vocabulary, every = self._arithmetic.layers, self._arithmetic.drafts, []
        for h in range(heads.count):
            self._progress(f"self-test: Medusa head {h + 1} of {heads.count}")
            x = hidden
            for weight, bias in heads.resblock(h):
                x = x + _silu(layer(x, weight) + bias)
            own = heads.lm(h)
            every.append(vocabulary(x, self._tensor("lm_head.weight") if own is None else own))
        return np.stack(every, axis=1)

    def _attention(
        self,
        name: str,
        x: np.ndarray,
        rotation: tuple[np.ndarray, np.ndarray],
        spans: Sequence[Span],
        masks: Sequence[np.ndarray],
        ends: np.ndarray,
    ) -> np.ndarray:
        config = self._config
        query, key, value = (
            self._linear(f"{name}.{part}", x, config.attention_bias).reshape(len(x), -1, config.head_dim)
            for part in ("q_proj", "k_proj", "v_proj")
        )
        query, key = _rotate(query, *rotation), _rotate(key, *rotation)
        group = config.heads // config.kv_heads
        key, value = key.repeat(group, axis=1), value.repeat(group, axis=1)  # [tokens, heads, head_dim]
        attended = []
        for q, k, v, mask in zip(np.split(query, ends), np.split(key, ends), np.split(value, ends), masks, strict=True):
            scores = np.einsum("qhd,khd->hqk", q, k, optimize=True) * np.float32(config.head_dim**-0.5) + mask
            weights = np.exp(log_softmax(scores))
            attended.append(np.einsum("hqk,khd->qhd", weights, v, optimize=True).reshape(len(q), -1))
        each = [
            part if span.ordered else self._arithmetic.attended(part)
            for span, part in zip(spans, attended, strict=True)
        ]
        return self._linear(f"{name}.o_proj", np.concatenate(each), config.attention_bias)

    def _mlp(self, name: str, x: np.ndarray) -> np.ndarray:
        bias = self._config.mlp_bias
        gate, up = self._linear(f"{name}.gate_proj", x, bias), self._linear(f"{name}.up_proj", x, bias)
        return self._linear(f"{name}.down_proj", _silu(gate) * up, bias)

    def _linear(self, name: str, x: np.ndarray, bias: bool) -> np.ndarray:
        y = self._arithmetic.layers(x, self._tensor(f"{name}.weight"))
        return y + self._tensor(f"{name}.bias") if bias else y


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary positions, halves paired (not neighbours); x [tokens, heads, head_dim]."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    normed: np.ndarray = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight
    return normed


def _silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), in a form that cannot overflow."""
    result: np.ndarray = x * np.float32(0.5) * (1 + np.tanh(x * np.float32(0.5)))
    return result
