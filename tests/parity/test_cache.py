"""The cache stays in place: ONNX Runtime writes the new tokens into our memory, and nothing else."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.batch import Packer
from runtime.manifest import Manifest
from runtime.native.library import Library
from runtime.ragged import RaggedSession
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
    draft = copy.deepcopy(model.session.heads([2], model.session.manifest.medusa_heads))
    model.session.copy(2, 0, 40)
    model.session.release(2)
    [got] = model.run([(40, [5, 6])])
    assert np.array_equal(got, want)
    moved = model.session.heads([0], model.session.manifest.medusa_heads)
    assert np.array_equal(moved.tokens, draft.tokens) and np.array_equal(moved.logprobs, draft.logprobs)


def test_a_released_row_gives_its_memory_back(demo_artifact: Callable[[str], Path], operators: str) -> None:
    directory = demo_artifact("int8")
    session = RaggedSession(directory, Manifest.read(directory), ROWS, operators=operators)
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1])  # noqa: E731
    session.cache[:] = 1
    full = resident()
    for row in range(ROWS):
        session.release(row)
    pages = session.cache.nbytes // 4096
    assert full - resident() > 0.9 * pages
    assert not session.cache.any()


def test_rows_that_fit_keep_their_memory_and_nothing_reads_what_is_left_in_them(
    demo_artifact: Callable[[str], Path], library: Library
) -> None:
    """A row that is not returned to the system brings its next sequence whatever the last one left: here no numbers."""
    directory = demo_artifact("int8")
    manifest = Manifest.read(directory)
    assert library, "stock operators read more than what is committed, and give all back"
    fits = ROWS * manifest.capacity * manifest.kv_bytes
    prompts = [[5, 6, 7] * 9, [8, 9] * 20]
    logits = []
    for memory, left in ((fits, np.nan), (fits - 1, 0.0)):
        session = RaggedSession(directory, manifest, ROWS, memory=memory)
        model = Model(session, Packer(True, manifest.even_tokens, manifest.context))
        session.cache[:] = np.nan
        for row in range(ROWS):
            session.release(row)
        assert np.array_equal(session.cache[:, 2], np.full_like(session.cache[:, 2], left), equal_nan=True)
        model.prefill(prompts)
        tree, _ = random_tree(np.random.default_rng(0), [3, 4], 9, manifest.vocab, False)
        logits.append(np.concatenate(model.run([(27, tree), (40, [5, 6])])))
    assert np.array_equal(*logits) and np.isfinite(logits[0]).all()
