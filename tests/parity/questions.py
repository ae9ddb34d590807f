"""The demo model's questions as prompts, and an engine run in which sequences come and go."""

import random
from pathlib import Path

from tokenizers import Tokenizer

from export.demo.dialogue import HELD_OUT_PHRASINGS, PREFIX, TRAINED_PHRASINGS, load_entries, turn
from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams
from runtime.sequence import Sequence
from tests.conftest import CHECKPOINT
from tests.fake import fake_cost

COUNT = 200
MAX_TOKENS = 64


def prompts(count: int = COUNT, seed: int = 0) -> list[list[int]]:
    """Trained, rephrased and held-out questions in about equal shares: easy and hard drafts."""
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    entries = load_entries()
    groups = [[e for e in entries if not e.heldout], [e for e in entries if e.heldout]]
    texts = []
    for i in range(count):
        phrasing = rng.choice(HELD_OUT_PHRASINGS if i % 3 == 1 else TRAINED_PHRASINGS)
        texts.append(PREFIX + turn(phrasing, rng.choice(groups[i % 3 == 2]).name))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def engine_of(artifact: Path, rows: int, operators: str = "auto") -> Engine:
    config = EngineConfig(rows=rows, threads=2, kv_memory=1 << 30, queue=10_000, operators=operators)
    return Engine.from_artifact(artifact, config, fake_cost())


def answer(engine: Engine, asked: list[list[int]], params: list[SamplingParams], seed: int = 0) -> list[list[int]]:
    """Every prompt's tokens, with arrivals at random and other requests that come and are aborted at random."""
    rng = random.Random(seed)
    todo = list(zip(asked, params, strict=True))[::-1]
    sequences: list[Sequence] = []
    others: list[Sequence] = []
    while todo or engine.has_work:
        while todo and engine.stats()["waiting"] < 2 and rng.random() < 0.7:
            sequences.append(engine.add(*todo.pop()))
        if engine.config.rows > 1 and rng.random() < 0.05:
            others.append(engine.add(rng.choice(asked), SamplingParams(max_tokens=100, ignore_eos=True, speculation=8)))
        if others and rng.random() < 0.2:
            engine.abort(others.pop(rng.randrange(len(others))))
        if not todo and all(s.finish_reason for s in sequences):
            break
        engine.step()
    for other in others:
        engine.abort(other)
    engine.check_integrity()
    assert not engine.has_work
    return [s.tokens for s in sequences]
