"""The native tree attention over keys and values in float32, float16 and int8: ms a layer, in turns.

Layers have caches of their own, more than the processor's caches hold, so that keys and values come from memory.

Run:  .venv/bin/python -m docs.decisions.experiments.cache_types
"""

import time

import numpy as np

from docs.decisions.experiments.tree_attention import SHAPES, TREE
from runtime.bench.compare import Spread
from runtime.bench.markdown import spread, table
from runtime.machine import usable_cores
from runtime.native.library import BUILD_COMMAND, find
from tests.native.attention import TYPES, Cache, Kernel, Shape, Step, chain

STEPS = ((8, 8, 275), (8, 8, 1500), (8, 1, 275), (8, 1, 1500), (1, 8, 1500), (1, 1, 1500))
LAYERS, CAPACITY, SECONDS, FEWEST = 4, 1536, 3.0, 7


def compare(heads: tuple[int, int, int], rows: int, nodes: int, length: int, path: str) -> list[str]:
    rng, library = np.random.default_rng(0), find()
    assert library is not None
    width = (heads[0] + 2 * heads[1]) * heads[2]
    parents = TREE if nodes == len(TREE) else chain(nodes)
    step = Step(np.full(rows, length), [list(parents)] * rows, rng.standard_normal((rows * nodes, width), np.float32))
    layers, held = {}, []
    for name in TYPES:
        shape = Shape(*heads, CAPACITY, name)
        caches = [Cache.empty(shape, rows) for _ in range(LAYERS)]  # what stands there takes no other time
        made = [Kernel(library, path, usable_cores()).prepare(shape, step, cache) for cache in caches]
        held += [caches, made]
        layers[name] = [call for call, _ in made]
    times: dict[str, list[float]] = {name: [] for name in TYPES}
    began = time.perf_counter()
    while len(times["int8"]) <= FEWEST or time.perf_counter() - began < SECONDS:
        for name, calls in layers.items():
            start = time.perf_counter()
            for call in calls:
                call()
            times[name].append((time.perf_counter() - start) / LAYERS * 1e3)
    name = f"{heads[0]} / {heads[1]} heads of {heads[2]}, {rows} x {nodes} over {length}"
    return [name, *(spread(Spread.of(taken[1:]), 3) for taken in times.values())]


def main() -> None:
    library = find()
    if library is None:
        raise SystemExit(f"native operators are not built: {BUILD_COMMAND}")
    rows = [["rows x nodes over cached tokens", *TYPES]]
    rows += [compare(heads, *step, library.path) for heads in SHAPES for step in STEPS]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
