"""How well the cost model predicts real steps: mixed ones, none of which its survey timed.

Each step has 1 to 8 rows with trees of 2 to 16 nodes, each row of a length of its own between 20 and 900 tokens; every
fourth one also prefills a chunk. Steps are timed in turns, and a step's time is the quantile that the survey takes.

as measured   the model as it comes from the survey
as learnt     the same after it has observed every step of the first rounds once, as the engine lets it

Run:  .venv/bin/python -m docs.decisions.experiments.cost_model artifacts/demo-int8
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from runtime.batch import Packer
from runtime.cost import CostModel
from runtime.manifest import Manifest
from runtime.profile import measure
from runtime.ragged import RaggedSession
from runtime.session import Batch
from runtime.survey import QUANTILE
from runtime.tree import Tree

ROWS, STEPS, ROUNDS, LEARNING = 8, 150, 12, 4
LONGEST, WIDEST, CHUNK = 900, 16, 64


def chain(tokens: int) -> Tree:
    return Tree([5] * tokens, list(range(-1, tokens - 1)), np.arange(tokens), np.tri(tokens, dtype=bool))


def mixed_steps(packer: Packer, rng: np.random.Generator) -> list[Batch]:
    steps = []
    for i in range(STEPS):
        rows = int(rng.integers(1, ROWS + 1))
        lengths, nodes = rng.integers(20, LONGEST, rows).tolist(), rng.integers(2, WIDEST + 1, rows).tolist()
        works: list[tuple[int, list[int] | Tree]] = [(n, chain(k)) for n, k in zip(lengths, nodes, strict=True)]
        if i % 4 == 0:
            works[0] = (lengths[0], [5] * int(rng.integers(8, CHUNK + 1)))
        steps.append(packer.pack(works)[0])
    return steps


def features(batch: Batch) -> tuple[int, int, int, int, int, int]:
    """What the cost model asks for, in its order."""
    tokens = len(batch.tokens)
    attended = int((batch.count * (batch.length + batch.count)).sum())
    return (
        len(batch.count),
        tokens,
        int(batch.count.max()),
        attended,
        max(0, tokens - len(batch.wanted)),
        int(batch.length.sum()),
    )


def errors(cost: CostModel, steps: list[Batch], seconds: np.ndarray, keys: bool = True) -> str:
    """Of the ratios between steps: what all steps have in common is taken out, and said."""
    predicted = np.array([cost.decoder(*features(batch)[: 6 if keys else 5]) for batch in steps])
    ratio = np.log(predicted / seconds)
    common = np.median(ratio)
    wrong = np.abs(np.expm1(ratio - common))
    middle, most = np.quantile(wrong, [0.5, 0.95])
    return f"error median {middle:.1%}, 95th percentile {most:.1%}; all x {np.exp(common):.2f}"


def run(artifact: Path, threads: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
    manifest = Manifest.read(artifact)
    session = RaggedSession(artifact, manifest, ROWS, threads)
    began = clock()
    cost = measure(session, True, manifest.even_tokens, ROWS, lambda message: None, clock)
    print(f"{manifest.name}: measured in {clock() - began:.1f} s")
    session.cache[...] = np.random.default_rng(1).standard_normal(session.cache.shape, np.float32)
    rng = np.random.default_rng(0)
    steps = mixed_steps(Packer(True, manifest.even_tokens, LONGEST), rng)
    times = np.empty((ROUNDS, STEPS))
    for i in range(ROUNDS):
        for j in rng.permutation(STEPS):
            began = clock()
            session.run(steps[j])
            times[i, j] = clock() - began
    seconds = np.quantile(times[LEARNING:], QUANTILE, axis=0)
    spread = float(np.median(np.quantile(times, 1 - QUANTILE, axis=0) / np.quantile(times, QUANTILE, axis=0) - 1))
    print(
        f"steps of {seconds.min() * 1e3:.1f} to {seconds.max() * 1e3:.1f} ms; upper quartile of a step + {spread:.0%}"
    )
    for name, given in (("as measured", True), ("as measured, keys not given", False)):
        print(f"{name}: {errors(cost, steps, seconds, given)}")
    for i in range(LEARNING):
        for j, step in enumerate(steps):
            rows, tokens, widest, attended, silent, keys = features(step)
            cost.observe_decoder(rows, tokens, widest, attended, silent, times[i, j], keys)
    print(f"as learnt: {errors(cost, steps, seconds)}")


if __name__ == "__main__":
    for path in sys.argv[1:]:
        run(Path(path))
