"""The Medusa heads' graph: hidden states in, each head's best tokens and their log-probabilities out.

Inputs  hidden [rows, hidden]         after the final norm, of each row's last committed token; in the padded form
                                      state [all rows, hidden], and asked int64 [rows] says which
        depth int64 [1]               so many of the heads run, the first ones; the padded form runs them all
Outputs tokens int64 [rows, depth, top_k], logprobs float [rows, depth, top_k], best first

Head h: x + SiLU(W x + b), once for each of its layers, then the vocabulary product; it predicts the token at offset
2 + h (Cai et al., Medusa, 2024).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from export.config import ModelConfig
from export.decoder import OPSETS
from export.emitter import FLOAT, FUNCTION_OPSETS, GORGON, INT64, MICROSOFT, Emitter
from export.heads import MedusaHeads
from export.linear import linear, linear_each
from export.numerics import NUMERICS
from export.progress import Say

RESULTS = ("logprobs", "tokens")


def _top_drafts() -> onnx.FunctionProto:
    """Inputs logits [..., vocab], top_k int64 [1]; outputs log-probabilities and tokens [..., top_k], best first."""
    body = [
        helper.make_node("LogSoftmax", ["logits"], ["every"], axis=-1),
        helper.make_node("TopK", ["every", "top_k"], list(RESULTS), axis=-1),
    ]
    return helper.make_function(GORGON, "TopDrafts", ["logits", "top_k"], list(RESULTS), body, list(FUNCTION_OPSETS))


TOP_DRAFTS = _top_drafts()


def build_heads(
    config: ModelConfig,
    heads: MedusaHeads,
    lm_head: Callable[[], np.ndarray],
    form: str,
    precision: str,
    top_k: int,
    directory: Path,
    progress: Say,
) -> None:
    """Writes heads.onnx and heads.onnx.data; `lm_head` gives the base's [vocab, hidden] for heads without their own."""
    numerics, padded = NUMERICS[form][precision], form == "padded"
    with Emitter(directory / "heads.onnx", OPSETS[form]) as emitter:
        emit, const = emitter.node, emitter.constant
        if padded:
            state = emitter.input("state", numerics.values, ["slots", config.hidden])
            hidden = emit("Gather", state, emitter.input("asked", INT64, ["rows"]), axis=0)
            ran: str | int = heads.count
        else:
            hidden = emitter.input("hidden", FLOAT, ["rows", config.hidden])
            depth, ran = emitter.input("depth", INT64, [1]), f"depth_to_{heads.count}"
        blocks = [heads.resblock(h) for h in range(heads.count)]
        # the heads' first layers share their input, so they are one product
        weight, bias = (np.concatenate([block[0][part] for block in blocks]) for part in (0, 1))
        inner = linear(emitter, hidden, "heads.0", weight, bias, numerics.layers)
        gated = emit("QuickGelu", inner, domain=MICROSOFT, alpha=1.0)
        each = emit("Reshape", gated, const([0, heads.count, config.hidden]))
        x = emit("Add", each, emit("Unsqueeze", hidden, const([1])))  # [rows, heads, hidden]
        for layer in range(1, len(blocks[0])):
            weights, biases = zip(*(block[layer] for block in blocks), strict=True)
            inner = linear_each(emitter, x, [f"head_{h}.{layer}" for h in range(heads.count)], weights, numerics.layers)
            biases_of_all = np.stack(biases).astype(emitter.dtype(numerics.values))
            inner = emit("Add", inner, emitter.weight(f"heads.{layer}.bias", biases_of_all))
            x = emit("Add", x, emit("QuickGelu", inner, domain=MICROSOFT, alpha=1.0))
        if not padded:  # what is before the vocabulary is a twentieth of the weights
            x = emit("Slice", x, const([0]), depth, const([1]))  # [rows, depth, hidden]

        def vocabulary(h: int) -> np.ndarray:
            progress(f"Medusa head {h + 1} of {heads.count}")
            own = heads.lm(h)
            return lm_head() if own is None else own

        if heads.shared:
            logits = linear(emitter, x, "heads.lm", vocabulary(0), None, numerics.drafts)  # [rows, depth, vocab]
        else:
            names = [f"head_{h}.lm" for h in range(heads.count)]
            logits = linear_each(emitter, x, names, map(vocabulary, range(heads.count)), numerics.drafts)
        if numerics.values != FLOAT:
            logits = emit("Cast", logits, to=FLOAT)
        if padded:
            logprobs = emit("LogSoftmax", logits, axis=-1)
            emitter.nodes("TopK", logprobs, const([top_k]), names=RESULTS, axis=-1)
        else:
            emitter.calls(TOP_DRAFTS, logits, const([top_k]), names=RESULTS)
        emitter.output("tokens", INT64, ["rows", ran, top_k])
        emitter.output("logprobs", FLOAT, ["rows", ran, top_k])
        emitter.save("heads")
