"""Runs a decoder's graph a few layers at a time: a model larger than memory can be checked as well as a small one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from runtime import graphs
from runtime.manifest import STEP_INPUTS, Manifest
from runtime.native.library import Library
from runtime.session import Batch

RESULTS = ("logits", "hidden")


@dataclass(frozen=True, slots=True)
class Stage:
    """Some layers in a row: what they take of the stage before, and give to the one after."""

    layers: range
    taken: tuple[str, ...]
    given: tuple[str, ...]


def run(
    path: Path, manifest: Manifest, batches: Sequence[Batch], limit: int, library: Library | None = None
) -> dict[str, np.ndarray]:
    """RESULTS of the last of the steps, which run one after the other on the same rows, with native operators if given.

    `limit` bytes of weights are loaded at a time, or one layer's if that is more.
    """
    model = onnx.load(path, load_external_data=False)
    rows = max(len(batch.length) for batch in batches)
    carried: list[dict[str, np.ndarray]] = [{name: getattr(b, name) for name in STEP_INPUTS} for b in batches]
    for stage in _stages(model, manifest.layers, limit):
        session = graphs.load(path, part=_cut(model, stage).SerializeToString(), library=library)
        shape = (rows, 1, manifest.kv_heads, manifest.capacity, manifest.head_dim)
        cache = {f"{part}_{i}": np.zeros(shape, np.float32) for i in stage.layers for part in ("key", "value")}
        needed = [value.name for value in session.get_inputs() if value.name not in cache]
        for values in carried:
            _step(session, {name: values[name] for name in needed}, cache, stage.given, values)
    return {name: carried[-1][name] for name in RESULTS}


def _step(
    session: ort.InferenceSession,
    inputs: dict[str, np.ndarray],
    cache: dict[str, np.ndarray],
    given: Sequence[str],
    values: dict[str, np.ndarray],
) -> None:
    """Adds what the stage gives to `values`; the cache is changed in place."""
    binding, rows = session.io_binding(), len(values["length"])
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, array in cache.items():
        part = ort.OrtValue.ortvalue_from_numpy(array[:rows])
        binding.bind_ortvalue_input(name, part)
        binding.bind_ortvalue_output(f"new_{name}", part)
    for name in given:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    outputs = binding.get_outputs()[len(cache) :]
    values |= {name: output.numpy() for name, output in zip(given, outputs, strict=True)}


def _stages(model: onnx.ModelProto, layers: int, limit: int) -> Iterator[Stage]:
    """Cut before a layer's first norm, which adds up what the layer before gives in two parts."""
    cuts: dict[int, tuple[str, ...]] = {0: ()}
    sizes, layer = [0] * layers, 0
    weights = {w.name: _external_bytes(w) for w in model.graph.initializer}
    firsts = {f"model.layers.{i}.input_layernorm.weight": i for i in range(1, layers)}
    for node in model.graph.node:
        for name in node.input:
            if name in firsts:
                layer = firsts[name]
                cuts[layer] = tuple(node.input[:2])
            sizes[layer] += weights.get(name, 0)
    start, size = 0, 0
    for i in range(layers):
        if start < i and size + sizes[i] > limit:
            yield Stage(range(start, i), cuts[start], cuts[i])
            start, size = i, 0
        size += sizes[i]
    yield Stage(range(start, layers), cuts[start], RESULTS)


def _external_bytes(weight: onnx.TensorProto) -> int:
    return next((int(entry.value) for entry in weight.external_data if entry.key == "length"), 0)


def _cut(model: onnx.ModelProto, stage: Stage) -> onnx.ModelProto:
    """The model's operators between what the stage takes and gives, and those that its inputs alone decide."""
    cache = [f"new_{part}_{i}" for i in stage.layers for part in ("key", "value")]
    needed, nodes = {*stage.given, *cache}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) - set(stage.taken):
            needed |= _reads(node)
            nodes.append(node)
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in stage.taken]
    inputs = [value for value in model.graph.input if value.name in needed]
    outputs = [value for value in model.graph.output if value.name in (*stage.given, *cache)]
    known = {value.name for value in outputs}
    outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in stage.given if n not in known]
    weights = [weight for weight in model.graph.initializer if weight.name in needed]
    graph = helper.make_graph(nodes[::-1], "stage", inputs + floats, outputs, weights)
    made = helper.make_model(graph, ir_version=model.ir_version, opset_imports=model.opset_import)
    made.functions.extend(model.functions)
    return made


def _reads(node: onnx.NodeProto) -> set[str]:
    """What an operator reads, in its body too: the body's own values among them are nobody's output outside."""
    names = set(node.input) - {""}
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _reads(inner)
    return names
