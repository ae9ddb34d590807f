"""The Medusa heads' graph: hidden states in, each head's best tokens and their log-probabilities out.

Input   hidden float [rows, hidden]   after the final norm, of each row's last committed token
Outputs tokens int64 [rows, heads, top_k], logprobs float [rows, heads, top_k], best first

Head h: x + SiLU(W x + b), once for each of its layers, then the vocabulary product; it predicts the token at offset
2 + h (Cai et al., Medusa, 2024).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from export.config import ModelConfig
from export.emitter import FLOAT, INT64, MICROSOFT, Emitter
from export.heads import MedusaHeads
from export.linear import linear, linear_each
from export.progress import Say


def build_heads(
    config: ModelConfig,
    heads: MedusaHeads,
    lm_head: Callable[[], np.ndarray],
    precision: str,
    top_k: int,
    directory: Path,
    progress: Say,
) -> None:
    """Writes heads.onnx and heads.onnx.data; `lm_head` gives the base's [vocab, hidden] for heads without their own."""
    with Emitter(directory / "heads.onnx") as emitter:
        emit, const = emitter.node, emitter.constant
        hidden = emitter.input("hidden", FLOAT, ["rows", config.hidden])
        blocks = [heads.resblock(h) for h in range(heads.count)]
        # the heads' first layers share their input, so they are one product
        weight, bias = (np.concatenate([block[0][part] for block in blocks]) for part in (0, 1))
        inner = linear(emitter, hidden, "heads.0", weight, bias, precision)
        gated = emit("QuickGelu", inner, domain=MICROSOFT, alpha=1.0)
        each = emit("Reshape", gated, const([0, heads.count, config.hidden]))
        x = emit("Add", each, emit("Unsqueeze", hidden, const([1])))  # [rows, heads, hidden]
        for layer in range(1, len(blocks[0])):
            weights, biases = zip(*(block[layer] for block in blocks), strict=True)
            inner = linear_each(emitter, x, [f"head_{h}.{layer}" for h in range(heads.count)], weights, precision)
            inner = emit("Add", inner, emitter.weight(f"heads.{layer}.bias", np.stack(biases)))
            x = emit("Add", x, emit("QuickGelu", inner, domain=MICROSOFT, alpha=1.0))

        def vocabulary() -> Iterator[np.ndarray]:
            for h in range(heads.count):
                progress(f"Medusa head {h + 1} of {heads.count}")
                own = heads.lm(h)
                yield lm_head() if own is None else own

        names = [f"head_{h}.lm" for h in range(heads.count)]
        logits = linear_each(emitter, x, names, vocabulary(), precision)  # [rows, heads, vocab]
        logprobs = emit("LogSoftmax", logits, axis=-1)
        emitter.nodes("TopK", logprobs, const([top_k]), names=("logprobs", "tokens"), axis=-1)
        emitter.output("tokens", INT64, ["rows", heads.count, top_k])
        emitter.output("logprobs", FLOAT, ["rows", heads.count, top_k])
        emitter.save("heads")
