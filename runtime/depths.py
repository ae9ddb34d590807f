"""How many heads are worth running: the first few, as long as the next one's nodes bring more than its time costs.

That has to be known before they run, so it is learnt from the trees that were chosen lately. Without a deep node the
tree would hold the best node left out instead: by as much as its chance is above that one's it is worth its head. What
heads would bring that do not run is looked at again now and then.

Dimension words: [heads] Medusa heads, [nodes] those chosen.
"""

from dataclasses import dataclass

import numpy as np

from runtime.cost import CostModel

RECENT = 0.2  # weight of the newest trees in what is known
LOOK_AGAIN = 0.005  # of the time may go into heads that do not pay


@dataclass(slots=True)
class Known:
    """Of about so many rows."""

    worth: np.ndarray  # [heads] tokens a row that the nodes of each depth bring
    depth: int  # heads that pay
    extra: float  # seconds that the others take
    looked: float  # the time when all ran last


class Depths:
    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._shares = np.arange(1, heads + 1) / max(heads, 1)
        self._known: dict[int, Known] = {}  # by the rows' power of two

    def choose(self, rows: int, now: float) -> int:
        """How many heads to run for so many rows; `now` counts seconds spent in the session."""
        known = self._known.get(rows.bit_length())
        if known is None:
            return self._heads
        if known.extra <= LOOK_AGAIN * (now - known.looked):
            known.looked = now
            return self._heads
        return known.depth

    def share(self, rows: int) -> float:
        """Of the heads that pay for so many rows, or for the nearest number that is known."""
        if not self._known:
            return 1.0
        nearest = min(self._known, key=lambda known: abs(known - rows.bit_length()))
        return self._known[nearest].depth / self._heads

    def observe(
        self, rows: int, ran: int, depth: np.ndarray, surplus: np.ndarray, rate: float, cost: CostModel, now: float
    ) -> None:
        """Learns from one step's trees, for which `ran` heads proposed nodes to so many rows.

        `depth` [nodes], from 1, and by how much a node's chance is above the best one's left out. `rate` is in tokens a
        second.
        """
        worth = np.bincount(depth - 1, surplus, self._heads)[: self._heads] / rows
        known = self._known.get(rows.bit_length())
        if known is None:
            if ran < self._heads:
                return
            known = self._known[rows.bit_length()] = Known(worth, ran, 0.0, now)
        known.worth[:ran] += RECENT * (worth[:ran] - known.worth[:ran])
        seconds = cost.heads(rows, self._shares)
        known.depth = int((known.worth.cumsum() * rows - rate * seconds).argmax()) + 1
        known.extra = float(seconds[-1] - seconds[known.depth - 1])
