"""The prompts of a benchmark: questions from a file, in the artifact's chat template, or random tokens."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import ConfigurationError
from runtime.manifest import Manifest
from runtime.prompts import Prompts

MT_BENCH = Path(__file__).with_name("data") / "mt_bench_questions.jsonl"
MT_BENCH_TEMPLATE = "{turns[0]}"


def questions(path: Path, template: str, without: str | None, seed: int) -> list[str]:
    """The rows of a .jsonl file put into `template`, shuffled; rows that lack one of its fields are left out.

    `without` names a field: rows where it is true are left out too.
    """
    found = []
    try:
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            if without is not None and row.get(without):
                continue
            try:
                found.append(template.format(**row))
            except (KeyError, IndexError):
                continue
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"{path} holds no prompts: {error}; expected a JSON object a line") from None
    if not found:
        raise ConfigurationError(f"{path} has no row with the fields of {template!r}")
    random.Random(seed).shuffle(found)
    return found


def encode(texts: list[str], manifest: Manifest, tokenizer: Tokenizer, raw: bool) -> list[list[int]]:
    """Token ids: `raw` text as it is, otherwise as one user message of the artifact's chat template."""
    prompts = Prompts(manifest, tokenizer)
    return [prompts.raw(text) if raw else prompts.question(text) for text in texts]


def random_prompts(count: int, length: int, vocab: int, seed: int) -> list[list[int]]:
    """`count` prompts of `length` tokens that mean nothing."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab) for _ in range(length)] for _ in range(count)]
