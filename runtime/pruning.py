"""What a grammar leaves of the candidates: nodes that it refuses are taken out before a tree is chosen.

The model's own token after a node is always one that the grammar allows there, so a refused node is never accepted, and
in a tree it would stand in the place of one that may be. A matcher tells how many tokens of a path it could go on with
without moving, in one or two microseconds; only paths that would be drafted are asked about.

Dimension words: [heads] Medusa heads, [top_k] ranks of a head.
"""

from collections.abc import Callable

import numpy as np

from runtime.forest import Candidates
from runtime.tree import Universe

Valid = Callable[[list[int]], int]  # tokens to how many of them, one after the other, a text could go on with


def refused_first(tokens: np.ndarray, valid: Valid) -> list[bool]:
    """Which of the tokens [top_k] cannot follow a row's root."""
    return [valid([token]) == 0 for token in tokens.tolist()]


def prune(
    candidates: Candidates, row: int, universe: Universe, tokens: np.ndarray, most: int, least: float, valid: Valid
) -> None:
    """Takes refused slots of a row out, until the `most` best of those worth at least `least` hold none.

    `tokens` [heads, top_k] are the row's drafts.
    """
    drafts, sound = tokens.tolist(), {0}
    while True:
        refused: set[int] = set()
        for slot in reversed(candidates.top(row, most, least)):  # what lies deep answers for all above it
            if slot in sound or not refused.isdisjoint(route := universe.routes[slot]):
                continue
            fitting = valid([drafts[head][rank] for head, rank in enumerate(universe.paths[slot])])
            sound.update(route[:fitting])
            if fitting < len(route):
                refused.add(route[fitting])
                candidates.refuse(row, route[fitting])
        if not refused:
            return
