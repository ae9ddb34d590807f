"""Prompts whose beginning was computed for another sequence: the bits of a full prefill, with the demo model."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.engine import Engine
from runtime.params import SamplingParams
from runtime.sampling import Logprobs
from runtime.sequence import Sequence
from tests.fake import fake_cost
from tests.parity.promises import first_fork, to_the_bit
from tests.parity.questions import engine_of, prompts


def dialogues(engine: Engine, count: int, seed: int) -> list[Sequence]:
    """Dialogues of several turns, many at a time, some of them the same; every answer in the order it was asked for."""
    rng = random.Random(seed)
    asked = prompts(count, seed)
    texts = [asked[i] for i in range(count)]
    everyone: list[Sequence] = []
    for _ in range(3):
        sequences = []
        for i, text in enumerate(texts):
            params = SamplingParams(
                max_tokens=rng.choice([5, 30]),
                temperature=rng.choice([0.0, 0.8]),
                seed=i,
                logprobs=3,
                speculation=rng.choice(["off", 4, 16, "auto"]),
            )
            copies = [replace(params, seed=i + c) for c in range(rng.choice([1, 1, 3]))]
            sequences.append([engine.add(text, each) for each in copies])
        while engine.has_work:
            engine.step()
            engine.check_integrity()
        everyone += [s for group in sequences for s in group]
        # the dialogue goes on as if the first choice had been said, or from a turn before
        texts = [
            (group[0].prompt + group[0].tokens if rng.random() < 0.8 else text) + rng.choice(asked)[1:]
            for group, text in zip(sequences, texts, strict=True)
        ]
        texts = [text[: engine.config.context - 40] for text in texts]
    return everyone


NEAR = {"padded-fp32": 2e-3, "padded-fp16": 0.3}  # of log-probabilities, where results are not the same bits


@pytest.mark.parametrize(
    ("precision", "count"),
    [
        ("fp32", 6),
        *(pytest.param(precision, 40, marks=pytest.mark.slow) for precision in ("fp32", "int8", "int4")),
        *(pytest.param(precision, 12, marks=pytest.mark.slow) for precision in NEAR),
    ],
)
def test_a_shared_prefix_changes_no_bit(
    demo_artifact: Callable[[str], Path], precision: str, count: int, operators: str
) -> None:
    """Tokens and log-probabilities, of the same requests with and without reuse.

    With stock operators decoding may differ in the last bits where a tree's accepted path has gaps, whatever its prompt
    came from. So each prompt's first token is compared, which a prefill alone decides, and all of an answer without
    speculation; with native ones all of every answer. On a GPU the same, up to where texts fork, and nearly.
    """
    if operators == "native" and precision.startswith("padded"):
        pytest.skip("native operators are the ragged form's")
    reusing = engine_of(demo_artifact(precision), 6, operators)
    config = replace(reusing.config, prefix_reuse=False)
    whole = Engine.from_artifact(demo_artifact(precision), config, fake_cost())
    shared = 0
    for s in dialogues(reusing, count, seed=count):
        again = whole.add(s.prompt, replace(s.params, speculation="off"))
        while whole.has_work:
            whole.step()
        assert again.cached == 0 and s.choice is not None and again.choice is not None
        shared += s.cached
        whole_text = s.params.speculation == "off" or operators == "native"
        if not to_the_bit(precision):
            at = first_fork(s.tokens, again.tokens) if whole_text else min(1, first_fork(s.tokens, again.tokens))
            for mine, theirs in zip(s.choice.logprobs[:at], again.choice.logprobs[:at], strict=True):
                assert nearly(mine, theirs, NEAR[precision])
            continue
        assert s.choice.logprobs[0] == again.choice.logprobs[0]
        if whole_text:
            assert s.tokens == again.tokens
            assert s.choice.logprobs[: len(s.tokens)] == again.choice.logprobs[: len(s.tokens)]
    stats = reusing.stats()
    assert shared == stats["reused"] > 0.4 * (stats["reused"] + stats["prefilled"])


def nearly(mine: Logprobs, theirs: Logprobs, limit: float) -> bool:
    """The same token; of the most probable ones those that are among both."""
    both = dict(mine.top).keys() & dict(theirs.top).keys()
    pairs = [(mine.logprob, theirs.logprob), *((dict(mine.top)[i], dict(theirs.top)[i]) for i in both)]
    return mine.token == theirs.token and all(abs(a - b) <= limit for a, b in pairs)
