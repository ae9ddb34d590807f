"""The padded session's own: memory that stays where it is, runs of several shapes, what crosses to and from a device.

Rows that are moved and slots that are written are, of the ragged form, in test_cache.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from runtime.device import ALIGN, Block
from runtime.errors import StepError
from runtime.manifest import BEST
from runtime.padded import LEAST_PATH, PaddedSession
from runtime.padding import shapes
from runtime.params import MAX_NODES, SamplingParams
from runtime.providers import DEVICES
from runtime.tree import lone
from tests.parity.paths import ROWS, Model, random_tree
from tests.parity.promises import PADDED, same
from tests.parity.questions import answer, engine_of, prompts

LENGTHS = (5, 60, 1, 300, 31)


@pytest.fixture(scope="module", params=PADDED)
def model(request: pytest.FixtureRequest, demo_artifact: Callable[[str], Path]) -> Model:
    return Model.load(demo_artifact(request.param))


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
        assert not (after[:, row, :, fresh] == before[:, row, :, fresh]).all(axis=(-2, -1)).any(), (
            "the cache was copied"
        )
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
    assert all(same(session, a, b) for a, b in zip(*found, strict=True))


def test_a_moved_row_continues_as_before(model: Model) -> None:
    prefilled(model, 4)
    want = model.run([(n, [5, 6]) for n in LENGTHS])[3]
    draft = session_of(model).heads([3], session_of(model).manifest.medusa_heads)
    before = caches(model)
    model.session.copy(3, 0, 300)
    after = caches(model)
    assert np.array_equal(after[:, 0, :, :300], before[:, 3, :, :300])
    assert np.array_equal(after[:, 0, :, 300:], before[:, 0, :, 300:]), "no more than the tokens asked for"
    assert np.array_equal(after[:, 1:], before[:, 1:])
    model.session.release(3)
    [got] = model.run([(300, [5, 6])])
    assert same(model.session, got, want)
    moved = session_of(model).heads([0], session_of(model).manifest.medusa_heads)
    assert np.array_equal(moved.tokens, draft.tokens) and np.array_equal(moved.logprobs, draft.logprobs)


def test_a_path_with_gaps_moves_its_nodes_and_nothing_else(model: Model) -> None:
    prefilled(model, 5)
    rng = np.random.default_rng(6)
    trees = [random_tree(rng, [3, 4, 5, 6], 20, session_of(model).manifest.vocab, False) for _ in LENGTHS]
    model.run([(length, tree) for length, (tree, _) in zip(LENGTHS, trees, strict=True)])
    before = caches(model)
    for row in (1, 3):
        model.session.commit(row, LENGTHS[row], trees[row][1], None)
    session_of(model).heads(
        [0], session_of(model).manifest.medusa_heads
    )  # the next thing that needs what was committed
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
    assert same(model.session, got[0], logits[-1])


PLAIN: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.05, "top_p": 0.99},
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2},
)


@pytest.mark.parametrize("precision", PADDED)
def test_draws_from_the_best_logits_are_draws_from_all_of_them(
    demo_artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The same texts where only whole rows cross over; else none does for the argmax, or for a narrow nucleus."""
    artifact, asked = demo_artifact(precision), prompts(12, seed=5)
    fetched: list[int] = []
    fetch = PaddedSession._fetch
    monkeypatch.setattr(PaddedSession, "_fetch", lambda self, slots: fetched.append(len(slots)) or fetch(self, slots))

    def said(settings: Sequence[dict[str, Any]]) -> tuple[list[list[int]], int]:
        """The texts, and how often rows were fetched for them."""
        fetched.clear()
        params = [SamplingParams(24, seed=i, speculation=8, **settings[i % len(settings)]) for i in range(len(asked))]
        return answer(engine_of(artifact, 8), asked, params), len(fetched)

    texts, few = said(PLAIN)
    assert said(PLAIN[:2])[1] == 0 and said([{}])[1] == 0
    monkeypatch.setattr(PaddedSession, "_bests", lambda self, temperature: {})
    whole, many = said(PLAIN)
    assert texts == whole
    assert 0 < few < 0.7 * many, "those that nothing cuts, or that a penalty changes, need whole rows"


