"""Rows that outlive their sequences: prompts that begin alike are computed once, and nothing else changes."""

import random
from typing import Any

import pytest

from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams
from runtime.scheduler import LEAST_SHARED
from runtime.sequence import Sequence
from tests.fake import VOCAB, FakeSession, fake_cost, fake_manifest, fake_tokenizer
from tests.unit.test_engine import RATE, expected

LONG = list(range(3, 63))  # a prompt of 60 tokens


def engine_of(session: FakeSession | None = None, **config: Any) -> Engine:
    values = {"rows": 4, "chunk": 64, "queue": 1000, "kv_memory": 1 << 26} | config
    session = session or FakeSession(rows=values["rows"], eos_rate=RATE)
    return Engine(session, fake_tokenizer(), EngineConfig(**values), fake_cost())


def check(engine: Engine, session: FakeSession) -> None:
    """Every row in use or held has exactly the tokens that it is said to have."""
    engine.check_integrity()
    for s in engine._scheduler.running:
        assert session.cache[s.row, : s.length].tolist() == (s.prompt + s.tokens)[: s.length]
    for row, held in engine._scheduler.held.items():
        assert session.cache[row, : len(held.tokens)].tolist() == held.tokens
    used = {s.row for s in engine._scheduler.running} | engine._scheduler.held.keys()
    for row in range(engine.config.rows):
        assert row in used or (session.cache[row] == -1).all(), "a row that nobody has was not released"


def finish(engine: Engine, *sequences: Sequence) -> None:
    while any(s.finish_reason is None for s in sequences):
        engine.step()
        check(engine, engine.session)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [*range(30), *(pytest.param(s, marks=pytest.mark.slow) for s in range(30, 600))])
def test_random_dialogues(seed: int) -> None:
    """Dialogues go on, fork, are aborted and fail, with few rows and little memory: all say what they should."""
    rng = random.Random(seed)
    session = FakeSession(rows=4, eos_rate=RATE, seed=seed, luck=rng.random())
    memory = rng.choice([280_000, 500_000, 1 << 26])
    reuse = rng.random() < 0.9
    engine = engine_of(session, chunk=rng.choice([4, 20, 64]), kv_memory=memory, prefix_reuse=reuse)
    system = [rng.randrange(3, VOCAB) for _ in range(rng.choice([0, 20, 40]))]
    texts: list[list[int]] = [system]  # that a prompt may begin with
    live: list[Sequence] = []
    everyone: list[Sequence] = []
    for _ in range(120):
        if rng.random() < 0.35:
            begin = rng.choice(texts)
            begin = begin[: rng.randint(0, len(begin))] if rng.random() < 0.2 else begin
            prompt = (begin + [rng.randrange(3, VOCAB) for _ in range(rng.choice([1, 1, 5, 20]))])[:120]
            params = SamplingParams(
                max_tokens=rng.choice([1, 5, 30]),
                temperature=rng.choice([0.0, 0.7]),
                seed=rng.randrange(100),
                presence_penalty=rng.choice([0.0, 0.0, 1.0]),
                speculation=rng.choice(["off", "auto", 4, 16]),
            )
            for _ in range(rng.choice([1, 1, 1, 3])):
                live.append(engine.add(prompt, params))
                everyone.append(live[-1])
        if live and rng.random() < 0.05:
            engine.abort(rng.choice(live))
        if rng.random() < 0.02:
            session.fail_next = rng.choice(["run", "heads", "copy", "commit", "nan"])
        engine.step()
        check(engine, session)
        texts += [s.prompt + s.tokens for s in live if s.finish_reason in ("stop", "length")]
        live = [s for s in live if s.finish_reason is None]
    session.fail_next = None
    finish(engine, *everyone)
    for s in everyone:
        if not s.params.presence_penalty:
            whole = expected(s.prompt, s.params)
            assert s.tokens == (whole if s.finish_reason in ("stop", "length") else whole[: len(s.tokens)])
    stats = engine.stats()
    assert stats["rows_in_use"] == stats["kv_bytes_reserved"] == 0
    assert reuse or stats["reused"] == stats["rows_held"] == 0
    engine.forget()
    assert (session.cache == -1).all() and engine.stats()["rows_held"] == engine.stats()["kv_bytes_held"] == 0


