"""MatMulInt8 against the stock operators that it stands for: the same bits."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.emitter import FLOAT, OPSET, Emitter
from export.linear import linear
from export.quantize import int8
from runtime.native.library import PATHS, Library
from tests.native.products import multiply_int8

SHAPES = ((64, 32), (300, 37), (5, 1), (129, 17), (1030, 65))  # inputs, outputs
INT8_PATHS = ("avx512_vnni", "amx")  # the paths with a kernel of its own; elsewhere the stock operators run


def weights(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape[::-1], np.float32)


def inputs(tokens: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tokens, width), np.float32) * rng.uniform(0.01, 100, (tokens, 1)).astype(np.float32)


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    value: tuple[int, int] = request.param
    return value


def session(path: object, library: Library | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    if library is not None:
        options.register_custom_ops_library(str(library.file))
        options.optimized_model_filepath = f"{path}.native"
    return ort.InferenceSession(str(path), options)


@pytest.mark.parametrize("path", PATHS)
def test_a_layer_has_the_bits_of_its_stock_operators(
    library: Library, tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], path: str
) -> None:
    if not library.has(path):
        pytest.skip(f"this processor has no {path}")
    file = tmp_path_factory.mktemp("layer") / "layer.onnx"
    with Emitter(file, OPSET) as emitter:
        emitter.input("x", FLOAT, ["tokens", shape[0]])
        linear(emitter, "x", "w", weights(shape, 0), None, "int8", result="y")
        emitter.output("y", FLOAT, ["tokens", shape[1]])
        emitter.save("layer")
    with library.forced(path):
        native = session(file, library)
    stock = session(file, None)
    levels, scale = int8(weights(shape, 0))
    for tokens in (1, 2, 8, 9, 40):
        x = inputs(tokens, shape[0], tokens)
        x[tokens // 2] = 0
        want = stock.run(None, {"x": x})[0]
        assert np.array_equal(native.run(None, {"x": x})[0], want)
        with library.forced(path):
            assert np.array_equal(multiply_int8(library, x, levels, scale, threads=2), want)


def test_a_token_does_not_depend_on_the_others(library: Library) -> None:
    levels, scale = int8(weights((260, 48), 1))
    x = inputs(64, 260, 2)
    alone = np.concatenate([multiply_int8(library, row[None], levels, scale) for row in x])
    for tokens in range(1, 65):
        order = np.random.default_rng(tokens).permutation(64)[:tokens]
        assert np.array_equal(multiply_int8(library, x[order], levels, scale, 1 + tokens % 2), alone[order])


def test_what_is_no_number_stays_with_its_token(library: Library) -> None:
    levels, scale = int8(weights((64, 32), 3))
    x = inputs(4, 64, 4)
    x[1, 7], x[2, 9] = np.nan, -np.inf
    y = multiply_int8(library, x, levels, scale)
    assert np.isnan(y[1:3]).all() and np.isfinite(y[[0, 3]]).all()


@pytest.mark.parametrize("path", PATHS)
def test_only_paths_with_a_kernel_take_the_place_of_stock_operators(
    library: Library, tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    if not library.has(path):
        pytest.skip(f"this processor has no {path}")
    file = tmp_path_factory.mktemp("layer") / "layer.onnx"
    with Emitter(file, OPSET) as emitter:
        emitter.input("x", FLOAT, ["tokens", 64])
        linear(emitter, "x", "w", weights((64, 32), 5), None, "int8", result="y")
        emitter.output("y", FLOAT, ["tokens", 32])
        emitter.save("layer")
    with library.forced(path):
        session(file, library)
    operators = {node.op_type for node in onnx.load(f"{file}.native").graph.node}
    assert (operators == {"MatMulInt8"}) is (path in INT8_PATHS)
