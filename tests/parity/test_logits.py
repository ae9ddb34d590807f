"""Logits against transformers in fp32: prefill, chunked prefill, decode, and every path of a tree."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from runtime.tree import lone
from tests.conftest import CHECKPOINT
from tests.parity.paths import Model, random_tree
from tests.parity.promises import PADDED, SHARE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-4  # in logits, of fp32
Reference = Callable[[list[int]], np.ndarray]


@pytest.fixture(scope="module")
def reference() -> Reference:
    """[tokens, vocab] logits of transformers for a text."""
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()

    @cache
    def logits(ids: tuple[int, ...]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()

    return lambda ids: logits(tuple(ids))  # both graph forms are asked the same


@pytest.fixture(scope="module", params=["fp32", *PADDED])
def model(request: pytest.FixtureRequest, demo_artifact: Callable[[str], Path]) -> Model:
    return Model.load(demo_artifact(request.param))


def right(model: Model, got: np.ndarray, want: np.ndarray) -> bool:
    precision = model.session.manifest.precision
    limit = TOLERANCE if precision == "fp32" else SHARE[precision] * np.abs(want).max()
    return bool(np.abs(got - want).max() <= limit)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 300])
def test_prefill_in_chunks(model: Model, reference: Reference, chunk: int) -> None:
    rng = np.random.default_rng(chunk)
    ids = rng.integers(3, model.session.manifest.vocab, 300).tolist()
    want = reference(ids)
    for at in range(0, len(ids), chunk):
        part = ids[at : at + chunk]
        [got] = model.run([(at, part)])
        model.session.commit(0, at, list(range(len(part))), 0)
        assert right(model, got[0], want[at + len(part) - 1])


def test_decode_in_a_batch_of_uneven_rows(model: Model, reference: Reference) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, model.session.manifest.vocab, n + 12).tolist() for n in (1, 2, 5, 17, 64, 100, 301, 900)]
    want = [reference(text) for text in texts]
    got = model.prefill([text[:-12] for text in texts])
    assert all(right(model, g, w[-13]) for g, w in zip(got, want, strict=True))
    for i in range(12):
        past = [len(text) - 12 + i for text in texts]
        got = [row[0] for row in model.run([(n, lone(text[n])) for n, text in zip(past, texts, strict=True)])]
        assert all(right(model, g, w[n]) for g, w, n in zip(got, want, past, strict=True))
        for row, n in enumerate(past):
            model.session.commit(row, n, [0], row)


def test_every_path_of_a_tree_is_that_path_run_plainly(model: Model, reference: Reference) -> None:
    rng = np.random.default_rng(1)
    vocab = model.session.manifest.vocab
    prompts = [rng.integers(3, vocab, n).tolist() for n in (1, 9, 40, 333)]
    trees = [random_tree(rng, rng.integers(3, vocab, 4).tolist(), n, vocab, False)[0] for n in (5, 16, 33, 64)]
    model.prefill(prompts)
    rows = model.run([(len(prompt), tree) for prompt, tree in zip(prompts, trees, strict=True)])
    for prompt, tree, got in zip(prompts, trees, rows, strict=True):
        leaves = set(range(len(tree.tokens))) - set(tree.parents)
        for leaf in leaves:
            path = np.flatnonzero(tree.ancestors[leaf])
            want = reference(prompt + [tree.tokens[i] for i in path])[len(prompt) :]
            assert right(model, got[path], want)


def test_an_accepted_path_with_gaps_is_committed_in_order(model: Model, reference: Reference) -> None:
    rng = np.random.default_rng(2)
    vocab = model.session.manifest.vocab
    for _ in range(20):
        text = rng.integers(3, vocab, 30).tolist()
        model.prefill([text[:20]])
        tree, slots = random_tree(rng, text[20:26], 24, vocab, False)
        model.run([(20, tree)])
        model.session.commit(0, 20, slots, slots[-1])
        [got] = model.run([(26, lone(text[26]))])
        assert right(model, got[0], reference(text[:27])[-1])
