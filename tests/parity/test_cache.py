"""The cache stays in place: ONNX Runtime writes the new tokens into our memory, and nothing else."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.parity.paths import ROWS, Model, random_tree


@pytest.fixture(scope="module")
def model(demo_artifact: Callable[[str], Path]) -> Model:
    return Model.load(demo_artifact("int8"))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_only_the_new_tokens_of_a_row_are_written(
    demo_artifact: Callable[[str], Path], precision: str, operators: str
) -> None:
    """Aliasing is a property of this version of ONNX Runtime: were it to copy, nothing would arrive here."""
    model = Model.load(demo_artifact(precision), operators=operators)
    rng = np.random.default_rng(0)
    vocab = model.session.manifest.vocab
    model.session.cache[:] = rng.standard_normal(model.session.cache.shape, np.float32)
    before = model.session.cache.copy()
    past = [5, 60, 0, 700, 31]
    trees = [random_tree(rng, [3, 4], n, vocab, False)[0] for n in (64, 9, 2, 31, 16)]
    model.run([(n, tree) if n else (0, [7, 8, 9]) for n, tree in zip(past, trees, strict=True)])
    for row, n in enumerate(past):
        new = len(trees[row].tokens) if n else 3
        assert np.array_equal(model.session.cache[:, row, :, :n], before[:, row, :, :n])
        assert (
            not np.isclose(model.session.cache[:, row, :, n : n + new], before[:, row, :, n : n + new])
            .all(axis=-1)
            .any()
        )
        assert np.array_equal(model.session.cache[:, row, :, n + new :], before[:, row, :, n + new :])
    assert np.array_equal(model.session.cache[:, 5:], before[:, 5:])


def test_a_moved_row_continues_as_before(model: Model) -> None:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, model.session.manifest.vocab, 40).tolist() for _ in range(3)]
    model.prefill(prompts)
    [*_, want] = model.run([(40, [5, 6])] * 3)
    draft = copy.deepcopy(model.session.heads([2]))
    model.session.copy(2, 0, 40)
    model.session.release(2)
    [got] = model.run([(40, [5, 6])])
    assert np.array_equal(got, want)
    moved = model.session.heads([0])
    assert np.array_equal(moved.tokens, draft.tokens) and np.array_equal(moved.logprobs, draft.logprobs)


def test_a_released_row_gives_its_memory_back(model: Model) -> None:
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1])  # noqa: E731
    model.session.cache[:] = 1
    full = resident()
    for row in range(ROWS):
        model.session.release(row)
    pages = model.session.cache.nbytes // 4096
    assert full - resident() > 0.9 * pages
    assert not model.session.cache.any()
