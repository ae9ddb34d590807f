"""`auto` against every fixed size, on the real engine and a clock that the cost model drives."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from runtime.cost import CostModel
from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams
from tests.fake import fake_tokenizer
from tests.unit.replay import Clock, ReplaySession, Trace, trace

FIXED: tuple[int | str, ...] = ("off", 2, 4, 8, 16, 32)
TOKENS = 300  # of an answer
SHORT = 17
# measured by `python -m runtime.bench profile --rows 32 --json ...` on 2 cores of an AMD EPYC
MACHINES = json.loads(Path(__file__).with_name("cost_models.json").read_text())
FIRST, *_, DEAR = MACHINES  # the last one's heads take half of a step

TRACES = {
    "easy": [trace(i, 0.95) for i in range(8)],
    "usual": [trace(i, 0.6) for i in range(8)],
    "hopeless": [trace(i, 0.05) for i in range(8)],
    "dishonest": [trace(i, 0.6, honest=False) for i in range(8)],
    "mixed": [trace(i, 0.9 if i % 2 else 0.6, honest=i % 2 == 1) for i in range(8)],
}


def model(name: str) -> CostModel:
    return CostModel.from_json(MACHINES[name])


@cache
def speed(
    kind: str, machine: str, concurrency: int, speculation: int | str, lookup: bool = False, tokens: int = TOKENS
) -> float:
    """Tokens a second of the clock while all rows are in use."""
    return run(TRACES[kind], machine, concurrency, speculation, lookup, tokens)[0]


def run(
    traces: list[Trace], machine: str, concurrency: int, speculation: int | str, lookup: bool, length: int = TOKENS
) -> tuple[float, Engine]:
    """Three answers for each row, more of short ones, until the last of them has one.

    With rows empty, whoever hurries waits in the end.
    """
    clock = Clock()
    session = ReplaySession(traces, model(machine), clock, concurrency)
    config = EngineConfig(rows=concurrency, queue=1000, kv_memory=1 << 30, lookup=lookup)
    engine = Engine(session, fake_tokenizer(), config, model(machine), clock)
    params = SamplingParams(length, ignore_eos=True, speculation=speculation)
    sequences = [engine.add([i % len(traces)], params) for i in range(max(16, 3 * concurrency) * TOKENS // length)]
    while engine.stats()["waiting"]:
        engine.step()
    tokens, seconds = sum(len(sequence.tokens) for sequence in sequences), clock.now
    while engine.has_work:
        engine.step()
    for i, sequence in enumerate(sequences):
        assert sequence.tokens == traces[i % len(traces)].text[:length].tolist()
    return tokens / seconds, engine


@pytest.mark.parametrize(
    ("machine", "concurrency"),
    [
        pytest.param(machine, n, marks=() if machine == FIRST and n in (1, 4, 16) else pytest.mark.slow)
        for machine in MACHINES
        for n in (1, 2, 4, 8, 16, 32)
    ],
)
@pytest.mark.parametrize("kind", TRACES)
def test_auto_is_never_slower_than_any_fixed_size(machine: str, kind: str, concurrency: int) -> None:
    fixed = {speculation: speed(kind, machine, concurrency, speculation) for speculation in FIXED}
    auto = speed(kind, machine, concurrency, "auto")
    assert auto >= 0.98 * max(fixed.values()), f"auto {auto:.0f}, fixed {fixed}"


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("kind", TRACES)
def test_short_answers_are_drafted_where_it_pays(kind: str, concurrency: int) -> None:
    """No sequence lasts long enough to be tried for its own sake."""
    of = {setting: speed(kind, FIRST, concurrency, setting, tokens=SHORT) for setting in (*FIXED, "auto")}
    assert of["auto"] >= 0.97 * max(of[setting] for setting in FIXED), of


@pytest.mark.parametrize("concurrency", [4, 16])
@pytest.mark.parametrize("kind", ["usual", "hopeless"])
def test_short_answers_do_not_pay_for_trials_of_dear_heads(kind: str, concurrency: int) -> None:
    """Plain decoding is best here, and no sequence lasts long enough to be known."""
    of = {setting: speed(kind, DEAR, concurrency, setting, tokens=SHORT) for setting in ("off", 2, "auto")}
    assert of["off"] > of[2] and of["auto"] >= 0.98 * of["off"], of


def test_fewer_heads_run_where_trees_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads take half of a step here, and a part of them its part of that. Where none pays, that changes nothing."""
    monkeypatch.setitem(MACHINES, "by depth", MACHINES[DEAR] | {"base": 0.1})
    for kind, concurrency, gain in (
        ("usual", 1, 1.07),
        ("hopeless", 1, 1.09),
        ("easy", 4, 1.03),
        ("dishonest", 4, 0.99),
    ):
        assert speed(kind, "by depth", concurrency, "auto") > gain * speed(kind, DEAR, concurrency, "auto"), kind


def turning(seed: int) -> Trace:
    """Easy, then hopeless, then easy again."""
    hard, easy = trace(seed, 0.05), trace(seed, 0.95)
    middle = np.arange(len(easy.text)) // (TOKENS // 3) == 1
    of = lambda a, b: np.where(middle.reshape(-1, *(1,) * (a.ndim - 1)), a, b)  # noqa: E731
    return Trace(easy.text, of(hard.logprobs, easy.logprobs), of(hard.rank, easy.rank))


