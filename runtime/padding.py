"""A step's packed rows as the padded form takes them: every row of a run with the same number of nodes."""

from collections.abc import Mapping

import numpy as np

from runtime.buckets import Run
from runtime.session import Batch

Shapes = list[tuple[str, str, tuple[int, ...]]]  # name, type, shape


def shapes(rows: int, nodes: int, wanted: int) -> Shapes:
    """Of a run's inputs."""
    return [
        ("tokens", "int64", (rows, nodes)), ("depth", "int64", (rows, nodes)), ("length", "int64", (rows,)),
        ("count", "int64", (rows,)), ("wanted", "int64", (wanted,)), ("ancestors", "bool", (rows, nodes, nodes)),
    ]  # fmt: skip


def pad(batch: Batch, run: Run, mine: np.ndarray, capacity: int, into: Mapping[str, np.ndarray]) -> None:
    """Writes a run's inputs, but for `wanted`, into arrays of `shapes`.

    `mine` bool [rows of the batch]: whose nodes this run computes. Another row in use brings a placeholder where its
    own run will write. A row past those in use writes into the last slots, where no committed token lies.
    """
    last = min(run.first + run.rows, len(batch.count))
    rows = slice(run.first, last)
    used = last - run.first
    counts = np.where(mine[rows], batch.count[rows], 0)  # [used]
    into["length"][:used], into["length"][used:] = batch.length[rows], capacity - run.nodes
    into["count"][:used], into["count"][used:] = np.maximum(counts, 1), 1
    row = np.repeat(np.arange(used), counts)  # [nodes of all rows]
    node = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.cumsum(batch.count) - batch.count
    source = start[rows][row] + node
    for name, packed in (("tokens", batch.tokens), ("depth", batch.depth)):
        into[name][:] = 0
        into[name][row, node] = packed[source]
    real = np.zeros((run.rows, run.nodes), bool)
    real[row, node] = True
    width = min(run.nodes, batch.ancestors.shape[1])
    seen = into["ancestors"]
    seen[:] = False
    inside = real[:used, :width]
    seen[:used, :width, :width] = batch.ancestors[rows, :width, :width] & inside[:, :, None] & inside[:, None, :]
    seen[:, :, 0] |= ~real
