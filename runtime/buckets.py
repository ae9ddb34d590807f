"""How the padded form's runs are shaped: which rows of a step run together, padded to how many nodes.

A run's shape is (rows, nodes), each of a few values, so that graphs captured for a shape are used again. It costs at
least what reading the weights costs: `free` tokens' worth, which depends on the provider.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.params import MAX_NODES


@dataclass(frozen=True, slots=True)
class Run:
    """Cache rows `first` .. `first + rows` with `nodes` each. `narrow`: all rows in use, from 0 on, and captured."""

    first: int
    rows: int
    nodes: int
    narrow: bool


def row_bucket(rows: int, most: int) -> int:
    """The next power of two, or `most` if that is less."""
    return min(1 << (rows - 1).bit_length(), most)


def row_buckets(most: int) -> list[int]:
    return sorted({row_bucket(rows, most) for rows in range(1, most + 1)})


def node_bucket(nodes: int) -> int:
    """The next power of two up to the largest tree, then its multiples: padding stays below it."""
    return 1 << (nodes - 1).bit_length() if nodes <= MAX_NODES else -(-nodes // MAX_NODES) * MAX_NODES


def node_buckets() -> list[int]:
    """Those of narrow runs."""
    return sorted({node_bucket(nodes) for nodes in range(1, MAX_NODES + 1)})


def plan(counts: Sequence[int], most: int, least: int, free: int) -> tuple[list[Run], list[int]]:
    """The runs of a step, in order, and for each row which of them is its own.

    `counts` [rows] nodes of each row, `most` rows of the session, `least` nodes that a run has at least. Rows that are
    wide run alone, after the narrow run, in which they bring a placeholder: their own run writes over it.
    """
    widths = [node_bucket(max(count, least)) for count in counts]
    rows = row_bucket(len(counts), most)
    best: tuple[int, int] | None = None
    for narrow in sorted({0, *(width for width in widths if width <= MAX_NODES)}):
        wide = sum(max(free, width) for width in widths if width > narrow)
        cost = wide + (max(free, rows * narrow) if narrow else 0)
        if best is None or cost <= best[0]:  # of equal ones the one with fewer runs
            best = cost, narrow
    assert best is not None
    narrow = best[1]
    runs = [Run(0, rows, narrow, narrow=True)] if narrow else []
    own = []
    for row, width in enumerate(widths):
        if width <= narrow:
            own.append(0)
        else:
            own.append(len(runs))
            runs.append(Run(row, 1, width, narrow=False))
    return runs, own
