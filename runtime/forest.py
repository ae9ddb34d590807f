"""The draft trees of one step, all rows together.

Each row has *slots*: the root, the paths of the universe with this step's draft tokens in them, and one continuation
found by prompt lookup, which shares the nodes of its tokens with the universe as far as it can. A slot's value is the
log-probability that verification comes to it; it never exceeds its parent's, so the best slots of a row are a tree.

Dimension words: [rows] sequences that draft, [drafted] those of them with heads' drafts, [slots], [chosen] slots that
become nodes, [nodes] nodes of the widest tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.acceptance import Acceptance
from runtime.session import Draft
from runtime.tree import DEPTH_COST, Tree, Universe

LOOKUP = 16  # tokens of a continuation at most
NEVER = np.float32(-1e30)  # below every value of a slot that is there


@dataclass(frozen=True, slots=True)
class Forest:
    """One step's trees, and what is known of their nodes: row after row, roots included."""

    trees: list[Tree]  # [rows]
    start: np.ndarray  # int64 [rows + 1], where each tree's nodes begin below
    parent: np.ndarray  # int64 [chosen], the parent's place in these arrays; a root is its own
    cells: np.ndarray  # int64 [chosen], of the acceptance that a node's chance is from
    chance: np.ndarray  # float32 [chosen], to be right once its parent is
    reach: np.ndarray  # float32 [chosen], to be accepted; 1 for a root


class Candidates:
    """The slots of some rows, from which a step's nodes are chosen."""

    def __init__(self, universe: Universe, acceptance: Acceptance, roots: Sequence[int]) -> None:
        self._universe, self._acceptance = universe, acceptance
        rows, paths = len(roots), len(universe.paths)
        shape = (rows, paths + LOOKUP)
        self.value = np.full(shape, -np.inf, np.float32)  # [rows, slots]
        self.value[:, 0] = 0.0
        self._chance = np.zeros(shape, np.float32)  # log-probability to be right once the parent is
        self._cell = np.zeros(shape, np.int64)
        self._token = np.zeros(shape, np.int64)
        self._token[:, 0] = roots
        self._parent = np.empty(shape, np.int64)
        self._parent[:, :paths] = universe.parent
        self._depth = np.empty(shape, np.int64)
        self._depth[:, :paths] = universe.depth

    def add_draft(self, rows: Sequence[int], draft: Draft, trust: np.ndarray) -> None:
        """What the heads say of `rows` [drafted]; `trust` [drafted] scales how often they are right."""
        universe, block = self._universe, len(self._universe.paths)
        chance, cells = self._acceptance.heads(draft.logprobs)  # [drafted, heads, top_k]
        chance += np.log(trust, dtype=np.float32)[:, None, None]
        np.minimum(chance, 0.0, out=chance)
        chance, cells = chance.reshape(len(rows), -1), cells.reshape(len(rows), -1)
        index = np.asarray(rows)
        self.value[index, :block] = universe.sum(chance)
        self._chance[index, 1:block] = chance.take(universe.last, axis=1)
        self._cell[index, 1:block] = cells.take(universe.last, axis=1)
        self._token[index, 1:block] = draft.tokens.reshape(len(rows), -1).take(universe.last, axis=1)

    def add_continuation(self, row: int, matched: int, tokens: list[int], ranks: np.ndarray | None) -> None:
        """What prompt lookup found for a row, at most LOOKUP `tokens` after `matched` equal ones.

        `ranks` [heads, top_k] are the row's draft tokens, if it has any.
        """
        chances, cells = self._acceptance.lookup(matched, len(tokens))
        drafted = [] if ranks is None else ranks[: len(tokens)].tolist()
        value, at, free = 0.0, 0, len(self._universe.paths)
        for i, (token, chance, cell) in enumerate(zip(tokens, chances.tolist(), cells.tolist(), strict=True)):
            slot = None
            if at < len(self._universe.paths) and i < len(drafted) and token in drafted[i]:
                slot = self._universe.child[at].get(drafted[i].index(token))
            value += chance - DEPTH_COST
            if slot is None:
                slot, free = free, free + 1
                self._parent[row, slot], self._depth[row, slot] = at, i + 1
                self._token[row, slot] = token
            elif self.value[row, slot] >= value:  # the heads are surer of it
                value, at = float(self.value[row, slot]), slot
                continue
            self.value[row, slot], self._chance[row, slot], self._cell[row, slot] = value, chance, cell
            at = slot

    def ranked(self, most: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best slots of each row, `most` [rows] of them, roots left out: row, slot and value, each [chosen].

        Best first over all rows: any beginning of it is a tree in every row.
        """
        limit = np.asarray(most)
        width = self.value.shape[1]
        least = np.sort(self.value, axis=1)[np.arange(len(limit)), np.maximum(width - 1 - limit, 0)]
        taken = self.value >= np.maximum(least, NEVER)[:, None]
        taken[:, 0] = False
        row, slot = np.nonzero(taken)
        value = self.value[row, slot]
        order = np.argsort(-value, kind="stable")
        row, slot, value = row[order], slot[order], value[order]
        if (np.bincount(row, minlength=len(limit)) > limit).any():  # a tie at the end of a row
            within = np.cumsum(row[:, None] == np.arange(len(limit)), axis=0)[np.arange(len(row)), row] <= limit[row]
            row, slot, value = row[within], slot[within], value[within]
        return row, slot, value

    def build(self, row: np.ndarray, slot: np.ndarray) -> Forest:
        """The trees of chosen slots (row [chosen], slot [chosen]), which hold every chosen slot's parent."""
        rows, width = self.value.shape
        flat = np.concatenate([np.arange(rows) * width, row * width + slot])
        flat.sort()  # row by row, each in depth-first order, continuations last
        start = flat.searchsorted(np.arange(rows + 1) * width)
        row = flat // width
        place = np.empty(rows * width, np.int64)
        place[flat] = np.arange(len(flat))
        up = self._parent.ravel()[flat]
        up[start[:-1]] = 0
        parent = place[row * width + up]
        tokens, depth = self._token.ravel()[flat].tolist(), self._depth.ravel()[flat]
        above = _ancestors(parent, start, row, int(depth.max()))
        local = (parent - start[row]).tolist()
        bounds = start.tolist()
        trees = []
        for i, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            n = end - begin
            trees.append(Tree(tokens[begin:end], [-1, *local[begin + 1 : end]], depth[begin:end], above[i, :n, :n]))
        chance = np.exp(self._chance.ravel()[flat])
        return Forest(trees, start, parent, self._cell.ravel()[flat], chance, np.exp(self.value.ravel()[flat]))


def _ancestors(parent: np.ndarray, start: np.ndarray, row: np.ndarray, deepest: int) -> np.ndarray:
    """bool [rows, nodes, nodes]: which nodes of its tree a node sees, itself included."""
    nodes = int(np.diff(start).max())
    place = np.arange(len(parent)) - start[row]
    jump = np.zeros((len(start) - 1, nodes), np.int64)
    jump[row, place] = parent - start[row]
    sees = np.zeros((*jump.shape, nodes), bool)
    sees[row, place, place] = True
    index = np.arange(len(jump))[:, None]
    covered = 1  # nodes that `sees` knows on the way up; each turn doubles it
    while covered <= deepest:
        sees |= sees[index, jump]
        jump = jump[index, jump]
        covered *= 2
    return sees
