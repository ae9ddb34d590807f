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
NEVER = -1e30  # below every value of a slot that is there


@dataclass(frozen=True, slots=True)
class Forest:
    """One step's trees, and what is known of their nodes: row after row, roots included."""

    trees: list[Tree]  # [rows]
    start: np.ndarray  # int64 [rows + 1], where each tree's nodes begin below
    parent: np.ndarray  # int64 [chosen], the parent's place in these arrays; a root is its own
    cells: np.ndarray  # int64 [chosen], of the acceptance that a node's chance is from
    chance: np.ndarray  # float32 [chosen], logarithm of the chance to be right once its parent is
    value: np.ndarray  # float32 [chosen], logarithm of the chance to be accepted; 0 for a root
    continued: bool  # whether there are nodes by prompt lookup


class Candidates:
    """The slots of some rows, from which a step's nodes are chosen.

    What is known of a slot's last step lies in its *source*: a column for each rank of the heads, which several paths
    share, one for each token of the continuation, and one for the root.
    """

    def __init__(self, universe: Universe, acceptance: Acceptance, roots: Sequence[int]) -> None:
        self._universe, self._acceptance = universe, acceptance
        rows, self._paths, self._ranks = len(roots), len(universe.paths), universe.ranks
        slots, sources = self._paths + LOOKUP, self._ranks + LOOKUP + 1
        self.value = np.full((rows, slots), -np.inf, np.float32)
        self.value[:, 0] = 0.0
        self._continued = False
        # [slots], and [rows, slots] once there are continuations
        self._parent = np.concatenate([universe.parent, np.zeros(LOOKUP, np.int64)])
        own = np.arange(self._ranks, sources - 1)
        self._source = np.concatenate([[sources - 1], universe.last, own])
        self._token = np.empty((rows, sources), np.int64)
        self._token[:, -1] = roots
        self._chance = np.zeros((rows, sources), np.float32)  # log-probability to be right once the parent is
        self._cell = np.zeros((rows, sources), np.int64)

    def add_draft(self, rows: Sequence[int], draft: Draft, trust: np.ndarray) -> None:
        """What the heads say of `rows` [drafted]; `trust` [drafted] scales how often they are right."""
        chance, cells = self._acceptance.heads(draft.logprobs)  # [drafted, heads, top_k]
        chance += np.log(trust, dtype=np.float32)[:, None, None]
        np.minimum(chance, 0.0, out=chance)
        shape = (len(rows), self._ranks)
        chance = chance.reshape(shape)
        every = len(rows) == len(self.value)
        index: slice | np.ndarray = slice(None) if every else np.asarray(rows)
        self.value[index, : self._paths] = self._universe.sum(chance)
        self._chance[index, : self._ranks] = chance
        self._cell[index, : self._ranks] = cells.reshape(shape)
        self._token[index, : self._ranks] = draft.tokens.reshape(shape)

    def add_continuation(self, row: int, matched: int, tokens: list[int], ranks: np.ndarray | None) -> None:
        """What prompt lookup found for a row, at most LOOKUP `tokens` after `matched` equal ones.

        `ranks` [heads, top_k] are the row's draft tokens, if it has any.
        """
        if not self._continued:
            self._continued = True
            self._parent = np.tile(self._parent, (len(self.value), 1))
            self._source = np.tile(self._source, (len(self.value), 1))
        chances, cells = self._acceptance.lookup(matched, len(tokens))
        columns = slice(self._ranks, self._ranks + len(tokens))
        self._token[row, columns], self._chance[row, columns], self._cell[row, columns] = tokens, chances, cells
        drafted = [] if ranks is None else ranks[: len(tokens)].tolist()
        value, at = 0.0, 0
        for i, (token, chance) in enumerate(zip(tokens, chances.tolist(), strict=True)):
            slot, value = None, value + chance - DEPTH_COST
            if at < self._paths and i < len(drafted) and token in drafted[i]:
                slot = self._universe.child[at].get(drafted[i].index(token))
            if slot is None:
                slot = self._paths + i
                self._parent[row, slot] = at
            elif self.value[row, slot] >= value:  # the heads are surer of it
                value, at = float(self.value[row, slot]), slot
                continue
            self.value[row, slot], self._source[row, slot], at = value, self._ranks + i, slot

    def ranked(self, most: Sequence[int], least: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best slots of each row, `most` [rows] of them, roots left out: row, slot and value, each [chosen].

        Slots whose value is below the row's `least` are left out too. Best first over all rows: any beginning of it is
        a tree in every row.
        """
        limit = np.asarray(most)
        width = self.value.shape[1]
        ordered = self.value.copy()
        ordered.sort(axis=1)
        last = ordered[np.arange(len(limit)), np.maximum(width - 1 - limit, 0)]
        taken = self.value >= np.maximum(last, least)[:, None]
        taken[:, 0] = False
        row, slot = np.nonzero(taken)
        value = self.value[row, slot]
        order = (-value).argsort(kind="stable")
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
        bounds = start.tolist()
        nodes = max(end - first for first, end in zip(bounds, bounds[1:], strict=False))
        begin, slot = start[row], flat - row * width
        own = np.arange(len(flat)) - begin  # a node's number in its tree
        up, source = (known[row, slot] if self._continued else known[slot] for known in (self._parent, self._source))
        up[start[:-1]] = 0
        parent = place[row * width + up]
        if self._continued:
            above = _ancestors(parent - begin, own, row, nodes)
            depth = above[row, own].sum(axis=1) - 1
        else:
            paths = np.zeros((rows, nodes), np.int64)
            paths[row, own] = slot
            above = self._universe.ancestors[paths[:, :, None], paths[:, None, :]]
            depth = self._universe.depth[slot]
        source += row * self._token.shape[1]
        tokens, local = self._token.ravel()[source].tolist(), (parent - begin).tolist()
        trees = []
        for i, (first, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            n = end - first
            trees.append(Tree(tokens[first:end], [-1, *local[first + 1 : end]], depth[first:end], above[i, :n, :n]))
        chance, cells = self._chance.ravel()[source], self._cell.ravel()[source]
        return Forest(trees, start, parent, cells, chance, self.value.ravel()[flat], self._continued)


def _ancestors(parent: np.ndarray, place: np.ndarray, row: np.ndarray, nodes: int) -> np.ndarray:
    """bool [rows, nodes, nodes]: which nodes of its tree a node sees, itself included.

    `parent`, `place` and `row` [chosen] are within each tree; a root is its own parent.
    """
    rows = int(row[-1]) + 1
    jump = np.zeros((rows, nodes), np.int64)
    jump[row, place] = parent
    sees = np.zeros((rows, nodes, nodes), bool)
    sees[row, place, place] = True
    index = np.arange(rows)[:, None]
    while jump.any():  # each turn doubles how far up a node sees
        sees |= sees[index, jump]
        jump = jump[index, jump]
    sees[row, place, 0] = True
    return sees
