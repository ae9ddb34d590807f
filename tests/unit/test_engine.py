"""The engine on a fake model: whatever arrives, leaves or fails, every answer is plain decoding's."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime import speculation
from runtime.budget import Choice
from runtime.continuations import Continuations
from runtime.cost import CostModel
from runtime.engine import Engine
from runtime.errors import ContextError, MemoryBudgetError, ParameterError, PromptError, QueueFullError
from runtime.lookup import Lookup
from runtime.pace import Pace
from runtime.params import EngineConfig, SamplingParams
from runtime.sampling import draw
from runtime.scheduler import Plan
from runtime.sequence import Output, Sequence
from runtime.session import Batch, HostResult, Result
from runtime.tree import Tree
from tests.fake import EOS, VOCAB, FakeSession, fake_cost, fake_manifest, fake_tokenizer, plain

RATE = 0.03


def engine_of(session: FakeSession | None = None, **config: object) -> Engine:
    values = {"rows": 4, "chunk": 8, "queue": 1000, "kv_memory": 1 << 26} | config
    session = session or FakeSession(rows=int(values["rows"]), eos_rate=RATE)  # type: ignore[call-overload]
    return Engine(session, fake_tokenizer(), EngineConfig(**values), fake_cost())  # type: ignore[arg-type]


def expected(prompt: list[int], params: SamplingParams, context: int = 128) -> list[int]:
    limit = min(params.max_tokens, context - len(prompt))
    return plain(prompt, limit, RATE, lambda logits, t: draw(logits, params, params.seed or 0, 0, t))


def run_to_end(engine: Engine) -> list[Output]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        engine.check_integrity()
    return outputs


@pytest.mark.parametrize(("form", "chunk"), [("ragged", 256), ("padded", 64)])
def test_prompts_come_in_by_the_graphs_form_unless_configured(form: str, chunk: int) -> None:
    session = FakeSession(rows=1)
    session.manifest = replace(session.manifest, form=form)
    assert engine_of(session, rows=1, chunk=0).config.chunk == chunk
    assert engine_of(session, rows=1, chunk=9).config.chunk == 9


@pytest.mark.parametrize("speculation", ["off", 2, 4, 16, 63, 64, "auto"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_speculation_does_not_change_the_text(speculation: int | str, temperature: float) -> None:
    engine = engine_of()
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=7, speculation=speculation)
    prompts = [[5, 6, 7], [8], [9, 10] * 9, [11] * 30]
    for sequence, prompt in zip(engine.generate(prompts, params), prompts, strict=True):
        assert sequence.tokens == expected(prompt, params)
    stats = engine.stats()
    if speculation != "off":
        assert stats["accepted"] > 0 and stats["tokens_per_step"] > 1.05
        assert sum(stats["accepted_by_depth"]) == stats["accepted"]
        assert sum(stats["drafted_by_depth"]) == stats["drafted"]
    else:
        assert stats["drafted"] == 0 and stats["tokens_per_step"] == 1


@pytest.mark.parametrize("seed", [*range(60), *(pytest.param(s, marks=pytest.mark.slow) for s in range(60, 600))])
def test_random_arrivals_aborts_and_failures(seed: int) -> None:
    """No row leaks, every sequence ends exactly once, and what was not disturbed is plain decoding's answer."""
    rng = random.Random(seed)
    session = FakeSession(rows=4, eos_rate=RATE, seed=seed, luck=rng.random())
    engine = engine_of(
        session, chunk=rng.choice([2, 5, 16]), exact=rng.random() < 0.8, kv_memory=rng.choice([400_000, 1 << 26])
    )
    live: list[Sequence] = []
    everyone: list[Sequence] = []
    ends: dict[int, str] = {}
    text: dict[int, str] = {}
    tokens: dict[int, list[int]] = {}

    def take(outputs: list[Output]) -> None:
        for output in outputs:
            key = output.sequence.id
            assert key not in ends, "something after the end"
            text[key] = text.get(key, "") + output.text
            tokens.setdefault(key, []).extend(output.tokens)
            if output.finish_reason:
                ends[key] = output.finish_reason

    for _ in range(150):
        if rng.random() < 0.35:
            prompt = [rng.randrange(3, VOCAB) for _ in range(rng.choice([1, 2, 3, 10, 40, 128]))]
            params = SamplingParams(
                max_tokens=rng.choice([1, 2, 5, 30, 200]),
                temperature=rng.choice([0.0, 0.0, 0.7]),
                seed=rng.randrange(100),
                ignore_eos=rng.random() < 0.1,
                speculation=rng.choice(["off", "auto", 2, 4, 16, 63]),
            )
            live.append(engine.add(prompt, params))
            everyone.append(live[-1])
        if live and rng.random() < 0.08 and (end := engine.abort(rng.choice(live))):
            take([end])
        if rng.random() < 0.02:
            session.fail_next = rng.choice(["run", "heads", "copy", "commit", "nan"])
        before, runs, told = engine.stats()["prefilled"], session.runs, []
        take(engine.step(lambda: told.append(session.runs)))  # noqa: B023  # is called in this step
        assert told == [runs], "others are told once a step, before the model runs"
        engine.check_integrity()
        assert engine.stats()["prefilled"] - before <= engine.config.chunk
        live = [s for s in live if s.finish_reason is None]
    session.fail_next = None
    take(run_to_end(engine))
    assert sorted(ends) == [s.id for s in everyone]
    engine.forget()
    assert (session.cache == -1).all(), "a row was not released"
    assert engine.stats()["rows_in_use"] == 0 and engine.stats()["kv_bytes_reserved"] == 0
    for sequence in everyone:
        assert tokens.get(sequence.id, []) == sequence.tokens and text.get(sequence.id, "") == sequence.text
        assert ends[sequence.id] == sequence.finish_reason
        assert (sequence.error is not None) == (sequence.finish_reason == "error")
        if not sequence.params.ignore_eos:
            whole = expected(sequence.prompt, sequence.params)
            if sequence.finish_reason in ("stop", "length"):
                assert sequence.tokens == whole
                assert (sequence.finish_reason == "stop") == (EOS in whole[-1:])
            else:
                assert sequence.tokens == whole[: len(sequence.tokens)]