class Bus:
    """What a session carries between host and device, in bytes: told by the calls that do it, whatever the provider."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
        self.there = self.back = 0
        session = session_of(model)
        write, read, call, change = Block.write, Block.read, session._call, session._change

        def writes(block: Block, content: np.ndarray) -> None:
            self.there += content.nbytes
            write(block, content)

        def reads(block: Block) -> np.ndarray:
            self.back += block.size
            return read(block)

        def calls(graph: Any, given: dict[str, np.ndarray], *rest: Any) -> list[np.ndarray]:
            self.there += sum(array.nbytes for array in given.values())
            found = call(graph, given, *rest)
            self.back += sum(array.nbytes for array in found)
            return found

        def changes(name: str, rows: int, given: dict[str, np.ndarray], *rest: Any) -> None:
            self.there += sum(array.nbytes for array in given.values())
            change(name, rows, given, *rest)

        monkeypatch.setattr(Block, "write", writes)
        monkeypatch.setattr(Block, "read", reads)
        monkeypatch.setattr(session, "_call", calls)
        monkeypatch.setattr(session, "_change", changes)

    def taken(self) -> tuple[int, int]:
        """Bytes there and back since the last time."""
        found, self.there, self.back = (self.there, self.back), 0, 0
        return found


def test_what_crosses_in_a_step(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs there; back an id and its logit for each node, and for those that a token is drawn at the best 256 logits
    with their ids and their weight: never a row of logits, a hidden state, a key or a value that nobody asked for."""
    session, m = session_of(model), session_of(model).manifest
    prefilled(model, 9)
    session.heads([0], m.medusa_heads)
    rng = np.random.default_rng(9)
    trees = [random_tree(rng, rng.integers(3, m.vocab, 4).tolist(), 16, m.vocab, False) for _ in LENGTHS]
    works = [(length, tree) for length, (tree, _) in zip(LENGTHS, trees, strict=True)]
    monkeypatch.setattr(session, "_device", replace(session._device, free=10_000))  # one run for all rows
    bus = Bus(monkeypatch, model)
    batch, _ = model.packer.pack(works)
    session.run(batch)
    rows, nodes = 8, 16  # five rows of sixteen nodes, in their bucket
    inputs = sum(
        -(-int(np.prod(shape)) * np.dtype(kind).itemsize // ALIGN) * ALIGN
        for _, kind, shape in shapes(rows, nodes, rows * nodes)
    )
    answers = 12 * session._room  # an int64 and a float32
    assert bus.taken() == (inputs, answers)

    drawn = np.zeros(len(batch.wanted))
    drawn[[3, 20, 50]] = 0.8
    result = session.run(replace(batch, temperature=drawn))
    each = min(BEST, m.vocab) * (8 + 4) + 8
    assert bus.taken() == (inputs + 3 * (8 + 8), answers + 3 * each) and sorted(result.bests) == [3, 20, 50]

    row = result.row(20)
    assert bus.taken() == (8, 4 * m.vocab) and row.shape == (m.vocab,), "a whole row, for the one node asked for"

    for at, (length, (_, slots)) in enumerate(zip(LENGTHS, trees, strict=True)):
        session.commit(at, length, slots, 16 * at)
    assert bus.taken() == (0, 0), "what is accepted moves before it is needed"
    draft = session.heads(list(range(5)), m.medusa_heads)
    there, back = bus.taken()
    assert there == 8 * (8 + 8 * LEAST_PATH) + ROWS * 9 + 8 * 8, "lengths, slots; which states; which rows draft"
    assert back == 8 * (draft.tokens[0].size * (8 + 4))


def test_a_captured_graph_has_a_shape_and_an_address_of_its_own(
    demo_artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: one capture for each bucket, used again; none for a prompt's chunk, whose address is its row's."""
    model = Model.load(demo_artifact("padded-fp32"), on="cpu")
    session = session_of(model)
    ids: list[tuple[str, str]] = []

    class Told(ort.RunOptions):
        def add_run_config_entry(self, key: str, value: str) -> None:
            ids.append((key, value))

    monkeypatch.setattr(ort, "RunOptions", Told)
    monkeypatch.setattr(session, "_device", replace(DEVICES["cuda"], name="cpu"))
    for _ in range(2):
        model.run([(0, lone(5))] * 3)  # 4 rows of 2
        model.run([(0, lone(5))] * 8)  # 8 rows of 2
        model.run([(0, [5] * 20)] * 8)  # 8 rows of 32
        model.run([(0, lone(5)), (0, [5] * 200)])  # 2 rows of 2; row 1 alone, 256
        model.run([(0, lone(5)), (0, lone(5)), (0, [5] * 200)])  # 4 rows of 2 again; row 2 alone
    assert ids == [("gpu_graph_id", number) for number in ("1", "2", "3", "4", "-1", "-1")]
    narrow = {run: kept for (run, _), kept in session._shapes.items() if run.narrow}
    assert {(run.first, run.rows, run.nodes) for run in narrow} == {(0, 4, 2), (0, 8, 2), (0, 8, 32), (0, 2, 2)}
    assert len({kept.block.place(0, "int64", (1,)).address for kept in narrow.values()}) == 4
