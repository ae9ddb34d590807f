"""What clients ask, and what plain decoding says to it: the text that every answer is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.demo.dialogue import load_entries
from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams
from runtime.prompts import Prompts
from tests.fake import fake_cost

LIMITS = (4, 16, 64)  # tokens of an answer


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    max_tokens: int
    answer: str


def ask_plainly(artifact: Path, count: int) -> Sequence[Question]:
    """So many trained questions with each limit, answered by an engine of their own: no drafts, prefixes, or HTTP."""
    names = [entry.name for entry in load_entries() if not entry.heldout][:count]
    engine = Engine.from_artifact(artifact, EngineConfig(rows=8, prefix_reuse=False), cost=fake_cost())
    prompts = Prompts(engine.manifest, engine.tokenizer)
    texts = [f"What does {name} do?" for name in names]
    asked = []
    for limit in LIMITS:
        params = SamplingParams(max_tokens=limit, speculation="off")
        for text, sequence in zip(texts, engine.generate(map(prompts.question, texts), params), strict=True):
            asked.append(Question(text, limit, sequence.text))
    return asked
