"""All heads against as many as pay, tokens a second of one engine each, in turns, with simulated acceptance.

Run:  .venv/bin/python -m docs.decisions.experiments.heads_run ARTIFACT [SEQUENCES]
"""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from runtime.asking import Asking
from runtime.bench.compare import Ratio, Spread
from runtime.bench.markdown import ratio, spread, table
from runtime.bench.prompts import random_prompts
from runtime.bench.simulated import SimulatedSession
from runtime.cost import CostModel
from runtime.depths import Depths
from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams
from runtime.session import Draft

TOKENS, PROMPT, SECONDS = 32, 16, 60
SPECULATIONS: tuple[Any, ...] = ("off", 4, "auto")


class Counted(SimulatedSession):
    """Counts how many heads ran."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner, 0)
        self.ran: Counter[int] = Counter()

    def heads(self, rows: list[int], depth: int) -> Draft:
        self.ran[depth] += 1
        return super().heads(rows, depth)


def seconds(engine: Engine, prompts: list[list[int]], speculation: Any, rows: int) -> float:
    params = SamplingParams(TOKENS, ignore_eos=True, speculation=speculation)
    began = time.perf_counter()
    for start in range(0, len(prompts), rows):
        engine.generate(prompts[start : start + rows], params)
    return time.perf_counter() - began


def main() -> None:
    artifact, rows = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    config = EngineConfig(rows=8, prefill_slowdown=1e9, kv_memory=1 << 30, lookup=False, prefix_reuse=False)
    first = Engine.from_artifact(artifact, config)
    model, heads = first._pace.cost.to_json(), first.manifest.medusa_heads
    forms = [(speculation, every) for speculation in SPECULATIONS for every in (True, False)]
    engines = {}
    for form in forms:
        cost = CostModel.from_json(model | ({"base": 1.0} if form[1] else {}))
        engines[form] = Engine(Counted(first.session), first.tokenizer, config, cost)
    times: dict[tuple[Any, bool], list[float]] = {form: [] for form in forms}
    prompts = random_prompts(256, PROMPT, first.manifest.vocab, 0)
    depth = Asking.depth
    end, turn = time.perf_counter() + SECONDS, 0
    while time.perf_counter() < end:
        chosen = [prompts[(turn * 2 * rows + i) % len(prompts)] for i in range(2 * rows)]
        for form in forms[turn % len(forms) :] + forms[: turn % len(forms)]:
            all_of_them = lambda *_: heads  # noqa: E731
            asked_all = lambda self, habits: (depth(self, habits), heads)[1]  # noqa: E731
            with (
                patch.object(Depths, "choose", all_of_them if form[1] else Depths.choose),
                patch.object(Depths, "share", (lambda *_: 1.0) if form[1] else Depths.share),
                patch.object(Asking, "depth", asked_all if form[1] else depth),
            ):
                times[form].append(seconds(engines[form], chosen, form[0], rows))
        turn += 1
    lines = [["speculation", "all heads, tokens a second", "as many as pay", "ratio", "times so many heads ran"]]
    for speculation in SPECULATIONS:
        both = [np.array(times[speculation, every][1:]) for every in (True, False)]
        rates = [spread(Spread.of((2 * rows * TOKENS / taken).tolist()), 1) for taken in both]
        session = engines[speculation, False].session
        assert isinstance(session, Counted)
        lines.append([str(speculation), *rates, ratio(Ratio.of((both[0] / both[1]).tolist())),
                      str(dict(sorted(session.ran.items())))])  # fmt: skip
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
