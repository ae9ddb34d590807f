"""A whole decoder step with native operators and with stock ones, by rows and nodes.

`python -m docs.decisions.experiments.native_step ARTIFACT`: ms, medians [quartiles] of alternating runs; rows have
128 committed tokens each.
"""

import sys
import time
from pathlib import Path

import numpy as np

from docs.decisions.experiments.step import batch
from runtime.batch import Packer
from runtime.bench.markdown import table
from runtime.manifest import Manifest
from runtime.ragged import RaggedSession

ROWS = 8
SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (8, 1), (8, 4), (8, 8))  # rows, nodes of each
SECONDS, LEAST = 6.0, 5  # of each shape; runs of each


def main(artifact: Path) -> None:
    manifest = Manifest.read(artifact)
    sessions = {kind: RaggedSession(artifact, manifest, ROWS, operators=kind) for kind in ("native", "stock")}
    packer = Packer(True, manifest.even_tokens, manifest.capacity)
    lines = []
    for rows, nodes in SHAPES:
        step = batch(packer, rows, nodes)
        times: dict[str, list[float]] = {kind: [] for kind in sessions}
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(times["stock"]) <= LEAST:
            for kind, session in sessions.items():
                began = time.perf_counter()
                session.run(step)
                times[kind].append((time.perf_counter() - began) * 1e3)
        quartiles = {kind: np.percentile(series[1:], [25, 50, 75]) for kind, series in times.items()}
        cells = [f"{median:.2f} [{low:.2f}, {high:.2f}]" for low, median, high in quartiles.values()]
        lines.append([f"{rows} x {nodes}", *cells, f"{quartiles['stock'][1] / quartiles['native'][1]:.2f}"])
    print(f"{manifest.name}, {sessions['native'].provider}; ms a step")
    print("\n".join(table([["rows x nodes", "native", "stock", "stock over native"], *lines])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
