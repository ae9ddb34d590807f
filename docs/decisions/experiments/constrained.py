"""Structured outputs: tokens per step and tokens a second, with and without the grammar's word on what is drafted.

`python -m docs.decisions.experiments.constrained artifacts/demo-int8`

The forms take turns in one process over the same questions; ratios are of runs of the same turn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

from llguidance import LLMatcher

from runtime.engine import Engine
from runtime.grammar import Matcher
from runtime.params import EngineConfig, SamplingParams, StructuredOutputs
from runtime.prompts import Prompts
from runtime.sequence import Sequence

ANSWER = {
    "type": "object",
    "properties": {
        "what": {"type": "string", "maxLength": 60},
        "kind": {"enum": ["function", "class", "method", "constant"]},
        "arguments": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        "sure": {"type": "boolean"},
    },
    "required": ["what", "kind", "arguments", "sure"],
    "additionalProperties": False,
}
ASKED = {
    "a schema": StructuredOutputs(json=json.dumps(ANSWER)),
    "a list of objects": StructuredOutputs(
        json=json.dumps({"type": "array", "items": ANSWER, "minItems": 2, "maxItems": 4})
    ),
    "a sentence": StructuredOutputs(regex=r"[A-Z][a-z ,]{20,120}\."),
}
FORMS = ("visited nodes only", "candidates too", "and forced tokens")


@contextmanager
def form(name: str) -> Iterator[None]:
    """The engine as it drafts in one of FORMS."""
    if name == FORMS[0]:
        with patch.object(Sequence, "matcher", None):
            yield
    elif name == FORMS[1]:
        with patch.object(Matcher, "forced", lambda self: []):
            yield
    else:
        yield


def run(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> tuple[list[Sequence], float, float]:
    """The answers, tokens per step, and tokens a second."""
    before, began = engine.stats(), time.perf_counter()
    answers = engine.generate(prompts, params)
    seconds, after = time.perf_counter() - began, engine.stats()
    rows, tokens = (after[name] - before[name] for name in ("decoded_rows", "decoded_tokens"))
    return answers, tokens / rows, (after["tokens"] - before["tokens"]) / seconds


def costs(engine: Engine, answer: Sequence) -> None:
    """Microseconds of what a matcher can be asked, at every fifth token of an answer: least and greatest median."""
    mine = engine.grammars.matcher(ASKED["a schema"])
    matcher, found = mine._matcher, dict[str, list[float]]()
    for at, token in enumerate(answer.tokens[:-4]):
        ahead = answer.tokens[at : at + 4]
        asked: dict[str, Callable[[], object]] = {
            "how many of four tokens": partial(matcher.validate_tokens, ahead),
            "four tokens and back": partial(forth_and_back, matcher, ahead),
            "a fork": matcher.deep_copy,
            "forced tokens": matcher.compute_ff_tokens,
            "a mask": matcher.compute_bitmask,
            "a mask, unpacked": mine.allowed,
        }
        for name, ask in asked.items() if at % 5 == 0 else ():
            times = []
            for _ in range(300):
                began = time.perf_counter()
                ask()
                times.append((time.perf_counter() - began) * 1e6)
            found.setdefault(name, []).append(statistics.median(times))
        mine.push(token)
    for name, medians in found.items():
        print(f"{name}: {min(medians):.1f} to {max(medians):.1f} microseconds")


def forth_and_back(matcher: LLMatcher, tokens: list[int]) -> None:
    matcher.rollback(matcher.try_consume_tokens(tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--speculation", default="8,auto")
    parser.add_argument("--asked", choices=ASKED, nargs="+", default=list(ASKED))
    options = parser.parse_args()
    config = EngineConfig(rows=options.rows, prefix_reuse=False)
    engines = {name: Engine.from_artifact(options.artifact, config) for name in FORMS}
    first = engines[FORMS[0]]
    made = Prompts(first.manifest, first.tokenizer)
    objects = ("abs", "os.path.join", "list.append", "json.dumps", "re.match", "time.sleep", "dict.get", "str.split")
    prompts = [made.question(f"What does {objects[i % 8]} do?{' ' * (i // 8)}") for i in range(options.questions)]
    costs(first, first.generate(prompts[:1], SamplingParams(96, structured_outputs=ASKED["a schema"]))[0])
    print(
        f"{options.rows} at a time, temperature {options.temperature:g}: tokens per step | tokens/s | over {FORMS[0]!r}"
    )
    for what in options.asked:
        outputs = ASKED[what]
        for asked in options.speculation.split(","):
            nodes = int(asked) if asked.isdigit() else asked
            params = SamplingParams(96, options.temperature, seed=1, structured_outputs=outputs, speculation=nodes)
            steps: dict[str, list[float]] = {name: [] for name in FORMS}
            speeds: dict[str, list[float]] = {name: [] for name in FORMS}
            texts: dict[str, list[str]] = {}
            for turn in range(options.turns + 1):
                for name in FORMS if turn % 2 else FORMS[::-1]:
                    with form(name):
                        answers, per_step, speed = run(engines[name], prompts, params)
                    texts[name] = [s.text for s in answers]
                    if turn:  # the first warms up
                        steps[name].append(per_step)
                        speeds[name].append(speed)
            if "fp32" in first.manifest.name:
                assert len(set(map(tuple, texts.values()))) == 1, "what is drafted changed what is said"
            for name in FORMS:
                ratios = [mine / theirs for mine, theirs in zip(speeds[name], speeds[FORMS[0]], strict=True)]
                print(
                    f"{what}, {asked}, {name} | {statistics.median(steps[name]):.2f} |"
                    f" {statistics.median(speeds[name]):5.0f} | {statistics.median(ratios):.2f}"
                    f" ({min(ratios):.2f} to {max(ratios):.2f})"
                )


if __name__ == "__main__":
    main()
