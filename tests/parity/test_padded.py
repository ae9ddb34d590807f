"""The padded session's own: memory that stays where it is, runs of several shapes, draws from the best logits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import StepError
from runtime.padded import PaddedSession
from runtime.params import MAX_NODES, SamplingParams
from runtime.tree import lone
from tests.parity.paths import ROWS, Model, random_tree
from tests.parity.questions import answer, engine_of, prompts

LENGTHS = (5, 60, 1, 300, 31)


@pytest.fixture(scope="module")
def model(demo_artifact: Callable[[str], Path]) -> Model:
    return Model.load(demo_artifact("padded-fp32"))


def session_of(model: Model) -> PaddedSession:
    assert isinstance(model.session, PaddedSession)
    return model.session


def caches(model: Model) -> np.ndarray:
    """[layers x (key, value), rows, kv_heads, capacity, bytes of a head]"""
    session = session_of(model)
    m = session.manifest
    return np.stack([session.cache(f"{part}_{i}") for i in range(m.layers) for part in ("key", "value")])


def prefilled(model: Model, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    texts = [rng.integers(3, model.session.manifest.vocab, n).tolist() for n in LENGTHS]
    model.prefill(texts)
    return texts


@pytest.mark.parametrize("free", [1, 10_000])
def test_what_is_committed_stays_whatever_shares_the_step(
    model: Model, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Trees, a lone root and a prompt's chunk, in runs apart and in one: rows' own slots alone are written."""
    session = session_of(model)
    monkeypatch.setattr(session, "_device", replace(session._device, free=free))
    prefilled(model, 0)
    rng = np.random.default_rng(free)
    vocab = session.manifest.vocab
    draw = lambda n: rng.integers(3, vocab, n).tolist()  # noqa: E731
    trees = [random_tree(rng, draw(2), n, vocab, False)[0] for n in (40, 9, 2)]
    works = [*zip(LENGTHS, trees, strict=False), (LENGTHS[3], draw(50)), (LENGTHS[4], lone(draw(1)[0]))]
    before = caches(model)
    model.run(works)
    after, capacity = caches(model), session.manifest.capacity
    for row, (length, work) in enumerate(works):
        count = len(work.tokens) if hasattr(work, "tokens") else len(work)
        assert np.array_equal(after[:, row, :, :length], before[:, row, :, :length])
        fresh = slice(length, length + count)
        assert not (after[:, row, :, fresh] == before[:, row, :, fresh]).all(axis=-1).any(), "the cache was copied"
        assert np.array_equal(after[:, row, :, length + MAX_NODES :], before[:, row, :, length + MAX_NODES :])
    idle = slice(0, capacity - MAX_NODES)
    assert np.array_equal(after[:, len(works) :, :, idle], before[:, len(works) :, :, idle])


