"""MatMulInt4 against exact arithmetic, against MatMulNBits, and against itself on every path this machine has."""

from itertools import product

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.bench.products import int4 as int4_nodes
from runtime.native.library import PATHS, Library
from tests.native.products import Matrix, matrix, multiply

SHAPES = ((32, 16), (256, 64), (300, 37), (5, 1), (129, 17), (1056, 48))  # inputs, outputs
BLOCKS = (32, 128)
TOKENS = 64
CASES = list(product(SHAPES, BLOCKS, (True, False)))  # shape, block, scales that are float16


def rounded(x: np.ndarray, block: int, blocks: int) -> np.ndarray:
    """What is left of x [tokens, inputs] after rounding to 8 bits: float64 [tokens, blocks, block]."""
    padded = np.zeros((len(x), blocks * block), np.float32)
    padded[:, : x.shape[1]] = x
    parts = padded.reshape(len(x), blocks, block)
    largest = np.abs(parts).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(parts * inverse).astype(np.float64) * (largest * np.float32(1 / 127))


@pytest.mark.parametrize(("shape", "block", "half"), CASES)
def test_is_the_product_of_the_rounded_values(
    library: Library, path: str, shape: tuple[int, int], block: int, half: bool
) -> None:
    rng = np.random.default_rng(0)
    weights = matrix(rng, *shape, block, half)
    x = rng.standard_normal((11, shape[0]), np.float32) * rng.uniform(0.01, 100, (11, 1)).astype(np.float32)
    levels = rounded(x, block, weights.packed.shape[1])
    levels, values = levels.reshape(11, -1), weights.values().reshape(shape[1], -1)
    want, scale = levels @ values.T, np.abs(levels) @ np.abs(values).T  # float32 rounds in proportion to the second
    assert np.all(np.abs(multiply(library, x, weights) - want) <= 1e-6 * scale)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_token_does_not_depend_on_the_others(library: Library, path: str, block: int) -> None:
    """To the bit, for 1 to 64 tokens, whatever their place among them, and on one thread or two."""
    rng = np.random.default_rng(1)
    weights = matrix(rng, 160, 40, block)
    x = rng.standard_normal((TOKENS, 160), np.float32)
    alone = np.concatenate([multiply(library, row[None], weights) for row in x])
    for tokens in range(1, TOKENS + 1):
        order = rng.permutation(TOKENS)[:tokens]
        assert np.array_equal(multiply(library, x[order], weights, threads=1 + tokens % 2), alone[order])


@pytest.mark.parametrize(("shape", "block", "half"), CASES)
def test_every_path_gives_the_same_bits(library: Library, shape: tuple[int, int], block: int, half: bool) -> None:
    rng = np.random.default_rng(2)
    weights, x = matrix(rng, *shape, block, half), rng.standard_normal((19, shape[0]), np.float32)
    results = []
    for path in filter(library.has, PATHS):
        with library.forced(path):
            results.append(multiply(library, x, weights))
    assert len(results) >= 1
    for result in results[1:]:
        assert np.array_equal(result, results[0])


def test_extreme_values(library: Library, path: str) -> None:
    """Zeros give zeros, no scale overflows, and what is no number stays with its own token."""
    rng = np.random.default_rng(3)
    weights = matrix(rng, 64, 16, 32)
    x = rng.standard_normal((6, 64), np.float32)
    x[1], x[2], x[3, 40], x[4, 3] = 0, x[0] * np.float32(1e30), np.nan, np.inf
    y = multiply(library, x, weights)
    assert np.array_equal(y[1], np.zeros(16, np.float32))
    np.testing.assert_allclose(y[2], y[0] * np.float32(1e30), rtol=1e-5)
    assert np.isnan(y[3]).all() and np.isnan(y[4]).all()
    assert np.array_equal(y[[0, 5]], multiply(library, x[[0, 5]], weights))


def test_no_tokens(library: Library, path: str) -> None:
    assert multiply(library, np.empty((0, 64), np.float32), matrix(np.random.default_rng(4), 64, 16, 32)).shape == (
        0,
        16,
    )


def session(nodes: list[object], weights: Matrix, library: Library) -> ort.InferenceSession:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "product",
        [value("x", TensorProto.FLOAT, ["rows", "tokens", weights.inputs])],
        [value("y0", TensorProto.FLOAT, ["rows", "tokens", len(weights.packed)])],
        [numpy_helper.from_array(weights.packed, "w0"), numpy_helper.from_array(weights.scale, "s0")],
    )  # fmt: skip
    opsets = [helper.make_opsetid(name, version) for name, version in (("", 21), ("com.microsoft", 1), ("gorgon", 1))]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    options.register_custom_ops_library(str(library.file))
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    return ort.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize("block", BLOCKS)
def test_agrees_with_matmulnbits_in_a_session(library: Library, block: int) -> None:
    """Both round activations to 8 bits by block; they may differ where a value lies between two levels."""
    rng = np.random.default_rng(5)
    weights, x = matrix(rng, 512, 96, block), rng.standard_normal((2, 5, 512), np.float32)
    results = []
    for native in (True, False):
        nodes, _ = int4_nodes(block, native)(0, 512, 96, rng)
        results.append(session(nodes, weights, library).run(None, {"x": x})[0])
    exact = np.einsum("rti,oi->rto", x.astype(np.float64), weights.values().reshape(96, -1)[:, :512])
    share = np.abs(results[0] - results[1]).max() / np.abs(exact).max()
    assert share < 1e-3
    errors = [np.abs(result - exact).max() / np.abs(exact).max() for result in results]
    assert errors[0] < 1.2 * errors[1] < 0.02
    assert np.array_equal(results[0].reshape(10, 96), multiply(library, x.reshape(10, 512), weights))


def test_a_node_that_does_not_fit_is_refused(library: Library) -> None:
    rng = np.random.default_rng(6)
    weights = matrix(rng, 64, 16, 32)
    nodes, _ = int4_nodes(32, True)(0, 96, 16, rng)
    with pytest.raises(
        Exception, match=r"MatMulInt4: packed is \[16, 2, 16\], K, N and block_size make it 768 elements"
    ):
        session(nodes, weights, library)
    nodes, _ = int4_nodes(32, True)(0, 64, 16, rng)
    fits = session(nodes, weights, library)
    with pytest.raises(Exception, match="x"):
        fits.run(None, {"x": np.zeros((1, 1, 63), np.float32)})