def test_dialogues_at_random_do_reuse() -> None:
    """The test above would not notice if nothing were ever reused."""
    engine = engine_of()
    prompt = LONG[:20]
    for turn in range(4):
        [s] = engine.generate([prompt], SamplingParams(max_tokens=10, ignore_eos=True))
        assert (s.cached > 0) == (turn > 0)
        prompt = prompt + s.tokens + [90, 91, 92]


@pytest.mark.parametrize("speculation", ["off", 16])
def test_the_next_turn_computes_only_what_is_new(speculation: object) -> None:
    engine = engine_of()
    params = SamplingParams(max_tokens=20, ignore_eos=True, speculation=speculation)  # type: ignore[arg-type]
    [first] = engine.generate([LONG], params)
    before = engine.stats()
    [second] = engine.generate([LONG + first.tokens + [90, 91]], params)
    new = engine.stats()["prefilled"] - before["prefilled"]
    assert second.cached + new == len(second.prompt)
    if speculation == "off":
        assert new == 4, "what a last step computed is not committed, nor is what it emitted"
    assert second.cached >= len(LONG) and engine.stats()["reused"] == second.cached
    assert engine.stats()["rows_held"] == 1, "the row was taken over, not copied"


def test_what_is_longer_than_a_prompt_is_cut() -> None:
    """One token is computed in any case: the first of the answer comes from it."""
    engine = engine_of()
    for prompt, cached in ((LONG, 0), (LONG, 59), (LONG[:30], 29), ([*LONG[:30], 90], 30), (LONG[:LEAST_SHARED], 0)):
        [s] = engine.generate([prompt], SamplingParams(max_tokens=1))
        assert s.cached == cached and s.tokens == expected(prompt, SamplingParams(max_tokens=1))


def test_a_fork_leaves_the_longer_text_where_it_was() -> None:
    """As long as there is a row for it: whoever asks an old question anew does not spoil the dialogue."""
    for rows, cached in ((1, 30), (2, 59)):
        session = FakeSession(rows=rows, eos_rate=0)
        engine = engine_of(session, rows=rows)
        for prompt in (LONG, LONG[:30] + [90, 91]):
            engine.generate([prompt], SamplingParams(max_tokens=1))
            check(engine, session)
        [s] = engine.generate([LONG], SamplingParams(max_tokens=1))
        assert s.cached == cached


def test_choices_share_their_prompt() -> None:
    session = FakeSession(rows=4, eos_rate=0)
    engine = engine_of(session)
    choices = [
        engine.add(LONG, SamplingParams(max_tokens=9, temperature=1.0, seed=i, ignore_eos=True)) for i in range(4)
    ]
    finish(engine, *choices)
    assert [s.cached for s in choices] == [0, 59, 59, 59] and engine.stats()["prefilled"] == 60 + 3
    assert len({tuple(s.tokens) for s in choices}) == 4


def test_prompts_that_have_little_in_common_do_not_wait_for_each_other() -> None:
    engine = engine_of(FakeSession(rows=2, eos_rate=0), rows=2)
    alike = [engine.add([*LONG[: LEAST_SHARED - 1], 90 + i], SamplingParams(max_tokens=9)) for i in range(2)]
    engine.step()
    assert [len(s.tokens) for s in alike] == [1, 1]


def test_a_running_sequence_is_shared_too() -> None:
    engine = engine_of(FakeSession(rows=2, eos_rate=0), rows=2)
    first = engine.add(LONG, SamplingParams(max_tokens=30, speculation="off"))
    for _ in range(5):
        engine.step()
    second = engine.add(LONG + first.tokens[:3] + [95], SamplingParams(max_tokens=5))
    finish(engine, first, second)
    assert second.cached == 63


