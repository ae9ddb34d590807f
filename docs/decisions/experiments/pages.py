"""What it costs to return the pages of rows that nobody uses: short answers with a session that does, and with another.

`python -m docs.decisions.experiments.pages ARTIFACT [SPECULATION]`: tokens a second of whole answers, median
[quartiles] of alternating runs, and the median ratio of pairs.
"""

import sys
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from runtime.engine import Engine
from runtime.manifest import Manifest
from runtime.params import EngineConfig, SamplingParams
from runtime.profile import load_or_measure
from runtime.ragged import RaggedSession

ROWS, PROMPT, ANSWER, REQUESTS, PAIRS = 8, 40, 17, 64, 12


def engine_of(artifact: Path, memory: int) -> Engine:
    manifest = Manifest.read(artifact)
    config = EngineConfig(rows=ROWS, kv_memory=1 << 32, prefix_reuse=False, lookup=False)
    session = RaggedSession(artifact, manifest, ROWS, operators="native", memory=memory)
    cost = load_or_measure(artifact, session, config, lambda message: None)
    return Engine(session, Tokenizer.from_file(str(artifact / "tokenizer.json")), config, cost)


def speed(engine: Engine, prompts: list[list[int]], params: SamplingParams, at_a_time: int) -> float:
    began = time.perf_counter()
    for i in range(0, len(prompts), at_a_time):
        engine.generate(prompts[i : i + at_a_time], params)
    return len(prompts) * ANSWER / (time.perf_counter() - began)


def main(artifact: Path, speculation: str = "off") -> None:
    engines = {"returned": engine_of(artifact, 0), "kept": engine_of(artifact, 1 << 32)}
    prompts = np.random.default_rng(0).integers(5, engines["kept"].manifest.vocab, (REQUESTS, PROMPT)).tolist()
    params = SamplingParams(
        ANSWER, ignore_eos=True, speculation=int(speculation) if speculation.isdigit() else speculation
    )
    for at_a_time in (1, ROWS):
        found: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(PAIRS + 1):
            for name, engine in engines.items():
                found[name].append(speed(engine, prompts, params, at_a_time))
        for name, series in found.items():
            low, median, high = np.percentile(series[1:], [25, 50, 75])
            print(f"{at_a_time} at a time, pages {name}: {median:.0f} [{low:.0f}, {high:.0f}] tokens/s")
        ratio = np.array(found["kept"][1:]) / np.array(found["returned"][1:])
        print(
            f"{at_a_time} at a time: kept over returned {np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
