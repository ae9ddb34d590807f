"""What drafting costs on the host, microseconds: choosing nodes, and building trees of 8 rows x 16 nodes.

`python -m docs.decisions.experiments.drafting`
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from runtime.acceptance import Acceptance
from runtime.budget import Nodes, Prices, best
from runtime.cost import CostModel
from runtime.forest import NEVER, Candidates
from runtime.load import Load
from runtime.session import Draft
from runtime.tree import PUBLISHED_ACCURACY, Universe

ROWS, NODES, TOP_K = 8, 16, 10


def microseconds(work: Callable[[], object], runs: int = 2000, swept: int = 0) -> str:
    """Of `runs` runs, before each of which `swept` bytes are read: what a decoder does to the processor's caches."""
    times, memory = [], np.ones(swept // 8)
    for _ in range(runs):
        memory.sum()
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1e6)
    low, median, high = statistics.quantiles(times, n=4)
    return f"{median:6.0f}  [{low:.0f}, {high:.0f}]"


def main() -> None:
    rng = np.random.default_rng(0)
    universe, acceptance = Universe(PUBLISHED_ACCURACY, TOP_K), Acceptance(len(PUBLISHED_ACCURACY))
    shape = (ROWS, len(PUBLISHED_ACCURACY), TOP_K)
    tokens = np.argsort(rng.random((*shape[:2], 500)), axis=-1)[..., :TOP_K]
    logprobs = np.sort(np.log(rng.dirichlet([0.3] * TOP_K, shape[:2])), axis=-1)[..., ::-1].astype(np.float32)
    draft, roots = Draft(tokens, logprobs), list(range(ROWS))
    points = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    line = [1e-3 + 2e-5 * n for n in points]
    cost = CostModel([1, ROWS], points, [line, line], [0.0] * len(points), [3e-4, 4e-4])
    prices = Prices(cost, 3e-3, 5e-3, 1e-5, 2000.0)
    lengths = np.full(ROWS, 200)
    load = Load(ROWS, ROWS, ROWS, 1, ROWS * 201, 0, 200 * ROWS, (ROWS * 201, 200 * ROWS))

    def begin() -> None:
        candidates.begin(roots, range(ROWS), draft, None)

    def all_of_it() -> None:
        begin()
        candidates.build(candidates.best(most, NEVER))

    candidates, most = Candidates(universe, acceptance), [NODES] * ROWS
    begin()
    places = candidates.best(most, NEVER)
    row, _, value = candidates.ranked(places)
    nodes = Nodes(row, np.exp(value), np.zeros(len(row), bool))

    print(f"{ROWS} rows x {NODES} nodes from a universe of {len(universe.paths)}, median [quartiles]")
    print(f"values of all candidates   {microseconds(begin)}")
    print(f"the best of each row       {microseconds(lambda: candidates.best(most, NEVER))}")
    print(f"tokens, parents, ancestors {microseconds(lambda: candidates.build(places))}")
    print(f"these three together       {microseconds(all_of_it)}")
    for megabytes in (16, 64):
        print(f"  after {megabytes} MB were read       {microseconds(all_of_it, 200, megabytes << 20)}")
    print(f"the budget over all rows   {microseconds(lambda: best(nodes, lengths, load, prices))}")


if __name__ == "__main__":
    main()
