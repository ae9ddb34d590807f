"""A decoder step with products that take the norm before and the gate after them, and with these apart.

`python -m docs.decisions.experiments.fused ARTIFACT`: ms, medians [quartiles] of alternating runs of one
artifact's graph, as it is and with functions of several operators replaced by these; rows have 128 committed tokens.
Each graph has several sessions: where a session's weights lie in memory moves it by a few percent.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from docs.decisions.experiments.step import batch
from export.emitter import GORGON, MICROSOFT
from runtime import graphs
from runtime.batch import Packer
from runtime.bench.markdown import table
from runtime.manifest import Manifest
from runtime.native.library import find
from runtime.ragged import RaggedSession

ROWS = 8
SHAPES = ((1, 1), (1, 4), (1, 16), (8, 1), (8, 5), (1, 128))  # rows, nodes of each
SMALL, LARGE = 3, 1  # sessions of each graph, by the weights' size
LARGE_BYTES = 1 << 28
SECONDS, LEAST = 5.0, 5  # of each shape; rounds
ALL = ("norm", "gate", "best")
KINDS = {"apart": ALL, "norm": ("gate", "best"), "norm and gate": ("best",), "as it is": ()}


def taken_apart(model: onnx.ModelProto, parts: tuple[str, ...]) -> onnx.ModelProto:
    """Products without what is in `parts`: "norm", "gate"; "best": ArgMax for BestToken."""
    nodes = [part for node in model.graph.node for part in _apart(node, parts)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _apart(node: onnx.NodeProto, parts: tuple[str, ...]) -> list[onnx.NodeProto]:
    """A gate is taken out of its product before the norm is: the norm of a gated product stays in it."""
    if node.op_type == "BestToken" and "best" in parts:
        return [helper.make_node("ArgMax", node.input, node.output, axis=-1, keepdims=0)]
    if node.op_type.startswith("NormGated") and "gate" in parts:
        y, *total = node.output
        both, gate, up, silu = (f"{y}/{part}" for part in ("both", "gate", "up", "silu"))
        whole = onnx.NodeProto()
        whole.CopyFrom(node)
        whole.op_type = node.op_type.replace("Gated", "MatMul")
        whole.output[:] = [both, *total]
        return [
            *_apart(whole, parts),
            helper.make_node("Split", [both], [gate, up], axis=-1, num_outputs=2),
            helper.make_node("QuickGelu", [gate], [silu], domain=MICROSOFT, alpha=1.0),
            helper.make_node("Mul", [silu, up], [y]),
        ]
    if node.op_type.startswith("NormMatMul") and "norm" in parts:
        (y, total), attributes = node.output, {a.name: helper.get_attribute_value(a) for a in node.attribute}
        epsilon, normed = attributes.pop("epsilon"), f"{y}/normed"
        return [
            helper.make_node("SkipSimplifiedLayerNormalization", node.input[:3], [normed, "", "", total],
                             domain=MICROSOFT, epsilon=epsilon),
            helper.make_node(node.op_type.removeprefix("Norm"), [normed, *node.input[3:]], [y], domain=GORGON,
                             **attributes),
        ]  # fmt: skip
    return [node]


class Compared:
    """Sessions of one artifact that share a cache."""

    def __init__(self, artifact: Path) -> None:
        file, manifest = artifact / "decoder.onnx", Manifest.read(artifact)
        large = file.with_name("decoder.onnx.data").stat().st_size > LARGE_BYTES
        self.session = RaggedSession(artifact, manifest, ROWS, operators="native")
        self.random = np.random.default_rng(0)
        self.decoders: dict[tuple[str, int], tuple[ort.InferenceSession, dict[int, ort.IOBinding]]] = {}
        for copy in range(LARGE if large else SMALL):
            for kind in self.random.permutation(list(KINDS)).tolist():
                model = taken_apart(onnx.load(file, load_external_data=False), KINDS[kind])
                decoder = graphs.load(file, part=model.SerializeToString(), library=find())
                self.decoders[kind, copy] = decoder, {}
        self.packer = Packer(False, manifest.even_tokens, manifest.capacity)

    def times(self, rows: int, nodes: int) -> dict[str, np.ndarray]:
        """ms of each round, the mean over a kind's sessions."""
        step = batch(self.packer, rows, nodes)
        rounds: list[dict[tuple[str, int], float]] = []
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(rounds) <= LEAST:
            rounds.append({})
            order = list(self.decoders)
            for i in self.random.permutation(len(order)):
                self.session._decoder, self.session._bindings = self.decoders[order[i]]
                began = time.perf_counter()
                self.session.run(step)
                rounds[-1][order[i]] = (time.perf_counter() - began) * 1e3
        return {
            kind: np.array([np.mean([ms for (of, _), ms in found.items() if of == kind]) for found in rounds[1:]])
            for kind in KINDS
        }


def main(artifact: Path) -> None:
    compared, lines = Compared(artifact), []
    for rows, nodes in SHAPES:
        times, cells = compared.times(rows, nodes), []
        for kind, series in times.items():
            low, median, high = np.percentile(series, [25, 50, 75])
            share = np.percentile(series / times["apart"], [25, 50, 75])
            shares = "" if kind == "apart" else f", {share[1]:.3f} ({share[0]:.3f} to {share[2]:.3f})"
            cells.append(f"{median:.3f} [{low:.3f}, {high:.3f}]{shares}")
        lines.append([f"{rows} x {nodes}", *cells])
    print(f"{artifact.name}, {compared.session.provider}; ms a step, and the share of what it takes apart")
    print("\n".join(table([["rows x nodes", *KINDS], *lines])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