def test_first_come_first_served() -> None:
    engine = engine_of(rows=2, chunk=4)
    sequences = [engine.add([5 + i] * 6, SamplingParams(max_tokens=3, ignore_eos=True)) for i in range(6)]
    first: list[int] = []
    for output in run_to_end(engine):
        if output.sequence.id not in first:
            first.append(output.sequence.id)
    assert first == [s.id for s in sequences]


def test_prefill_shares_the_step_with_decoding() -> None:
    engine = engine_of(chunk=8)
    short = engine.add([5], SamplingParams(max_tokens=60, ignore_eos=True, speculation="off"))
    engine.step()
    engine.add([6] * 64, SamplingParams(max_tokens=1))
    before = len(short.tokens)
    for _ in range(8):
        engine.step()
    assert len(short.tokens) == before + 8


@pytest.mark.parametrize(("start", "first"), [(1e-3, "run"), (8e-3, "heads")])
def test_others_are_told_beside_the_first_run_that_takes_long(
    start: float, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short heads are over before others are done: they would hold up this thread, which needs the interpreter."""
    session, said = FakeSession(rows=1, eos_rate=0), list[str]()
    engine = Engine(session, fake_tokenizer(), EngineConfig(rows=1), fake_cost(start=start))
    engine.add([5, 6], SamplingParams(max_tokens=20, speculation=8))
    engine.step()
    for name in ("heads", "run"):
        real = getattr(session, name)
        monkeypatch.setattr(session, name, lambda *what, name=name, real=real: (said.append(name), real(*what))[1])
    engine.step(lambda: said.append("others"))
    assert said == (["heads", "others", "run"] if first == "run" else ["others", "heads", "run"])


def test_a_request_reserves_all_it_may_need_in_whole_pages() -> None:
    engine = engine_of()
    engine.add([5] * 5, SamplingParams(max_tokens=10, speculation=2))  # 5 + 10 + 2 tokens: two pages of 16
    engine.add([5] * 120, SamplingParams(max_tokens=200, speculation="off"))  # the context's 128, and the root
    engine.step()
    assert engine.stats()["kv_bytes_reserved"] == (32 + 144) * engine.manifest.kv_bytes


def test_a_failed_step_ends_its_sequences_and_no_others() -> None:
    session = FakeSession(rows=2, eos_rate=0)
    engine = engine_of(session, rows=2)
    running = [engine.add([5, i], SamplingParams(max_tokens=20)) for i in range(6, 8)]
    waiting = engine.add([5, 9], SamplingParams(max_tokens=4))
    engine.step()
    session.fail_next = "run"
    ends = engine.step()
    assert [(o.sequence, o.finish_reason) for o in ends] == [(s, "error") for s in running]
    assert "told to fail" in str(running[0].error)
    run_to_end(engine)
    assert waiting.finish_reason == "length" and engine.stats()["failed_steps"] == 1


def test_a_sequence_that_ends_leaves_no_token_after_its_end() -> None:
    """A tree may be accepted past the end token: what lies behind it is not emitted."""
    engine = Engine(FakeSession(rows=1, eos_rate=0.2, luck=1.0), fake_tokenizer(), EngineConfig(rows=1), fake_cost())
    for start in range(3, 60):
        [sequence] = engine.generate([[start]], SamplingParams(max_tokens=50, speculation=32))
        assert EOS not in sequence.tokens[:-1] and len(sequence.tokens) <= 50


def test_stop_strings_and_stop_tokens_cut_the_answer() -> None:
    engine = engine_of()
    params = SamplingParams(max_tokens=40, ignore_eos=True, speculation=16)
    [whole] = engine.generate([[5, 6, 7]], params)
    stop = whole.text[10:13]
    at = whole.text.index(stop)
    cut_params = SamplingParams(max_tokens=40, ignore_eos=True, speculation=16, stop=(stop,))
    [cut] = engine.generate([[5, 6, 7]], cut_params)
    assert cut.text == whole.text[:at] and cut.finish_reason == "stop"
    token = whole.tokens[20]
    params = SamplingParams(max_tokens=40, ignore_eos=True, speculation=16, stop_token_ids=(token,))
    [cut] = engine.generate([[5, 6, 7]], params)
    assert cut.tokens == whole.tokens[: whole.tokens.index(token) + 1] and cut.finish_reason == "stop"


def test_a_prompt_that_fills_the_context_ends_with_length() -> None:
    engine = engine_of()
    full, almost = engine.generate([[5] * 128, [5] * 127], SamplingParams(max_tokens=9, ignore_eos=True))
    assert (full.finish_reason, full.tokens) == ("length", [])
    assert (almost.finish_reason, len(almost.tokens)) == ("length", 1)


@pytest.mark.parametrize(
    ("prompt", "params", "error", "words"),
    [
        ([], {}, PromptError, "empty"),
        ([VOCAB], {}, PromptError, "token 0 of the prompt is 97"),
        ([5, -1], {}, PromptError, "token 1 of the prompt is -1"),
        ([5] * 129, {}, ContextError, "129 tokens, the context 128"),
        ([5], {"stop_token_ids": (VOCAB,)}, ParameterError, "stop_token_ids has 97"),
        ([5] * 50, {"max_tokens": 60}, MemoryBudgetError, r"50 prompt tokens \+ 60 to emit \+ 32 tree nodes"),
    ],
)
def test_what_can_never_be_served_is_refused(
    prompt: list[int], params: dict, error: type[Exception], words: str
) -> None:
    engine = engine_of(kv_memory=100 * 512)
    with pytest.raises(error, match=words):
        engine.add(prompt, SamplingParams(**params))
    assert not engine.has_work


def test_without_heads_speculation_is_refused_unless_auto() -> None:
    engine = engine_of(FakeSession(fake_manifest(medusa_heads=0), eos_rate=RATE))
    [sequence] = engine.generate([[5]], SamplingParams(max_tokens=5, ignore_eos=True))
    assert sequence.drafted == 0 and len(sequence.tokens) == 5
    with pytest.raises(ParameterError, match="without heads"):
        engine.add([5], SamplingParams(speculation=8))


def test_a_full_queue_refuses() -> None:
    engine = engine_of(rows=2, queue=1)
    for _ in range(3):
        engine.add([5], SamplingParams(max_tokens=2))
    with pytest.raises(QueueFullError, match="the queue holds 1"):
        engine.add([5], SamplingParams(max_tokens=2))


def test_generate_feeds_the_queue_and_leaves_nothing_behind() -> None:
    engine = engine_of(rows=2, queue=1)
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    assert [len(s.tokens) for s in engine.generate([[5 + i] for i in range(20)], params)] == [5] * 20
    with pytest.raises(ContextError):
        engine.generate([[5], [6], [7] * 500], params)
    assert not engine.has_work and engine.stats()["rows_in_use"] == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_end_their_sequence_with_an_error(temperature: float) -> None:
    session = FakeSession(rows=2, eos_rate=0)
    engine = engine_of(session, rows=2)
    sick = engine.add([5, 6], SamplingParams(max_tokens=9, temperature=temperature))
    well = engine.add([5, 7], SamplingParams(max_tokens=9))
    engine.step()
    session.fail_next = "nan"  # in row 0
    run_to_end(engine)
    assert sick.finish_reason == "error" and "finite" in str(sick.error)
    assert well.finish_reason == "length" and well.tokens == plain([5, 7], 9, 0, lambda x, t: int(x.argmax()))


def test_abort_is_final() -> None:
    engine = engine_of()
    sequence = engine.add([5], SamplingParams(max_tokens=50, ignore_eos=True))
    engine.step()
    end = engine.abort(sequence)
    assert end is not None and end.finish_reason == "abort" and engine.abort(sequence) is None
    assert not engine.has_work and engine.stats()["rows_in_use"] == 0


def test_unseeded_answers_differ_and_seeded_ones_do_not() -> None:
    engine = engine_of()
    same = engine.generate([[5]] * 3, SamplingParams(max_tokens=20, temperature=1.0, seed=3, ignore_eos=True))
    assert len({tuple(s.tokens) for s in same}) == 1
    free = engine.generate([[5]] * 3, SamplingParams(max_tokens=20, temperature=1.0, ignore_eos=True))
    assert len({tuple(s.tokens) for s in free}) == 3


class CountingSession(FakeSession):
    """Its text is 5, 6, 7, 5, 6, 7 and so on."""

    def run(self, batch: Batch) -> Result:
        super().run(batch)
        following = np.array([5 + (seen[-1] - 4) % 3 for seen in self._seen])
        return HostResult(following, np.eye(VOCAB, dtype=np.float32)[following] * 50)


def test_without_heads_lookup_takes_no_budget_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """That nothing is known of heads that never run is no reason to decide anew. No time passes here."""
    budgets, best = list[int](), speculation.best

    def counted(*arguments: Any) -> Choice:
        budgets.append(1)
        return best(*arguments)

    monkeypatch.setattr(speculation, "best", counted)
    session = CountingSession(fake_manifest(medusa_heads=0, draft_top_k=0), rows=1)
    engine = Engine(session, fake_tokenizer(), EngineConfig(rows=1), fake_cost(), clock=lambda: 0.0)
    [sequence] = engine.generate([[5, 6, 7] * 3], SamplingParams(max_tokens=100, ignore_eos=True))
    assert sequence.tokens == [5 + i % 3 for i in range(100)] and sequence.accepted > 50
    assert sequence.steps >= 5 and len(budgets) <= 2


def ticking() -> Callable[[], float]:
    """A clock by which everything takes a millisecond."""
    ticks = itertools.count()
    return lambda: next(ticks) / 1e3


class RisingSession(FakeSession):
    """Its text never repeats itself."""

    def run(self, batch: Batch) -> Result:
        super().run(batch)
        following = np.array([seen[-1] + 1 for seen in self._seen])
        return HostResult(following, np.eye(VOCAB, dtype=np.float32)[following] * 50)


def test_lookup_that_knows_nothing_is_asked_every_fourth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then learns all that came meanwhile; while it knows something it is asked in each step."""
    asked, continuation = list[int](), Lookup.continuation

    def counted(lookup: Lookup, most: int) -> tuple[int, list[int]]:
        asked.append(len(lookup))
        return continuation(lookup, most)

    monkeypatch.setattr(Lookup, "continuation", counted)
    manifest, params = fake_manifest(medusa_heads=0, draft_top_k=0), SamplingParams(max_tokens=20, ignore_eos=True)
    for session, prompt in ((RisingSession(manifest, rows=1), [5, 6]), (CountingSession(manifest, rows=1), [5, 6, 7])):
        asked.clear()
        engine = Engine(session, fake_tokenizer(), EngineConfig(rows=1), fake_cost(), clock=ticking())
        [sequence] = engine.generate([prompt], params)
        if isinstance(session, RisingSession):
            assert sequence.steps == 19 and asked == [3, 7, 11, 15, 19]
        else:
            assert sequence.accepted > 10, "a period that began four tokens ago at most"


class MisleadingSession(FakeSession):
    """Its text is 5, 6, 7, 5, 6, 8, 5, 6, 9 and so on: what followed 5, 6 before never does again."""

    def run(self, batch: Batch) -> Result:
        super().run(batch)
        following = np.array([(5, 6, 7 + len(seen) // 3 % (VOCAB - 7))[len(seen) % 3] for seen in self._seen])
        return HostResult(following, np.eye(VOCAB, dtype=np.float32)[following] * 50)


def no_heads(session: type[FakeSession]) -> Engine:
    manifest = fake_manifest(medusa_heads=0, draft_top_k=0)
    return Engine(session(manifest, rows=1), fake_tokenizer(), EngineConfig(rows=1), fake_cost(), clock=ticking())


def test_what_lookup_drafts_in_vain_is_counted_so() -> None:
    engine = no_heads(MisleadingSession)
    engine.generate([[5, 6]], SamplingParams(max_tokens=120, ignore_eos=True))
    counted = engine.stats()["drafting"]
    assert counted["lookup_drafted"] == engine.stats()["drafted"] > 5
    assert counted["lookup_accepted"] == engine.stats()["accepted"] == 0


def test_lookup_that_was_wrong_long_enough_is_drafted_again_once_it_is_right() -> None:
    """A node is worth three tenths of a token here; that it would have been right is seen without one."""

    class Slow(CountingSession):
        now = 0.0

        def run(self, batch: Batch) -> Result:
            self.now += 7e-4 + 3e-4 * len(batch.tokens)
            return super().run(batch)

    session = Slow(fake_manifest(medusa_heads=0, draft_top_k=0), rows=1)
    cost = CostModel([1], [1, 64], [[1e-3, 1e-3 + 63 * 3e-4]], [0.0, 0.0], [0.0])
    engine = Engine(session, fake_tokenizer(), EngineConfig(rows=1), cost, clock=lambda: session.now)
    acceptance = engine._speculator._acceptance
    for _ in range(200):
        for matched in (2, 3, 5, 7, 40):
            chance, cells = acceptance.lookup(matched, 4)
            acceptance.observe(cells, np.exp(chance), np.zeros(4, bool))
    assert np.exp(acceptance.lookup(40, 1)[0][0]) < 0.02
    first, *_, last = engine.generate([[5, 6, 7] * 3] * 4, SamplingParams(max_tokens=110, ignore_eos=True))
    assert first.accepted < 30 < last.accepted


def test_how_far_the_heads_are_trusted_is_no_matter_of_what_lookup_finds() -> None:
    engine = no_heads(CountingSession)
    for _ in range(8):
        sequence = engine.add([5, 6, 7] * 3, SamplingParams(max_tokens=110, ignore_eos=True))
        while sequence.finish_reason is None:
            sequence.habit.expected, sequence.habit.right = 50.0, 0.0
            engine.step()
        assert sequence.habit.trust < 0.5 and sequence.accepted > 30
    assert np.exp(engine._speculator._acceptance.lookup(40, 1)[0][0]) > 0.8, "it was always right"


def test_steps_in_which_nobody_may_draft_say_nothing_of_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = list[int]()
    monkeypatch.setattr(Continuations, "learn", lambda self, accepted, rate: learnt.append(accepted))
    engine = engine_of()
    engine.generate([[5, 6, 7] * 6] * 4, SamplingParams(max_tokens=20, ignore_eos=True, speculation="off"))
    assert not learnt
    engine.generate([[5, 6, 7] * 6] * 4, SamplingParams(max_tokens=20, ignore_eos=True))
    assert 0 < len(learnt) <= 20, "once a step, but for those of prompts alone"


def test_a_step_that_failed_says_nothing_of_what_steps_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as 30 seconds until there was no memory left."""
    told = list[int]()
    monkeypatch.setattr(Pace, "spent", lambda self, rows, seconds: told.append(rows))
    monkeypatch.setattr(Pace, "took", lambda self, rows, *rest: told.append(rows))
    session = FakeSession(rows=4)
    engine = engine_of(session)
    sequences = [engine.add([5 + i], SamplingParams(max_tokens=9)) for i in range(3)]
    engine.step()
    before = len(told)
    monkeypatch.setattr(session, "run", lambda batch: 1 / 0)
    engine.step()
    assert all(s.finish_reason == "error" for s in sequences) and len(told) == before > 0


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int], int]]:
    """Of each tree: how many tokens its sequence may still be given, its nodes' tokens but the root's, its depth."""
    drafted, draft = list[tuple[int, list[int], int]](), speculation.Speculator.draft

    def seen(self: speculation.Speculator, plan: Plan) -> list[Tree | None]:
        trees = draft(self, plan)
        for s, tree in zip(plan.sequences, trees, strict=True):
            if tree is not None:
                drafted.append((s.limit - len(s.tokens), tree.tokens[1:], int(tree.depth.max())))
        return trees

    monkeypatch.setattr(speculation.Speculator, "draft", seen)
    return drafted


def test_lookup_does_not_draft_the_end_of_an_answer(drafted: list[tuple[int, list[int], int]]) -> None:
    session = CountingSession(fake_manifest(medusa_heads=0, draft_top_k=0), rows=1)
    engine = Engine(session, fake_tokenizer(), EngineConfig(rows=1), fake_cost(), clock=ticking())
    engine.generate([[7, 5, 6, EOS, 9, 7]], SamplingParams(max_tokens=8))
    tokens = [tokens for _, tokens, _ in drafted]
    assert tokens[0] == [6] and not any(EOS in each for each in tokens), "what followed 7, 5 up to the end token"


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("speculation_", ["auto", 16, 64])
def test_no_node_is_in_vain(drafted: list[tuple[int, list[int], int]], speculation_: int | str, lookup: bool) -> None:
    """The model adds a token of its own to each path: the end of an answer, and the last that it may have, too."""
    config = EngineConfig(rows=4, lookup=lookup)
    engine = Engine(FakeSession(fake_manifest(), eos_rate=0.1), fake_tokenizer(), config, fake_cost(), clock=ticking())
    prompts = [[5 + i, EOS, 7, EOS, 5 + i] for i in range(12)]
    engine.generate(prompts, SamplingParams(max_tokens=9, speculation=speculation_))
    assert len(drafted) > 10 and sum(len(tokens) for _, tokens, _ in drafted) > 20
    assert all(EOS not in tokens and depth < left for left, tokens, depth in drafted)
    drafted.clear()
    engine.generate(prompts, SamplingParams(max_tokens=9, speculation=64, ignore_eos=True))
    assert any(EOS in tokens for _, tokens, _ in drafted), "an end token that ends nothing is one as others are"
