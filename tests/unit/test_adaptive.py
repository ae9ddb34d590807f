"""`auto` against every fixed size, on the real engine and a clock that the cost model drives."""

import json
from functools import cache
from pathlib import Path

import pytest

from runtime.cost import CostModel
from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams
from tests.fake import fake_tokenizer
from tests.unit.replay import Clock, ReplaySession, Trace, trace

FIXED: tuple[int | str, ...] = ("off", 2, 4, 8, 16, 32)
TOKENS = 300  # of an answer
MODELS = Path(__file__).with_name("cost_models.json")

TRACES = {
    "easy": [trace(i, 0.95) for i in range(8)],
    "usual": [trace(i, 0.6) for i in range(8)],
    "hopeless": [trace(i, 0.05) for i in range(8)],
    "dishonest": [trace(i, 0.6, honest=False) for i in range(8)],
    "mixed": [trace(i, 0.9 if i % 2 else 0.6, honest=i % 2 == 1) for i in range(8)],
}


def model(name: str) -> CostModel:
    return CostModel.from_json(json.loads(MODELS.read_text())[name])


@cache
def speed(kind: str, machine: str, concurrency: int, speculation: int | str, lookup: bool = False) -> float:
    """Tokens a second of the clock, over two answers for each row."""
    return run(TRACES[kind], machine, concurrency, speculation, lookup)[0]


def run(
    traces: list[Trace], machine: str, concurrency: int, speculation: int | str, lookup: bool
) -> tuple[float, Engine]:
    clock = Clock()
    session = ReplaySession(traces, model(machine), clock, concurrency)
    config = EngineConfig(rows=concurrency, queue=1000, kv_memory=1 << 30, lookup=lookup)
    engine = Engine(session, fake_tokenizer(), config, model(machine), clock)
    params = SamplingParams(TOKENS, ignore_eos=True, speculation=speculation)
    sequences = engine.generate([[i % len(traces)] for i in range(max(16, 2 * concurrency))], params)
    for i, sequence in enumerate(sequences):
        assert sequence.tokens == traces[i % len(traces)].text[:TOKENS].tolist()
    return len(sequences) * TOKENS / clock.now, engine


@pytest.mark.parametrize("concurrency", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("kind", TRACES)
@pytest.mark.parametrize("machine", json.loads(MODELS.read_text()))
def test_auto_is_never_slower_than_any_fixed_size(machine: str, kind: str, concurrency: int) -> None:
    fixed = {speculation: speed(kind, machine, concurrency, speculation) for speculation in FIXED}
    auto = speed(kind, machine, concurrency, "auto")
    assert auto >= 0.98 * max(fixed.values()), f"auto {auto:.0f}, fixed {fixed}"
