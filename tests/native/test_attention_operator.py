"""TreeAttention inside ONNX Runtime: the graph of the export with the library, and what the operator refuses."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from export.attention import PLAN, STEP, tree_attention, tree_plan
from export.emitter import FUNCTION_OPSETS, GORGON, IR_VERSIONS, OPSET
from runtime.native.library import Library
from tests.native.attention import Shape, Step, chain, expected, new_keys, random_cache, random_step, tables

SHAPE = Shape(4, 2, 16, 128)
LENGTH, PARENTS = [20, 3, 0], [[-1, 0, 1, 0, 3], [-1], chain(4)]
CACHE = ("key", "value")


def session(library: Library | None, optimized: Path | None = None, shape: Shape = SHAPE) -> ort.InferenceSession:
    value = helper.make_tensor_value_info
    plan = tree_plan()
    attention = tree_attention(shape.heads, shape.kv_heads, shape.head_dim, shape.capacity, rounded=False)
    cache = ["rows", 1, shape.kv_heads, shape.capacity, shape.head_dim]
    nodes = [
        helper.make_node(plan.name, STEP, PLAN, domain=GORGON),
        helper.make_node(
            attention.name, ["qkv", *CACHE, *STEP, "cos", "sin", *PLAN], ["attended", "new_key", "new_value"],
            domain=GORGON, heads=shape.heads, kv_heads=shape.kv_heads,
        ),
    ]  # fmt: skip
    inputs = [
        value("qkv", TensorProto.FLOAT, ["tokens", "width"]), value("depth", TensorProto.INT64, ["tokens"]),
        value("length", TensorProto.INT64, ["rows"]), value("count", TensorProto.INT64, ["rows"]),
        value("ancestors", TensorProto.BOOL, ["rows", "nodes", "nodes"]),
        *(value(name, TensorProto.FLOAT, ["positions", "half"]) for name in ("cos", "sin")),
        *(value(name, TensorProto.FLOAT, cache) for name in CACHE),
    ]  # fmt: skip
    outputs = [value("attended", TensorProto.FLOAT, ["tokens", shape.heads * shape.head_dim])]
    outputs += [value(f"new_{name}", TensorProto.FLOAT, cache) for name in CACHE]
    model = helper.make_model(
        helper.make_graph(nodes, "attention", inputs, outputs), ir_version=IR_VERSIONS[OPSET],
        functions=[plan, attention], opset_imports=[*FUNCTION_OPSETS, helper.make_opsetid(GORGON, 1)],
    )  # fmt: skip
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library.file))
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model.SerializeToString(), options)


def feeds(step: Step) -> dict[str, np.ndarray]:
    cosine, sine = tables(SHAPE)
    return {
        "qkv": step.qkv, "depth": step.depth, "length": step.length, "count": step.count, "ancestors": step.ancestors,
        "cos": cosine, "sin": sine,
    }  # fmt: skip


def run(loaded: ort.InferenceSession, inputs: dict[str, np.ndarray], cache: dict[str, np.ndarray]) -> np.ndarray:
    """The cache [rows, 1, kv_heads, capacity, head_dim] bound in place."""
    binding = loaded.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, array in cache.items():
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_output(f"new_{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
    binding.bind_output("attended")
    loaded.run_with_iobinding(binding)
    return dict(zip(["new_key", "new_value", "attended"], binding.get_outputs(), strict=True))["attended"].numpy()


@pytest.fixture(scope="module")
def loaded(operators: str, request: pytest.FixtureRequest) -> ort.InferenceSession:
    return session(request.getfixturevalue("library") if operators == "native" else None)


@pytest.fixture(scope="module")
def native(library: Library) -> ort.InferenceSession:
    return session(library)


def case() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    step, cache = random_step(rng, SHAPE, LENGTH, PARENTS), random_cache(rng, SHAPE, LENGTH)
    after = cache.copy()
    first = 0
    for row, (length, parents) in enumerate(zip(LENGTH, PARENTS, strict=True)):  # as the reference wants it
        n = len(parents)
        for part, new in zip((after.key, after.value), new_keys(SHAPE, step), strict=True):
            part[row, :, length : length + n] = new[first : first + n].swapaxes(0, 1)
        first += n
    want = expected(SHAPE, step, after).reshape(len(step.qkv), -1)
    return feeds(step), {name: getattr(cache, name)[:, None].copy() for name in CACHE}, want


def test_both_bodies_attend_as_float64_does(loaded: ort.InferenceSession) -> None:
    inputs, cache, want = case()
    assert np.abs(run(loaded, inputs, cache) - want).max() < 2e-5


def test_the_library_takes_the_place_of_the_scan(library: Library, tmp_path: Path) -> None:
    used = {}
    for name, registered in (("native", library), ("stock", None)):
        session(registered, tmp_path / name)
        used[name] = {node.op_type for node in onnx.load(tmp_path / name).graph.node}
    assert used["native"] == {"TreePlan", "TreeAttention"}
    assert "Scan" in used["stock"] and not used["stock"] & used["native"]


def test_a_cache_that_is_not_bound_in_place_is_refused(native: ort.InferenceSession) -> None:
    inputs, cache, _ = case()
    with pytest.raises(Exception, match="TreeAttention: the cache is written in place: bind one buffer as key and new"):
        native.run(None, inputs | cache)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": np.array([5, 1, 5])}, "row 2 ends after token 11 of 10"),
        ({"length": np.array([20, 128, 0])}, "row 1 has 128 committed tokens and 1 nodes"),
        ({"count": np.array([5, 1])}, r"count is \[2\], it has to be \[3\]"),
        ({"depth": np.zeros(9, np.int64)}, r"depth is \[9\], it has to be \[10\]"),
        ({"qkv": np.zeros((10, 100), np.float32)}, r"qkv is \[10, 100\], it has to be \[-1, 128\]"),
        ({"ancestors": np.ones((3, 5, 4), bool)}, r"ancestors is \[3, 5, 4\]"),
        ({"cos": np.zeros((128, 4), np.float32)}, r"cos is \[128, 4\], it has to be \[-1, 8\]"),
        ({"sin": np.zeros((64, 8), np.float32)}, r"sin is \[64, 8\], it has to be \[128, 8\]"),
    ],
)
def test_what_does_not_fit_is_refused(native: ort.InferenceSession, change: dict[str, np.ndarray], said: str) -> None:
    inputs, cache, _ = case()
    before = {name: array.copy() for name, array in cache.items()}
    with pytest.raises(Exception, match=said):
        run(native, inputs | change, cache)
    assert all(np.array_equal(cache[name], before[name]) for name in CACHE)
