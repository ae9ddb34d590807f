"""Fewer bits against fp32 on the demo model's own answers, with stock and with native operators."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from export.demo.dialogue import PREFIX, TRAINED_PHRASINGS, load_entries, turn
from export.reference import log_softmax
from tests.conftest import CHECKPOINT
from tests.parity.paths import ROWS, Model, make_tree

LONGEST = 32  # tokens of an answer
Logprobs = Callable[[str, str], np.ndarray]


@pytest.fixture(scope="module")
def logprobs(demo_artifact: Callable[[str], Path]) -> Logprobs:
    """logprobs(precision, operators) of the tokens of some answers, [tokens, vocab]."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    entries = [entry for entry in load_entries() if not entry.heldout][:ROWS]
    asked = [tokenizer.encode(PREFIX + turn(TRAINED_PHRASINGS[0], entry.name)).ids for entry in entries]
    answers = [tokenizer.encode(f" {entry.answer}", add_special_tokens=False).ids[:LONGEST] for entry in entries]
    trees = [make_tree(answer, list(range(-1, len(answer) - 1))) for answer in answers]

    def run(precision: str, operators: str) -> np.ndarray:
        model = Model.load(demo_artifact(precision), operators=operators)
        model.prefill(asked)
        works = [(len(prompt), tree) for prompt, tree in zip(asked, trees, strict=True)]
        return log_softmax(np.concatenate(model.run(works)))

    return run


@pytest.mark.parametrize(
    ("precision", "divergence", "alike"), [("int8", 5e-5, 0.99), ("int8-block32", 5e-5, 0.99), ("int4", 1e-3, 0.98)]
)
def test_answers_are_predicted_as_in_fp32(
    logprobs: Logprobs, operators: str, precision: str, divergence: float, alike: float
) -> None:
    """By KL(fp32 || precision) in nats a token, and the share of tokens whose most probable successor is the same."""
    want, found = logprobs("fp32", "stock"), logprobs(precision, operators)
    assert len(want) > 100
    kl = float((np.exp(want) * (want - found)).sum(-1).mean())
    assert kl < divergence
    assert (want.argmax(-1) == found.argmax(-1)).mean() > alike
