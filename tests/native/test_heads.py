"""What the heads' graph adds to the body's operators: all heads' products in one, and the best of their logits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from export import quantize
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.decoder import BEST_TOKEN
from export.demo.dialogue import PREFIX, TRAINED_PHRASINGS, load_entries, turn
from export.draft_heads import RESULTS, TOP_DRAFTS
from export.emitter import FLOAT, INT64, OPSET, Emitter
from export.heads import MedusaHeads
from export.linear import INT4_BLOCK, linear_each
from export.reference import Reference, chain, log_softmax
from runtime import graphs
from runtime.native.library import Library
from tests.conftest import CHECKPOINT, HEADS
from tests.native.opened import opened, operators
from tests.native.products import Matrix, multiply

SHAPES = ((256, 64), (300, 37), (5, 1))  # inputs, outputs
VOCABS = (10, 64, 100, 640, 4099)
TOP_K = 10


def products(file: Path, shape: tuple[int, int], layers: int) -> list[Matrix]:
    """Writes a graph of one product a layer."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((layers, shape[1], shape[0]), np.float32)
    with Emitter(file, OPSET) as emitter:
        x = emitter.input("x", FLOAT, ["tokens", "layers", shape[0]])
        y = linear_each(emitter, x, [f"w{i}" for i in range(layers)], weights, "int4")
        emitter.output(y, FLOAT, ["tokens", "layers", shape[1]])
        emitter.save("products")
    return [Matrix(*quantize.int4(weight, INT4_BLOCK), shape[0]) for weight in weights]


@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_layer_has_the_bits_of_its_own_product(
    library: Library, path: str, tmp_path: Path, shape: tuple[int, int], layers: int
) -> None:
    file = tmp_path / "products.onnx"
    matrices = products(file, shape, layers)
    session = opened(file, library)
    assert operators(file) == ["MatMulInt4Each"]
    for tokens in (0, 1, 2, 8, 9, 17, 40):
        x = np.random.default_rng(tokens).standard_normal((tokens, layers, shape[0]), np.float32)
        [y] = session.run(None, {"x": x})
        assert y.shape == (tokens, layers, shape[1])
        for i, weights in enumerate(matrices):
            assert np.array_equal(y[:, i], multiply(library, x[:, i], weights))
        for few in range(layers):  # the first layers alone
            assert np.array_equal(session.run(None, {"x": x[:, :few]})[0], y[:, :few])


def test_stock_operators_agree(library: Library, tmp_path: Path) -> None:
    file = tmp_path / "products.onnx"
    products(file, (512, 96), 3)
    native, stock = (opened(file, which) for which in (library, None))
    assert operators(file).count("MatMulNBits") == 3
    x = np.random.default_rng(1).standard_normal((7, 3, 512), np.float32)
    [whole] = stock.run(None, {"x": x})
    assert np.abs(native.run(None, {"x": x})[0] - whole).max() < 1e-3 * np.abs(whole).max()
    for few in (1, 2):
        assert np.array_equal(stock.run(None, {"x": x[:, :few]})[0], whole[:, :few])


def test_more_layers_than_weights_are_refused(library: Library, tmp_path: Path) -> None:
    file = tmp_path / "products.onnx"
    products(file, (64, 32), 2)
    with pytest.raises(Exception, match=r"MatMulInt4Each: x is \[4, 3, 64\], it has to be \[-1, 2, 64\]"):
        opened(file, library).run(None, {"x": np.zeros((4, 3, 64), np.float32)})


