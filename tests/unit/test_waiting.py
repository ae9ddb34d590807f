"""Priorities: the most urgent first, ties by arrival, nobody who runs is disturbed, and nobody kept out for good."""

import random
from itertools import pairwise

import pytest

from runtime.engine import Engine
from runtime.errors import ParameterError
from runtime.params import EngineConfig, SamplingParams
from runtime.sequence import Sequence
from runtime.waiting import EVERY
from tests.fake import FakeSession, fake_cost, fake_manifest, fake_tokenizer


def engine_of(rows: int) -> Engine:
    config = EngineConfig(rows=rows, chunk=8, queue=10_000, kv_memory=1 << 26)
    return Engine(FakeSession(fake_manifest(), rows), fake_tokenizer(), config, fake_cost())


def asked(engine: Engine, priority: int, tokens: int = 3) -> Sequence:
    prompt = [5, 6, 7, 3 + engine._requests._next_id % 90]
    params = SamplingParams(tokens, ignore_eos=True, speculation="off", priority=priority)
    return engine.add(prompt, params)


def order(engine: Engine, sequences: list[Sequence]) -> list[int]:
    """Which of the sequences were let in one after the other, in a single row."""
    started: list[int] = []
    while engine.has_work:
        engine.step()
        engine.check_integrity()
        started += [i for i, s in enumerate(sequences) if s.started is not None and i not in started]
    return started


def test_the_lowest_number_goes_first_and_ties_by_arrival() -> None:
    engine = engine_of(1)
    priorities = [0, 5, 0, -3, 5, -3]
    assert order(engine, [asked(engine, p) for p in priorities]) == [3, 5, 0, 2, 1, 4]


def test_without_priorities_who_came_first_goes_first() -> None:
    engine = engine_of(1)
    assert order(engine, [asked(engine, 0) for _ in range(40)]) == list(range(40))


def test_who_runs_is_not_disturbed() -> None:
    """The same tokens, from one step to the next, whoever comes."""
    alone, engine = engine_of(2), engine_of(2)
    want, got = [[asked(e, 9, 30) for _ in range(2)] for e in (alone, engine)]
    for _ in range(3):
        engine.step()
        alone.step()
    urgent = [asked(engine, -9) for _ in range(4)]
    while any(s.finish_reason is None for s in got):
        lengths = [len(s.tokens) for s in got]
        engine.step()
        assert all(len(s.tokens) == n + 1 for s, n in zip(got, lengths, strict=True) if s.prefilling is False)
        assert all(s.started is None for s in urgent) or any(s.finish_reason for s in got)
    while alone.has_work:
        alone.step()
    assert [s.tokens for s in got] == [s.tokens for s in want]


def test_nobody_is_kept_out_for_good() -> None:
    """However many urgent ones come, who waits longest is let in after EVERY - 1 others."""
    engine = engine_of(1)
    urgent = [asked(engine, -1) for _ in range(3)]
    patient = [asked(engine, 1000) for _ in range(3)]
    passed: list[int] = []
    while len(passed) < 3:
        engine.step()
        urgent += [asked(engine, -1) for _ in range(6 - len(engine._scheduler.waiting))]
        if patient[len(passed)].started is not None:
            passed.append(sum(s.started is not None for s in urgent))
    assert [b - a for a, b in pairwise(passed)] == [EVERY - 1] * 2
    assert all(s.started is None for s in patient[len(passed) :])


def test_aborts_leave_the_others_in_order() -> None:
    rng, engine = random.Random(2), engine_of(1)
    sequences = [asked(engine, rng.randrange(-2, 3)) for _ in range(60)]
    gone = set(rng.sample(range(60), 20))
    for i in gone:
        assert engine.abort(sequences[i]) is not None
    got = [i for i in order(engine, sequences) if i not in gone]
    assert len(got) == 40
    for a, b in pairwise(got):  # but for the one in EVERY
        earlier = min(i for i in range(60) if i in got[got.index(a) :])
        assert (sequences[a].params.priority, a) < (sequences[b].params.priority, b) or earlier in (a, b)


@pytest.mark.parametrize("priority", [1.0, True, 1001, -1001, 10**30])
def test_what_is_no_priority_is_refused(priority: object) -> None:
    with pytest.raises(ParameterError, match="priority is .*: it has to be a whole number from -1000 to 1000"):
        SamplingParams(priority=priority)  # type: ignore[arg-type]
