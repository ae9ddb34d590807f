"""Attention of a layer, the native operator against a Scan over the rows with GroupQueryAttention.

Both run the graph that export/attention.py writes, with the library registered and without it. A layer's time is a
graph of LAYERS more layers less a graph of one, each layer with a cache of its own; native and stock take turns. The
operator's speed is told as a share of a large fp32 product's in the same run: what the processor can do at most.

Run:  .venv/bin/python -m docs.decisions.experiments.tree_attention [HEADS KV_HEADS HEAD_DIM]
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from export.attention import PLAN, STEP, tree_attention, tree_plan
from export.emitter import FUNCTION_OPSETS, GORGON, IR_VERSIONS, OPSET
from runtime.bench.compare import Ratio, Spread
from runtime.bench.markdown import ratio, spread, table
from runtime.native.library import Library, find

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
SHAPES = ((32, 4, 64), (32, 32, 128))  # TinyLlama-1.1B's heads, key-value heads and elements; 7B's
LAYERS, CAPACITY, SECONDS, FEWEST = 3, 2112, 1.0, 7
PRODUCT = 1536  # rows, columns and depth of the large product
TREE = [-1, 0, 1, 0, 3, 0, 0, 2]  # of 8 nodes
STEPS = ((8, 8, 275), (8, 8, 1500), (1, 1, 275), (1, 16, 275), (8, 1, 275), (1, 1, 1500), (1, 512, 0), (1, 512, 1500))


class Graph:
    """So many attention layers over one projection, their caches bound in place."""

    def __init__(self, heads: int, kv_heads: int, dim: int, layers: int, library: Library | None) -> None:
        value = helper.make_tensor_value_info
        self.layers, self.cache_shape = layers, [1, kv_heads, CAPACITY, dim]
        inputs = [
            value("qkv", FLOAT, ["tokens", (heads + 2 * kv_heads) * dim]), value("depth", INT64, ["tokens"]),
            value("length", INT64, ["rows"]), value("count", INT64, ["rows"]),
            value("ancestors", BOOL, ["rows", "nodes", "nodes"]),
            value("cos", FLOAT, [CAPACITY, dim // 2]), value("sin", FLOAT, [CAPACITY, dim // 2]),
        ]  # fmt: skip
        outputs, plan = [], tree_plan()
        attention = tree_attention(heads, kv_heads, dim, CAPACITY, rounded=False)
        nodes = [helper.make_node(plan.name, STEP, PLAN, domain=GORGON)]
        for i in range(layers):
            made = [f"attended_{i}", f"new_key_{i}", f"new_value_{i}"]
            taken = ["qkv", f"key_{i}", f"value_{i}", *STEP, "cos", "sin", *PLAN]
            nodes.append(helper.make_node(attention.name, taken, made, domain=GORGON, heads=heads, kv_heads=kv_heads))
            inputs += [value(f"{part}_{i}", FLOAT, ["rows", *self.cache_shape]) for part in ("key", "value")]
            outputs.append(value(made[0], FLOAT, ["tokens", heads * dim]))
            outputs += [value(name, FLOAT, ["rows", *self.cache_shape]) for name in made[1:]]
        model = helper.make_model(
            helper.make_graph(nodes, "attention", inputs, outputs), ir_version=IR_VERSIONS[OPSET],
            opset_imports=[*FUNCTION_OPSETS, helper.make_opsetid(GORGON, 1)], functions=[plan, attention],
        )  # fmt: skip
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # as in serving
        if library is not None:
            options.register_custom_ops_library(str(library.file))
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def bind(self, step: dict[str, np.ndarray], caches: list[np.ndarray]) -> ort.IOBinding:
        binding = self.session.io_binding()
        for name, array in step.items():
            binding.bind_cpu_input(name, array)
        for i in range(self.layers):
            binding.bind_output(f"attended_{i}")
            for j, part in enumerate(("key", "value")):
                cache = caches[2 * i + j]
                place = "cpu", 0, np.float32, cache.shape, cache.ctypes.data
                binding.bind_input(f"{part}_{i}", *place)
                binding.bind_output(f"new_{part}_{i}", *place)
        return binding


def step_of(
    rng: np.random.Generator, shape: tuple[int, int, int], rows: int, nodes: int, length: int
) -> dict[str, np.ndarray]:
    heads, kv_heads, dim = shape
    parents = TREE if nodes == len(TREE) else list(range(-1, nodes - 1))
    seen, depth = np.eye(nodes, dtype=bool), np.zeros(nodes, np.int64)
    for i, parent in enumerate(parents[1:], 1):
        seen[i] |= seen[parent]
        depth[i] = depth[parent] + 1
    angle = np.arange(CAPACITY)[:, None] / 10000 ** (np.arange(0, dim, 2) / dim)
    return {
        "qkv": rng.standard_normal((rows * nodes, (heads + 2 * kv_heads) * dim), np.float32),
        "depth": np.tile(depth, rows), "length": np.full(rows, length), "count": np.full(rows, nodes),
        "ancestors": np.ascontiguousarray(np.broadcast_to(seen, (rows, nodes, nodes))),
        "cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32),
    }  # fmt: skip


def seconds(run: Callable[[], None]) -> float:
    """The median of a few: what one takes is taken off what many take, and must not come to less than nothing."""
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def fp32_peak() -> float:
    """Operations a second of a large product, over the threads that a session has."""
    sides = [helper.make_tensor_value_info(name, FLOAT, [PRODUCT, PRODUCT]) for name in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", sides[:2], sides[2:])
    model = helper.make_model(graph, ir_version=IR_VERSIONS[OPSET], opset_imports=[helper.make_opsetid("", OPSET)])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    square = np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT), np.float32)
    feeds = {"a": square, "b": square}
    session.run(None, feeds)
    return 2.0 * PRODUCT**3 / seconds(lambda: session.run(None, feeds))


def operations(shape: tuple[int, int, int], step: dict[str, np.ndarray]) -> float:
    """Of a layer's scores and sums, for what is seen alone."""
    heads, _, dim = shape
    seen = int((step["length"] * step["count"]).sum()) + int(step["ancestors"].sum())
    return 4.0 * heads * dim * seen