def drafts(
    file: Path, library: Library | None, logits: np.ndarray, top_k: int = TOP_K
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and tokens."""
    with Emitter(file, OPSET) as emitter:
        x = emitter.input("logits", FLOAT, [*("rows", "heads")[: logits.ndim - 1], "vocab"])
        emitter.calls(TOP_DRAFTS, x, emitter.constant([top_k]), names=RESULTS)
        for name, kind in zip(RESULTS, (FLOAT, INT64), strict=True):
            emitter.output(name, kind, [*("rows", "heads")[: logits.ndim - 1], top_k])
        emitter.save("drafts")
    logprobs, tokens = opened(file, library).run(list(RESULTS), {"logits": logits})
    return logprobs, tokens


@pytest.mark.parametrize("vocab", VOCABS)
def test_the_best_drafts(library: Library, path: str, tmp_path: Path, vocab: int) -> None:
    """Against float64, and against the stock operators; logits so many times apart that rounding makes no two equal."""
    rng = np.random.default_rng(vocab)
    logits = (rng.permuted(np.tile(np.arange(vocab), (15, 1)), axis=1) / vocab * 20).astype(np.float32)
    logits = logits.reshape(3, 5, vocab)
    logits[1] = np.sort(logits[1])  # each better than all before it
    logprobs, tokens = drafts(tmp_path / "drafts.onnx", library, logits)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    assert np.array_equal(tokens, np.argsort(-logits, axis=-1)[..., :TOP_K])
    assert np.abs(logprobs - np.take_along_axis(exact, tokens, -1)).max() < 2e-6
    stock = drafts(tmp_path / "drafts.onnx", None, logits)
    assert np.array_equal(stock[1], tokens) and np.abs(stock[0] - logprobs).max() < 2e-6


def test_drafts_of_unusual_logits(library: Library, path: str, tmp_path: Path) -> None:
    """Of equal logits the first; large and infinite ones; what is no number stays in its row."""
    logits = np.zeros((6, 100), np.float32)
    logits[0, 40:60] = 3
    logits[1] = -np.inf
    logits[1, [70, 3]] = 1e30, 2e30
    logits[2, 5] = np.nan
    logits[3, 5] = -np.nan
    logits[4] = -np.inf
    logits[5] = np.arange(100)
    logprobs, tokens = drafts(tmp_path / "drafts.onnx", library, logits)
    assert np.array_equal(tokens[0], np.arange(40, 50)) and np.array_equal(tokens[5], np.arange(99, 89, -1))
    assert np.array_equal(tokens[1, :2], [3, 70]) and np.array_equal(logprobs[1, :2], [0, np.float32(1e30) - 2e30])
    assert np.isnan(logprobs[2:5]).all() and np.isfinite(logprobs[[0, 5]]).all()
    assert ((tokens >= 0) & (tokens < 100)).all()
    assert all(len(set(row)) == TOP_K for row in tokens.tolist())


def test_scales_of_another_type_are_refused(library: Library, tmp_path: Path) -> None:
    """As many float16 numbers have half of the bytes that are read."""
    file = tmp_path / "products.onnx"
    products(file, (64, 32), 2)
    model = onnx.load(file)
    model.ClearField("functions")  # whose body takes no float16 either
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 2:
            halved = onnx.numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(halved, weight.name))
    onnx.save(model, file)
    with pytest.raises(Exception, match="packed has to be uint8 and scale float"):
        opened(file, library)


@pytest.mark.parametrize("vocab", VOCABS)
def test_the_best_token(library: Library, path: str, tmp_path: Path, vocab: int) -> None:
    """Of equal logits the first, and both zeros are equal; one row and several, anywhere in them."""
    file, rng = tmp_path / "best.onnx", np.random.default_rng(vocab)
    with Emitter(file, OPSET) as emitter:
        emitter.call(BEST_TOKEN, emitter.input("logits", FLOAT, ["rows", "vocab"]), name="argmax")
        emitter.output("argmax", INT64, ["rows"])
        emitter.save("best")
    session = opened(file, library)
    assert operators(file) == ["BestToken"]
    logits = rng.integers(-40, 40, (300, vocab)).astype(np.float32)  # many equal ones
    logits[:2] = -np.abs(logits[:2]) * np.float32([[0], [1]])
    logits[1, vocab // 2 :] = 0
    logits[2] = -np.inf
    logits[3, -1], logits[4, -1] = np.inf, 100
    for rows in (logits, logits[:1], logits[3:4], logits[:0]):
        [argmax] = session.run(["argmax"], {"logits": rows})
        assert np.array_equal(argmax, rows.argmax(-1))
    assert np.array_equal(opened(file, None).run(["argmax"], {"logits": logits})[0], logits.argmax(-1))


def test_more_drafts_than_tokens_are_refused(library: Library, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"TopDrafts: top_k is 10, logits are \[2, 9\]: it has to be from 1 to"):
        drafts(tmp_path / "drafts.onnx", library, np.zeros((2, 9), np.float32))


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Hidden states [tokens, hidden] of the demo model's answers, and its heads' log-probabilities, both in fp32."""
    config = ModelConfig.read(CHECKPOINT)
    reference = Reference(config, Checkpoint(CHECKPOINT, config).tensor)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    entries = load_entries()[:6]
    asked = [PREFIX + turn(TRAINED_PHRASINGS[0], entry.name) for entry in entries]
    texts = [chain(tokenizer.encode(f"{text} {e.answer}").ids) for text, e in zip(asked, entries, strict=True)]
    first = [len(tokenizer.encode(text).ids) - 1 for text in asked]
    hidden = np.concatenate([s[n:] for s, n in zip(reference.hidden_states(texts), first, strict=True)])
    return hidden, log_softmax(reference.head_logits(MedusaHeads.read(HEADS, config), hidden))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_demo_heads_draft_alike_with_native_and_stock_operators_and_in_fp32(
    library: Library, demo_artifact: Callable[[str], Path], answers: tuple[np.ndarray, np.ndarray], precision: str
) -> None:
    """In 4 bits, heads that are sure in fp32 are so of the same token. The first ones draft alone as in all."""
    hidden, exact = answers
    file = demo_artifact(precision) / "heads.onnx"
    sessions = [graphs.load(file, library=which) for which in (library, None)]
    feed = {"hidden": hidden, "depth": np.array([exact.shape[1]])}
    (logprobs, tokens), stock = (session.run(list(RESULTS), feed) for session in sessions)
    for session, whole in zip(sessions, ((logprobs, tokens), stock), strict=True):
        for depth in (1, exact.shape[1] - 1):
            few = session.run(list(RESULTS), feed | {"depth": np.array([depth])})
            assert all(np.array_equal(part, both[:, :depth]) for part, both in zip(few, whole, strict=True))
    assert np.array_equal(tokens[..., 0], stock[1][..., 0])
    assert np.abs(logprobs - stock[0]).max() < (1e-5 if precision == "fp32" else 0.05)
    if precision == "fp32":
        assert np.abs(logprobs - np.take_along_axis(exact, tokens, -1)).max() < 1e-4
    sure = exact.max(-1) > np.log(0.5)
    assert sure.sum() > 300
    assert (tokens[..., 0] == exact.argmax(-1))[sure].mean() > 0.95