def test_the_least_recently_used_gives_way_to_new_rows() -> None:
    """Also where the row in the way is a newer one: it moves into the older one's place."""
    session = FakeSession(rows=3, eos_rate=0)
    engine = engine_of(session, rows=3)
    prompts = [[i] * 20 + [60] for i in range(10, 13)]
    params = SamplingParams(max_tokens=1)
    held = lambda: sorted(h.tokens[0] for h in engine._scheduler.held.values())  # noqa: E731
    for prompt in prompts:
        engine.generate([prompt], params)
        check(engine, session)
    assert held() == [10, 11, 12]
    engine.generate([[10] * 20 + [61]], params)  # used again
    engine.generate([[13] * 20], params)
    check(engine, session)
    assert held() == [10, 12, 13]


def test_the_least_recently_used_gives_way_to_memory() -> None:
    manifest = fake_manifest()
    session = FakeSession(manifest, rows=4, eos_rate=0)
    engine = engine_of(session, kv_memory=200 * manifest.kv_bytes)
    for i in (10, 11):
        engine.generate([[i] * 60], SamplingParams(max_tokens=1, speculation="off"))
    assert engine.stats()["rows_held"] == 2
    engine.generate([[12] * 60], SamplingParams(max_tokens=40, speculation="off"))
    assert sorted(h.tokens[0] for h in engine._scheduler.held.values()) == [11, 12]
    engine.generate([[13] * 100], SamplingParams(max_tokens=20, ignore_eos=True, speculation=60))
    check(engine, session)
    assert [h.tokens[0] for h in engine._scheduler.held.values()] == [13]


def test_what_another_row_holds_already_is_not_held_twice() -> None:
    engine = engine_of(FakeSession(rows=4, eos_rate=0))
    same = [engine.add(LONG, SamplingParams(max_tokens=9, speculation="off")) for _ in range(3)]
    finish(engine, *same)
    assert engine.stats()["rows_held"] == 1


@pytest.mark.parametrize("ordered", [False, True])
def test_only_what_is_bit_equal_is_kept(ordered: bool) -> None:
    """From the first accepted path with gaps on, keys and values may differ in their last bits, unless ordered."""
    session = FakeSession(rows=1, eos_rate=0, luck=0.3, seed=5)
    session.ordered = ordered
    engine = engine_of(session, rows=1)
    s = engine.add(LONG, SamplingParams(max_tokens=60, speculation=32))
    paths: list[tuple[int, list[int]]] = []
    commit = engine.session.commit

    def watched(row: int, length: int, path: list[int], last: int | None) -> None:
        paths.append((length, path))
        commit(row, length, path, last)

    engine.session.commit = watched  # type: ignore[method-assign]
    finish(engine, s)
    gaps = [length + i for length, path in paths for i, slot in enumerate(path) if slot != i]
    [held] = engine._scheduler.held.values()
    assert gaps and len(held.tokens) == (s.length if ordered else gaps[0])


def test_a_failed_step_takes_what_is_held_with_it() -> None:
    session = FakeSession(rows=2, eos_rate=0)
    engine = engine_of(session, rows=2)
    engine.generate([LONG], SamplingParams(max_tokens=2))
    session.fail_next = "run"
    s = engine.add([5] * 20, SamplingParams(max_tokens=2))
    engine.step()
    assert s.finish_reason == "error" and (session.cache == -1).all() and engine.stats()["rows_held"] == 0
    check(engine, session)


def test_a_row_whose_logits_were_no_numbers_is_not_held() -> None:
    """Its keys and values may be none either."""
    session = FakeSession(rows=2, eos_rate=0)
    engine = engine_of(session, rows=2)
    sick = engine.add(LONG, SamplingParams(max_tokens=9, speculation="off"))
    engine.step()
    session.fail_next = "nan"
    finish(engine, sick)
    assert sick.finish_reason == "error" and engine.stats()["rows_held"] == 0


def test_it_can_be_turned_off() -> None:
    session = FakeSession(rows=2, eos_rate=0)
    engine = engine_of(session, rows=2, prefix_reuse=False)
    first, second = engine.generate([LONG, LONG], SamplingParams(max_tokens=2))
    assert first.cached == second.cached == 0 and engine.stats()["prefilled"] == 120 and (session.cache == -1).all()
