"""Prompt lookup on and off, tokens a second in turns: answers that repeat what the prompt has, and ones that do not.

A question to the demo model has an answer of which little stood anywhere before. Asked once more in the same chat it
is answered in the same words.

Run:  .venv/bin/python -m docs.decisions.experiments.lookup ARTIFACT [TURNS]
"""

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from runtime.bench.compare import Ratio, Spread
from runtime.bench.markdown import ratio, spread, table
from runtime.bench.prompts import questions
from runtime.cost import CostModel
from runtime.engine import Engine
from runtime.forest import LOOKUP
from runtime.lookup import Lookup
from runtime.params import EngineConfig, SamplingParams
from runtime.prompts import Prompts

QUESTIONS, TEMPLATE, WITHOUT = Path("export/demo/data.jsonl"), "What does {name} do?", "heldout"
ROWS, TOKENS = 8, 64
GREEDY = SamplingParams(TOKENS)


def speed(engine: Engine, prompts: list[list[int]]) -> float:
    """Tokens a second, as many answers at a time as there are rows."""
    began = time.perf_counter()
    tokens = sum(len(s.tokens) for s in engine.generate(prompts, GREEDY))
    return tokens / (time.perf_counter() - began)


def costs(prompts: list[list[int]]) -> None:
    """What it takes to ask, four tokens after the last time, and to index: medians over prompts."""
    asking, indexing = [], []
    for prompt in prompts:
        half = len(prompt) // 2
        began = time.perf_counter()
        lookup = Lookup(prompt[:half])
        indexed = time.perf_counter()
        for at in range(half, len(prompt) - 3, 4):
            lookup.extend(prompt[at : at + 4])
            lookup.continuation(LOOKUP)
        indexing.append((indexed - began) / half)
        asking.append((time.perf_counter() - indexed) / len(range(half, len(prompt) - 3, 4)))
    ask, index = statistics.median(asking) * 1e6, statistics.median(indexing) * 1e6
    print(f"asking takes {ask:.1f} microseconds, as long as {ask / index:.0f} tokens take to be indexed\n")


def main() -> None:
    artifact, turns = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100
    config = EngineConfig(rows=ROWS, kv_memory=1 << 30, prefix_reuse=False)
    first = Engine.from_artifact(artifact, config)
    cost, ask = first._pace.cost.to_json(), Prompts(first.manifest, first.tokenizer)
    texts = questions(QUESTIONS, TEMPLATE, WITHOUT, 0)
    answers = [s.text for s in first.generate([ask.question(text) for text in texts[: 16 * ROWS]], GREEDY)]
    new, again = [], []
    for text, answer in zip(texts, answers, strict=False):
        said = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        new.append(ask.chat(said[:1]))
        again.append(ask.chat([*said, said[0]]))
    costs(again)
    lines = [["artifact", "text", "at a time", "without lookup, tokens a second", "with", "with over without"]]
    for kind, prompts in (("new", new), ("repeated", again)):
        for at_once in (1, ROWS):
            # of each text its own engines: what they learnt of another kind of text is no part of this
            engines = {
                lookup: Engine(
                    first.session,
                    first.tokenizer,
                    replace(config, rows=at_once, lookup=lookup),
                    CostModel.from_json(cost),
                )
                for lookup in (False, True)
            }
            speeds: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(turns + 1):
                chosen = [prompts[(turn * 4 * ROWS + i) % len(prompts)] for i in range(4 * ROWS)]
                for lookup in (False, True) if turn % 2 else (True, False):
                    speeds[lookup].append(speed(engines[lookup], chosen))
            without, with_it = speeds[False][1:], speeds[True][1:]
            over = Ratio.of([b / a for a, b in zip(without, with_it, strict=True)])
            rates = (spread(Spread.of(part), 0) for part in (without, with_it))
            lines.append([artifact.name, kind, str(at_once), *rates, ratio(over)])
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
