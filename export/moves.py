"""Small graphs of the padded form, without weights: what happens on the device beside the decoder's run.

commit   moves accepted nodes that do not lie in place; in place in the cache, for all rows in use
copy     a row's first tokens and its hidden state to another row
keep     the hidden states of the last run's accepted nodes to their rows
best     the largest logits of nodes, and what all their logits weigh
rows     whole rows of logits
"""

from pathlib import Path

import numpy as np

from export.config import ModelConfig
from export.emitter import BOOL, DOUBLE, FLOAT, INT64, Emitter
from runtime.manifest import BEST, capacity_of

OPSET = 24


def build_moves(config: ModelConfig, values: int, directory: Path) -> None:
    """Writes the graphs; `values` is the ONNX type of keys, values and hidden states."""
    for name, build in (("commit", _commit), ("copy", _copy), ("keep", _keep), ("best", _best), ("rows", _rows)):
        with Emitter(directory / f"{name}.onnx", OPSET) as emitter:
            build(emitter, config, values)
            emitter.save(name)


def _commit(emitter: Emitter, config: ModelConfig, values: int) -> None:
    """length int64 [rows], slots int64 [rows, path]: the cache's slots that come to lie from `length` on, in order.

    A second TensorScatter on a cache copies all of it, so this is a graph of its own, and not part of the decoder's.
    """
    emit, const = emitter.node, emitter.constant
    capacity = capacity_of(config.context)
    length, slots = emitter.input("length", INT64, ["rows"]), emitter.input("slots", INT64, ["rows", "path"])
    one = emit("Cast", emit("GreaterOrEqual", length, const(0)), to=INT64)
    row = emit("Unsqueeze", emit("CumSum", one, const(0), exclusive=1), const([1]))  # [rows, 1]: 0, 1, 2, ...
    head = emit("Add", emit("Mul", row, const(config.kv_heads)), const(np.arange(config.kv_heads)))  # [rows, kv_heads]
    begin = emit("Mul", emit("Unsqueeze", head, const([2])), const(capacity))
    place = emit("Add", begin, emit("Unsqueeze", slots, const([1])))  # [rows, kv_heads, path]
    for name, shape in _cache(config, "rows"):
        emitter.input(name, values, shape)
        flat = emit("Reshape", name, const([-1, config.head_dim]))  # the same memory
        emit("TensorScatter", name, emit("Gather", flat, place, axis=0), length, axis=2, name=f"new_{name}")
        emitter.output(f"new_{name}", values, shape)


def _copy(emitter: Emitter, config: ModelConfig, values: int) -> None:
    """length int64 [1]: tokens; from_key_i, ... are the row copied from, key_i, ... the row copied to."""
    emit, const = emitter.node, emitter.constant
    length = emitter.input("length", INT64, [1])
    for name, shape in _cache(config, 1):
        emitter.input(f"from_{name}", values, shape)
        emitter.input(name, values, shape)
        kept = emit("Slice", f"from_{name}", const([0]), length, const([2]))
        emit("TensorScatter", name, kept, axis=2, name=f"new_{name}")
        emitter.output(f"new_{name}", values, shape)
    emit("Identity", emitter.input("from_state", values, [1, config.hidden]), name="new_state")
    emitter.output("new_state", values, [1, config.hidden])


def _keep(emitter: Emitter, config: ModelConfig, values: int) -> None:
    """last int64 [rows]: where in `hidden` a row's state is; kept bool [rows]: of which rows it is taken."""
    emit = emitter.node
    hidden, state = (
        emitter.input(name, values, [n, config.hidden]) for name, n in (("hidden", "slots"), ("state", "rows"))
    )
    last, kept = emitter.input("last", INT64, ["rows"]), emitter.input("kept", BOOL, ["rows"])
    fresh = emit("Gather", hidden, last, axis=0)
    emit("Where", emit("Unsqueeze", kept, emitter.constant([1])), fresh, state, name="new_state")
    emitter.output("new_state", values, ["rows", config.hidden])


def _best(emitter: Emitter, config: ModelConfig, values: int) -> None:
    """node int64 [asked], temperature double [asked] -> the best logits with their ids, best first, and mass double
    [asked]: the sum over the vocabulary of exp((logit - best logit) / temperature), so exact that a nucleus is told."""
    emit, const = emitter.node, emitter.constant
    logits = emitter.input("logits", FLOAT, ["slots", config.vocab])
    asked = emit("Gather", logits, emitter.input("node", INT64, ["asked"]), axis=0)
    temperature = emit("Unsqueeze", emitter.input("temperature", DOUBLE, ["asked"]), const([1]))
    count = min(BEST, config.vocab)
    best, _ = emitter.nodes("TopK", asked, const([count]), names=("values", "ids"), axis=-1)
    peak = emit("Slice", best, const([0]), const([1]), const([1]))
    below = emit("Sub", emit("Cast", asked, to=DOUBLE), emit("Cast", peak, to=DOUBLE))
    weight = emit("Exp", emit("Div", below, temperature))
    emit("ReduceSum", weight, const([1]), keepdims=0, name="mass")
    emitter.output("values", FLOAT, ["asked", count])
    emitter.output("ids", INT64, ["asked", count])
    emitter.output("mass", DOUBLE, ["asked"])


def _rows(emitter: Emitter, config: ModelConfig, values: int) -> None:
    """node int64 [asked] -> rows [asked, vocab]"""
    logits = emitter.input("logits", FLOAT, ["slots", config.vocab])
    emitter.node("Gather", logits, emitter.input("node", INT64, ["asked"]), axis=0, name="rows")
    emitter.output("rows", FLOAT, ["asked", config.vocab])


def _cache(config: ModelConfig, rows: int | str) -> list[tuple[str, list[int | str]]]:
    shape: list[int | str] = [rows, config.kv_heads, capacity_of(config.context), config.head_dim]
    return [(f"{part}_{i}", shape) for i in range(config.layers) for part in ("key", "value")]
