"""Bit-equal results: batch against single, chunked against whole prefill, and trees: with stock operators those whose
accepted path lies first, with native ones all, and without the rule of two nodes a row. On a GPU they are near."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.tree import lone
from tests.parity.paths import ROWS, Model, random_tree
from tests.parity.promises import PADDED, same

PRECISIONS = ("fp32", "int8", "int8-block32", "int4", *PADDED)


@pytest.fixture(scope="module", params=PRECISIONS)
def model(request: pytest.FixtureRequest, demo_artifact: Callable[[str], Path], operators: str) -> Model:
    if operators == "native" and request.param.startswith("padded"):
        pytest.skip("native operators are the ragged form's")
    return Model.load(demo_artifact(request.param), operators == "stock", operators)


@pytest.fixture(scope="module")
def texts(model: Model) -> list[tuple[list[int], list[int], np.ndarray]]:
    """Prompts, continuations, and the logits of running each alone: one chunk, then token by token."""
    rng = np.random.default_rng(0)
    vocab = model.session.manifest.vocab
    pairs = [
        (rng.integers(3, vocab, n).tolist(), rng.integers(3, vocab, 7).tolist()) for n in (1, 2, 3, 11, 32, 63, 64, 200)
    ]
    return [(prompt, after, model.plain(prompt, after)) for prompt, after in pairs]


@pytest.mark.parametrize("chunk", [1, 2, 3, 16, 50])
def test_chunked_prefill(model: Model, texts: list, chunk: int) -> None:
    for prompt, _, want in texts:
        for at in range(0, len(prompt), chunk):
            [got] = model.run([(at, prompt[at : at + chunk])])
        assert same(model.session, got[0], want[0])


def test_batch_against_single(model: Model, texts: list) -> None:
    got = model.prefill([prompt for prompt, _, _ in texts])
    assert all(same(model.session, g, want[0]) for g, (_, _, want) in zip(got, texts, strict=True))
    for i in range(7):
        rows = model.run([(len(prompt) + i, lone(after[i])) for prompt, after, _ in texts])
        assert all(same(model.session, row[0], want[i + 1]) for row, (_, _, want) in zip(rows, texts, strict=True))
        for row, (prompt, _, _) in enumerate(texts):
            model.session.commit(row, len(prompt) + i, [0], row)


@pytest.mark.parametrize("seed", range(10))
def test_trees(model: Model, texts: list, operators: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocab = model.session.manifest.vocab
    model.prefill([prompt for prompt, _, _ in texts])
    sizes = rng.integers(7, 65, ROWS)
    trees = [
        random_tree(rng, after, n, vocab, path_first=operators == "stock")
        for (_, after, _), n in zip(texts, sizes, strict=True)
    ]
    together = model.run([(len(prompt), tree) for (prompt, _, _), (tree, _) in zip(texts, trees, strict=True)])
    for row, (_, slots), (_, _, want) in zip(together, trees, texts, strict=True):
        assert same(model.session, row[slots], want[1:])


def test_what_follows_an_accepted_path_with_gaps(model: Model, texts: list, operators: str) -> None:
    """Committed out of a tree, keys and values are those of plain decoding; a second tree finds them so."""
    if operators == "stock":
        pytest.skip("with stock operators a path with gaps is summed in another order")
    rng = np.random.default_rng(3)
    vocab = model.session.manifest.vocab
    model.prefill([prompt for prompt, _, _ in texts])
    for first, last in ((0, 4), (4, 7)):
        trees = [random_tree(rng, after[first:last], 30, vocab, path_first=False) for _, after, _ in texts]
        rows = model.run([(len(text[0]) + first, tree) for text, (tree, _) in zip(texts, trees, strict=True)])
        for row, (got, (_, slots), (prompt, _, want)) in enumerate(zip(rows, trees, texts, strict=True)):
            assert np.array_equal(got[slots], want[1 + first : 1 + last])
            model.session.commit(row, len(prompt) + first, slots, None)


def test_a_prefill_chunk_beside_trees(model: Model, texts: list) -> None:
    rng = np.random.default_rng(9)
    vocab = model.session.manifest.vocab
    model.prefill([prompt for prompt, _, _ in texts[:7]])
    trees = [random_tree(rng, after, 16, vocab, True)[0] for _, after, _ in texts[:7]]
    for alone in (0, 3, 6):  # rows of one node between others, and before the chunk
        trees[alone] = lone(texts[alone][1][0])
    works = [(len(prompt), tree) for (prompt, _, _), tree in zip(texts[:7], trees, strict=True)]
    rows = model.run([*works, (0, texts[7][0])])
    assert same(model.session, rows[7][0], texts[7][2][0])
    for row, (_, after, want) in zip(rows, texts[:7], strict=False):
        assert same(model.session, row[: len(after)], want[1:][: len(row)])