@pytest.mark.parametrize("machine", [FIRST, DEAR])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_text_that_becomes_easy_again_is_found(machine: str, concurrency: int) -> None:
    traces = [turning(i) for i in range(8)]
    of = {setting: run(traces, machine, concurrency, setting, False)[0] for setting in FIXED}
    auto, engine = run(traces, machine, concurrency, "auto", False)
    assert auto >= 0.97 * max(of.values()), of
    if machine == FIRST:  # where drafting pays at all
        assert auto > 1.2 * of["off"] and engine.stats()["tokens_per_step"] > 1.5


def test_steps_that_draft_nothing_are_counted_as_any_other() -> None:
    _, engine = run(TRACES["hopeless"], DEAR, 8, "auto", False)
    stats = engine.stats()
    drafting = stats["drafting"]
    assert drafting["heads_runs"] > 0, "nobody looked whether it pays"
    assert drafting["rows"] > 0.95 * stats["decoded_rows"] > 1000
    assert drafting["nodes_per_row"] < 0.1
    assert drafting["realised_tokens_per_step"] == pytest.approx(drafting["expected_tokens_per_step"], rel=0.02)


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("kind", ["easy", "usual", "hopeless"])
def test_prompt_lookup_costs_nothing_where_nothing_repeats(kind: str, concurrency: int) -> None:
    assert speed(kind, FIRST, concurrency, "auto", lookup=True) >= 0.99 * speed(kind, FIRST, concurrency, "auto")


@pytest.mark.parametrize("concurrency", [1, 8])
def test_prompt_lookup_wins_where_the_text_repeats(concurrency: int) -> None:
    """Heads that fail on a text of 40 tokens, over and over."""
    traces = [trace(i, 0.3, honest=False, period=40) for i in range(8)]
    with_lookup, engine = run(traces, FIRST, concurrency, "auto", lookup=True)
    assert with_lookup > 1.5 * run(traces, FIRST, concurrency, "auto", lookup=False)[0]
    drafting = engine.stats()["drafting"]
    assert drafting["lookup_accepted"] > 0.8 * drafting["lookup_drafted"] > 100


@pytest.mark.parametrize("host", [0.0, 0.5])
@pytest.mark.parametrize("slowdown", [1.5, 2.0, 4.0])
def test_a_long_prompt_does_not_hold_up_the_others(slowdown: float, host: float) -> None:
    """The time between a sequence's tokens, all of it, before a long prompt comes and while it goes in."""
    clock = Clock()
    outside = host * float(model(FIRST).decoder(1, 1, 1, 1))
    session = ReplaySession(TRACES["usual"], model(FIRST), clock, 4, outside)
    config = EngineConfig(rows=4, kv_memory=1 << 30, chunk=256, prefill_slowdown=slowdown, lookup=False)
    engine = Engine(session, fake_tokenizer(), config, model(FIRST), clock)
    for i in range(3):
        engine.add([i], SamplingParams(380, ignore_eos=True, speculation=4))
    steps: list[tuple[int, float]] = []  # prompt tokens, seconds
    for step in range(120):
        if step == 20:
            engine.add([3] * 300, SamplingParams(50, ignore_eos=True, speculation="off"))
        before, began = engine.stats()["prefilled"], clock.now
        engine.step()
        steps.append((engine.stats()["prefilled"] - before, clock.now - began))
    usual = sorted(seconds for tokens, seconds in steps[5:20])[7]
    beside = [(tokens, seconds) for tokens, seconds in steps[20:] if tokens]
    assert sum(tokens for tokens, _ in beside) == 300
    assert max(seconds for _, seconds in beside) <= 1.05 * slowdown * usual
    assert max(seconds for _, seconds in beside) > 0.5 * slowdown * usual, "it could have gone in faster"


def test_a_prompt_goes_in_faster_where_many_wait_and_where_steps_are_long_anyway() -> None:
    """One row decodes; a prompt alone may take twice its step, one of seven twice a step of seven."""

    def first_chunk(prompts: int, outside: float = 0.0) -> int:
        clock = Clock()
        session = ReplaySession(TRACES["usual"], model(FIRST), clock, 8, outside)
        config = EngineConfig(rows=8, kv_memory=1 << 30, chunk=256, lookup=False)
        engine = Engine(session, fake_tokenizer(), config, model(FIRST), clock)
        engine.add([0], SamplingParams(380, ignore_eos=True, speculation=4))
        for _ in range(20):
            engine.step()
        for i in range(prompts):
            engine.add([i] * 200, SamplingParams(50, ignore_eos=True))
        before: int = engine.stats()["prefilled"]
        engine.step()
        return int(engine.stats()["prefilled"]) - before

    alone = first_chunk(1)
    assert first_chunk(7) >= 2 * alone > 0
    assert first_chunk(1, outside=2 * float(model(FIRST).decoder(1, 1, 1, 1))) >= 2 * alone, "its step is all of it"