def compare(shape: tuple[int, int, int], rows: int, nodes: int, length: int, library: Library) -> list[str]:
    rng = np.random.default_rng(0)
    step = step_of(rng, shape, rows, nodes, length)
    caches = [np.zeros((rows, 1, shape[1], CAPACITY, shape[2]), np.float32) for _ in range(2 * (LAYERS + 1))]
    for cache in caches:
        cache[:, :, :, :length] = rng.standard_normal((rows, 1, shape[1], length, shape[2]), np.float32)
    runs = {}
    for name, registered in (("native", library), ("stock", None)):
        for layers in (1, LAYERS + 1):
            graph = Graph(*shape, layers, registered)
            binding = graph.bind(step, caches)
            runs[name, layers] = lambda session=graph.session, binding=binding: session.run_with_iobinding(binding)
            runs[name, layers]()
    times: dict[str, list[float]] = {"native": [], "stock": []}
    began = time.perf_counter()
    while len(times["stock"]) < FEWEST or time.perf_counter() - began < SECONDS:
        for name, taken in times.items():
            one, all_of_them = (seconds(runs[name, layers]) for layers in (1, LAYERS + 1))
            taken.append((all_of_them - one) / LAYERS * 1e3)
    pairs = Ratio.of([s / n for s, n in zip(times["stock"], times["native"], strict=True)])
    name = f"{shape[0]} / {shape[1]} heads of {shape[2]}, {rows} x {nodes} over {length}"
    share = operations(shape, step) / (statistics.median(times["native"]) / 1e3) / fp32_peak()
    return [name, *(spread(Spread.of(times[form]), 3) for form in times), ratio(pairs), f"{share:.0%}"]


def main() -> None:
    library = find()
    if library is None:
        raise SystemExit("native operators are not built: python -m runtime.native")
    shapes: Sequence[tuple[int, int, int]] = SHAPES
    if len(sys.argv) > 1:
        heads, kv_heads, dim = map(int, sys.argv[1:4])
        shapes = [(heads, kv_heads, dim)]
    print(f"onnxruntime {ort.__version__}, {library}; ms a layer, median [quartiles]", flush=True)
    rows = [
        ["rows x nodes over cached tokens", "native", "Scan + GroupQueryAttention", "ratio", "of a product's speed"]
    ]
    for shape in shapes:
        rows += [compare(shape, *step, library) for step in STEPS]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
