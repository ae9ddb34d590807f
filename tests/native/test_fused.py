"""Products with the norm before and the gate after them: NormMatMul and NormGated, of 4 and of 8 bits."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.emitter import FLOAT, OPSET, Emitter
from export.fused import Norm, norm_product
from export.linear import linear
from runtime import graphs
from runtime.native.library import Library
from tests.native.opened import opened, operators
from tests.native.test_matmul_int8 import INT8_PATHS

SHAPES = ((64, 32), (300, 38), (5, 2), (129, 66), (1056, 96))  # inputs, outputs
CASES = list(product(SHAPES, ("int4", "int8")))
EPSILON = 1e-5
TOKENS = 64
RESULTS = ["y", "total", "gated", "total_gated", "same"]


def made(file: Path, shape: tuple[int, int], precision: str) -> np.ndarray:
    """Writes a graph of both operators and of the plain product of `normed`, by one weight; returns the norm's."""
    rng = np.random.default_rng(0)
    inputs, outputs = shape
    weight, norm = rng.standard_normal(shape[::-1], np.float32), rng.uniform(0.5, 2, inputs).astype(np.float32)
    with Emitter(file, OPSET) as emitter:
        x, added, normed = (emitter.input(name, FLOAT, ["tokens", inputs]) for name in ("x", "added", "normed"))
        of = Norm(x, added, emitter.weight("norm", norm), EPSILON)
        given = (
            *norm_product(emitter, of, "w", weight, precision, gated=False),
            *norm_product(emitter, of, "g", weight, precision, gated=True),
            linear(emitter, normed, "p", weight, None, precision),
        )
        for name, value in zip(RESULTS, given, strict=True):
            emitter.node("Identity", value, name=name)
        widths = (outputs, inputs, outputs // 2, inputs, outputs)
        for name, width in zip(RESULTS, widths, strict=True):
            emitter.output(name, FLOAT, ["tokens", width])
        emitter.save("products")
    return norm


def values(tokens: int, width: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """x and added, of tokens of very different size."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.01, 100, (tokens, 1)).astype(np.float32)
    return rng.standard_normal((tokens, width), np.float32) * sizes, rng.standard_normal((tokens, width), np.float32)


def normed_in_order(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The norm in the order that every path promises: squares in 64 lanes, one after the other, then lanes in pairs."""
    width = total.shape[1]
    squares = np.zeros((len(total), -(-width // 64) * 64), np.float32)
    squares[:, :width] = total * total
    sums = np.zeros((len(total), 64), np.float32)
    for start in range(0, squares.shape[1], 64):
        sums += squares[:, start : start + 64]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    inverse = np.float32(1) / np.sqrt(sums / np.float32(width) + np.float32(EPSILON))
    ordered: np.ndarray = total * inverse * weight
    return ordered


def silu(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        result: np.ndarray = wide / (1 + np.exp(-wide))
    return result


@pytest.fixture
def native(library: Library, path: str, precision: str) -> Library:
    """The library on the path in force, where that has operators of this precision."""
    if precision == "int8" and path not in INT8_PATHS:
        pytest.skip(f"{path} has no product of 8 bits: the function's body runs")
    return library


@pytest.mark.parametrize(("shape", "precision"), CASES)
def test_is_the_product_of_the_norm_and_its_gate(native: Library, tmp_path: Path, shape: tuple, precision: str) -> None:
    """The product has the bits of a plain one that is given the norm, which is summed in the order promised."""
    weight = made(tmp_path / "products.onnx", shape, precision)
    session = opened(tmp_path / "products.onnx", native)
    for tokens in (1, 6, 9, 40):
        x, added = values(tokens, shape[0], tokens)
        normed = normed_in_order(x + added, weight)
        y, total, gated, total_gated, same = session.run(RESULTS, {"x": x, "added": added, "normed": normed})
        assert np.array_equal(total, x + added) and np.array_equal(total_gated, total)
        assert np.array_equal(y, same)
        gate, up = np.split(y, 2, axis=1)
        assert np.all(np.abs(gated - silu(gate) * up) <= 5e-7 * np.abs(silu(gate) * up) + 1e-30)


@pytest.mark.parametrize(("shape", "precision"), CASES)
def test_the_body_computes_the_same(library: Library, tmp_path: Path, shape: tuple, precision: str) -> None:
    """Up to where a value lies between two levels: the stock norm sums in another order."""
    file = tmp_path / "products.onnx"
    made(file, shape, precision)
    x, added = values(40, shape[0])
    feed = {"x": x, "added": added, "normed": x}
    ours = opened(file, library).run(RESULTS[:4], feed)
    found = set(operators(file))
    of = precision.capitalize()
    if precision == "int4" or library.path in INT8_PATHS:
        assert found == {f"NormMatMul{of}", f"NormGated{of}", f"MatMul{of}"} | (found & {"Identity"})
    for mine, stock in zip(ours, opened(file, None).run(RESULTS[:4], feed), strict=True):
        assert np.abs(mine - stock).max() <= 0.01 * np.abs(stock).max()


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_token_does_not_depend_on_the_others(native: Library, tmp_path: Path, precision: str) -> None:
    made(tmp_path / "products.onnx", (160, 40), precision)
    session = opened(tmp_path / "products.onnx", native)
    run = lambda at: session.run(RESULTS[:4], {"x": x[at], "added": added[at], "normed": x[at]})  # noqa: E731
    x, added = values(TOKENS, 160)
    alone = [np.concatenate(parts) for parts in zip(*(run([i]) for i in range(TOKENS)), strict=True)]
    rng = np.random.default_rng(2)
    for tokens in range(1, TOKENS + 1):
        order = rng.permutation(TOKENS)[:tokens]
        assert all(np.array_equal(got, want[order]) for got, want in zip(run(order), alone, strict=True))


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_extreme_values(native: Library, tmp_path: Path, precision: str) -> None:
    """Zeros give zeros, gates far from 0 no overflow, and what is no number stays with its own token."""
    made(tmp_path / "products.onnx", (64, 32), precision)
    session = opened(tmp_path / "products.onnx", native)
    x, added = values(6, 64)
    x[1], added[1] = 0, 0
    x[2, 40], x[4, 3] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        y, _, gated, _ = session.run(RESULTS[:4], {"x": x, "added": added, "normed": x})
    assert not y[1].any() and not gated[1].any()
    assert np.isnan(y[[2, 4]]).all() and np.isnan(gated[[2, 4]]).all()
    assert np.isfinite(y[[0, 3, 5]]).all() and np.isfinite(gated[[0, 3, 5]]).all()


def test_gates_far_from_zero(library: Library, path: str, tmp_path: Path) -> None:
    """SiLU is x above, and 0 below."""
    gates = np.array([-1e15, -1e4, -100, -22.1, -22, -5, -1, -1e-30, 0, 1e-30, 1, 5, 22, 100, 1e4, 1e15], np.float32)
    width = len(gates)
    weight = np.concatenate([np.diag(gates), np.eye(width, dtype=np.float32)])
    with Emitter(tmp_path / "gates.onnx", OPSET) as emitter:
        x, added = (emitter.input(name, FLOAT, ["tokens", width]) for name in ("x", "added"))
        of = Norm(x, added, emitter.weight("norm", np.ones(width, np.float32)), 0.0)
        y, _ = norm_product(emitter, of, "w", weight, "int4", gated=True)
        emitter.node("Identity", y, name="y")
        emitter.output("y", FLOAT, ["tokens", width])
        emitter.save("gates")
    one = np.eye(width, dtype=np.float32)  # a token for each gate; its norm is sqrt(width)
    [y] = opened(tmp_path / "gates.onnx", library).run(["y"], {"x": one, "added": 0 * one})
    scale = np.float32(np.sqrt(width))
    want = silu(gates * scale) * scale
    np.testing.assert_allclose(np.diag(y), want, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_what_does_not_fit_is_refused(native: Library, tmp_path: Path, precision: str) -> None:
    made(tmp_path / "products.onnx", (64, 32), precision)
    session = opened(tmp_path / "products.onnx", native)
    x, added = values(4, 64)
    with pytest.raises(Exception, match=r"x is \[4, 64\], added \[3, 64\], norm \[64\]: they have to be of one shape"):
        session.run(RESULTS, {"x": x, "added": added[:3], "normed": x})
    made(tmp_path / "odd.onnx", (64, 33), precision)
    with pytest.raises(Exception, match="33 outputs: gated ones are two halves"):
        opened(tmp_path / "odd.onnx", native)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_demo_decoder_is_made_of_them(
    library: Library, demo_artifact: Callable[[str], Path], precision: str
) -> None:
    """Of a layer's ten operators five are left: two norms and the gate's three went into products."""
    file = demo_artifact(precision) / "decoder.onnx"
    of, layers = precision.capitalize(), 6
    nodes = [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
    layer = ["TreeAttention", f"MatMul{of}", f"NormGated{of}", f"MatMul{of}"]
    body = nodes[nodes.index("TreeAttention") : nodes.index("SkipSimplifiedLayerNormalization")]
    assert body == [*layer, f"NormMatMul{of}"] * (layers - 1) + layer
    graphs.load(file, library=library)