def test_one_run_or_several_give_the_same_bits(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session, rng = session_of(model), np.random.default_rng(2)
    chunk = rng.integers(3, session.manifest.vocab, 64).tolist()
    found = []
    for free in (1, 10_000):
        monkeypatch.setattr(session, "_device", replace(session._device, free=free))
        prefilled(model, 3)
        found.append(model.run([(5, [6, 7]), (60, [8]), (1, chunk), (300, lone(9))]))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_a_moved_row_continues_as_before(model: Model) -> None:
    prefilled(model, 4)
    want = model.run([(n, [5, 6]) for n in LENGTHS])[3]
    draft = session_of(model).heads([3])
    before = caches(model)
    model.session.copy(3, 0, 300)
    after = caches(model)
    assert np.array_equal(after[:, 0, :, :300], before[:, 3, :, :300])
    assert np.array_equal(after[:, 0, :, 300:], before[:, 0, :, 300:]), "no more than the tokens asked for"
    assert np.array_equal(after[:, 1:], before[:, 1:])
    model.session.release(3)
    [got] = model.run([(300, [5, 6])])
    assert np.array_equal(got, want)
    moved = session_of(model).heads([0])
    assert np.array_equal(moved.tokens, draft.tokens) and np.array_equal(moved.logprobs, draft.logprobs)


def test_a_path_with_gaps_moves_its_nodes_and_nothing_else(model: Model) -> None:
    prefilled(model, 5)
    rng = np.random.default_rng(6)
    trees = [random_tree(rng, [3, 4, 5, 6], 20, session_of(model).manifest.vocab, False) for _ in LENGTHS]
    model.run([(length, tree) for length, (tree, _) in zip(LENGTHS, trees, strict=True)])
    before = caches(model)
    for row in (1, 3):
        model.session.commit(row, LENGTHS[row], trees[row][1], None)
    session_of(model).heads([0])  # the next thing that needs what was committed
    after = caches(model)
    for row, length in enumerate(LENGTHS):
        if row in (1, 3):
            slots = np.array(trees[row][1])
            assert slots.tolist() != [0, 1, 2, 3], "the path has to have gaps"
            assert np.array_equal(after[:, row, :, length : length + 4], before[:, row][:, :, length + slots])
            kept = [i for i in range(session_of(model).manifest.capacity) if not length <= i < length + 4]
            assert np.array_equal(after[:, row][:, :, kept], before[:, row][:, :, kept])
        else:
            assert np.array_equal(after[:, row], before[:, row])


def test_a_row_of_the_padding_cannot_touch_a_held_prefix(model: Model) -> None:
    """Five rows run as eight: of a finished row that is kept, nothing changes below its last 64 slots."""
    rng = np.random.default_rng(7)
    texts = [rng.integers(3, session_of(model).manifest.vocab, 40).tolist() for _ in range(ROWS)]
    model.prefill(texts)
    [*_, want] = model.run([(40, [5, 6])] * ROWS)
    for _ in range(3):
        model.run([(40, [8, 9])] * 5)
    [*_, got] = model.run([(40, [5, 6])] * ROWS)
    assert np.array_equal(got, want)


def test_a_write_past_a_rows_end_is_refused(model: Model) -> None:
    with pytest.raises(StepError, match="does not fit"):
        model.run([(model.session.manifest.capacity - 1, [5, 6, 7])])


def test_a_step_of_many_more_logits_than_usual(model: Model) -> None:
    """All logits of a long text: the outputs' memory grows, and what was bound to the old is bound again."""
    rng = np.random.default_rng(8)
    tokens = rng.integers(3, session_of(model).manifest.vocab, 2 * ROWS * MAX_NODES)[: model.session.manifest.context]
    n = np.arange(len(tokens))
    batch, _ = model.packer.pack([(0, tokens.tolist())])
    whole = model.session.run(batch.__class__(batch.tokens, batch.depth, batch.length, batch.count, batch.ancestors, n))
    logits = whole.logits
    assert np.array_equal(whole.argmax, logits.argmax(axis=1))
    [got] = model.run([(0, tokens.tolist())])
    assert np.array_equal(got[0], logits[-1])


PLAIN: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.05, "top_p": 0.99},
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2},
)


def test_draws_from_the_best_logits_are_draws_from_all_of_them(
    demo_artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same texts where only whole rows cross over; else none does for the argmax, or for a narrow nucleus."""
    asked = prompts(12, seed=5)
    params = [SamplingParams(24, seed=i, speculation=8, **PLAIN[i % len(PLAIN)]) for i in range(len(asked))]
    texts, fetched = [], []
    fetch = PaddedSession._fetch
    monkeypatch.setattr(PaddedSession, "_fetch", lambda self, slots: fetched.append(len(slots)) or fetch(self, slots))
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(PaddedSession, "_bests", lambda self, temperature: {})
        texts.append(answer(engine_of(demo_artifact("padded-fp32"), 8), asked, params))
        fetched.append(-1)
    assert texts[0] == texts[1]
    few, many = fetched.index(-1), len(fetched) - fetched.index(-1) - 2
    assert 0 < few < 0.7 * many, "those that nothing cuts, or that a penalty changes, need whole rows"
    fetched.clear()
    monkeypatch.setattr(PaddedSession, "_bests", _BESTS)
    cut = [SamplingParams(24, seed=i, speculation=8, **PLAIN[i % 2]) for i in range(len(asked))]
    answer(engine_of(demo_artifact("padded-fp32"), 8), asked, cut)
    greedy = [SamplingParams(24, speculation=8)] * len(asked)
    answer(engine_of(demo_artifact("padded-fp32"), 8), asked, greedy)
    assert not fetched


_BESTS = PaddedSession._bests
