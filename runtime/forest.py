"""The draft trees of one step, all rows together.

Each row has *slots*: the root, the paths of the universe with this step's draft tokens in them, and one continuation
found by prompt lookup, which shares the nodes of its tokens with the universe as far as it can. A slot's value is the
log-probability that verification comes to it; it never exceeds its parent's, so the best slots of a row are a tree.

Dimension words: [rows] sequences that draft, [drafted] those of them with heads' drafts, [slots], [chosen] slots that
become nodes, roots included, [nodes] nodes of the widest tree.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from runtime.acceptance import CERTAIN, Acceptance
from runtime.session import Draft
from runtime.tree import DEPTH_COST, Tree, Universe

LOOKUP = 16  # tokens of a continuation at most
NEVER = -1e30  # below every value of a slot that is there
TINY = np.finfo(np.float32).tiny
ROOT = -1  # instead of a cell
ABSENT = -1e37  # log-probability of a rank that no head proposed, and value of a slot that is not there


@dataclass(frozen=True, slots=True)
class Forest:
    """One step's trees: row after row in the arrays, roots included."""

    trees: list[Tree]  # [rows]
    start: np.ndarray  # int64 [rows + 1], where each tree's nodes begin below
    parent: np.ndarray  # int64 [chosen], the parent's place in these arrays; a root is its own
    places: np.ndarray  # int64 [chosen], slots as `Candidates` counts them, through all rows
    sources: np.ndarray  # int64 [chosen], likewise
    continued: bool  # whether there are nodes by prompt lookup


@dataclass(frozen=True, slots=True)
class Known:
    """What was known of a forest's nodes. A root has no chance, and the value 1."""

    cells: np.ndarray  # int64 [chosen], of the acceptance that a node's chance is from; ROOT of a root
    chance: np.ndarray  # float32 [chosen], to be right once the parent is
    value: np.ndarray  # float32 [chosen], to be accepted


class Candidates:
    """The slots of a step's rows, from which its nodes are chosen. A step begins with `begin`; the arrays stay.

    What is known of a slot's last token lies in its *source*: a column for each rank of the heads, which several paths
    share, one for each token of the continuation, and one for the root.
    """

    def __init__(self, universe: Universe, acceptance: Acceptance) -> None:
        self._universe, self._acceptance = universe, acceptance
        self._paths, self._ranks = len(universe.paths), universe.ranks
        slots, sources = self._paths + LOOKUP, self._ranks + LOOKUP + 1
        self._slots, self._sources = slots, sources
        none, own = np.zeros(LOOKUP, np.int64), np.arange(self._ranks, sources - 1)
        self._usual_parent = np.concatenate([universe.parent, none])  # [slots]
        self._usual_parent[0] = 0
        self._usual_source = np.concatenate([[sources - 1], universe.last, own])
        self._depth = np.concatenate([universe.depth, none])
        # A slot's value is the sum of its path's log-probabilities, less a little for each. The root's column holds 1.
        self._sums = np.zeros((sources, slots), np.float32)
        self._sums[: self._ranks, : self._paths] = universe.incidence
        self._sums[-1, : self._paths] = -DEPTH_COST * universe.depth
        self._sums[-1, self._paths :] = ABSENT
        self._reserve(1)

    def begin(
        self, roots: Items[int], asked: Items[int], draft: Draft | None, trust: np.ndarray | None,
        refused: np.ndarray | None = None, useless: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """The next step: rows with these root tokens, and what the heads say of those `asked` [drafted].

        `trust` [drafted] scales how often they are right; None stands for 1. `refused` bool [drafted, top_k] are tokens
        of the first head that cannot follow, `useless` bool [drafted, heads, top_k] those of all that are not worth a
        node; None stands for no such.
        """
        rows, ranks = len(roots), self._ranks
        if rows > len(self._token_of):
            self._reserve(rows)
        self._rows, self._continued = rows, False
        self._parent, self._source = self._usual_parent, self._usual_source
        self._token, self._chance = self._token_of[:rows], self._chance_of[:rows]
        self._cell, self._value = self._cell_of[:rows], self._value_of[:rows]
        self._token[:, -1] = roots
        if draft is None:
            self._value[:] = ABSENT
            self._value[:, 0] = 0.0
            return
        chance, cells = self._acceptance.heads(draft.logprobs)  # [drafted, heads, top_k]
        if trust is not None:
            chance += np.log(trust, dtype=np.float32)[:, None, None]
            np.minimum(chance, 0.0, out=chance)
        if refused is not None:
            _without(chance[:, 0], refused)
        if useless is not None:
            chance[useless] = ABSENT
        index: slice | np.ndarray = slice(None)
        proposed = chance[0].size  # of a row's ranks: those of the heads that ran
        if len(asked) < rows:
            self._chance[:, :ranks] = ABSENT
            index = np.asarray(asked)
        if proposed < ranks:
            self._chance[:, proposed:ranks] = ABSENT
        shape = (len(asked), proposed)
        self._chance[index, :proposed] = chance.reshape(shape)
        self._cell[index, :proposed] = cells.reshape(shape)
        self._token[index, :proposed] = draft.tokens.reshape(shape)
        np.dot(self._chance, self._sums, out=self._value)

    def add_continuation(
        self, row: int, matched: int, tokens: list[int], ranks: np.ndarray | None, least: float = NEVER
    ) -> None:
        """What prompt lookup found for a row, at most LOOKUP `tokens` after `matched` equal ones.

        `ranks` [heads, top_k] are the row's draft tokens, if it has any. From a value below `least` on it is left out.
        """
        if not self._continued:
            self._continued = True
            self._parent = np.tile(self._parent, (self._rows, 1))
            self._source = np.tile(self._source, (self._rows, 1))
        chances, cells = self._acceptance.lookup(matched, len(tokens))
        columns = slice(self._ranks, self._ranks + len(tokens))
        self._token[row, columns], self._chance[row, columns], self._cell[row, columns] = tokens, chances, cells
        drafted = [] if ranks is None else ranks[: len(tokens)].tolist()
        value, at = 0.0, 0
        for i, (token, chance) in enumerate(zip(tokens, chances.tolist(), strict=True)):
            slot, value = None, value + chance - DEPTH_COST
            if value < least:
                break
            if at < self._paths and i < len(drafted) and token in drafted[i]:
                slot = self._universe.child[at].get(drafted[i].index(token))
            if slot is None:
                slot = self._paths + i
                self._parent[row, slot] = at
            elif self._value[row, slot] >= value:  # the heads are surer of it
                value, at = float(self._value[row, slot]), slot
                continue
            self._value[row, slot], self._source[row, slot], at = value, self._ranks + i, slot

    def best(self, most: Items[int], least: np.ndarray | float) -> np.ndarray:
        """Places [chosen], ascending, of the best slots of each row: `most` [rows] of them, the root included.

        Slots whose value is below `least`, of each row [rows] or of all, are left out. What is taken is a forest.
        """
        ordered = self._value.copy()
        ordered.sort(axis=1)
        limit = np.array(most)
        last = ordered.ravel().take(self._edges[1 : self._rows + 1] - np.minimum(limit, self._slots))
        places: np.ndarray = (self._value >= np.maximum(last, least)[:, None]).ravel().nonzero()[0]
        if len(places) > limit.sum() and (np.bincount(places // self._slots) > limit).any():  # ties at a row's end
            row, slot, _ = self.ranked(places)
            within = np.cumsum(row[:, None] == np.arange(self._rows), axis=0)[np.arange(len(row)), row] < limit[row]
            places = self.places(row[within], slot[within])
        return places

    def count(self, least: float) -> int:
        """How many slots of the first row are worth at least `least`, the root among them."""
        return int(np.count_nonzero(self._value[0] >= least))

    def top(self, row: int, most: int, least: float) -> list[int]:
        """The slots, ascending, of a row's `most` best paths of the universe that are worth at least `least`."""
        value = self._value[row, : self._paths]
        if most < len(value):
            least = max(least, float(np.partition(value, -most)[-most]))
        slots: list[int] = (value >= least).nonzero()[0].tolist()
        return slots

    def refuse(self, row: int, slot: int) -> None:
        """Takes a path of the universe out of a row, and all that go through it."""
        self._value[row, : self._paths][self._universe.ancestors[:, slot]] = ABSENT

    def ranked(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, slot and value of the slots that are no roots, best first over all rows: any beginning is a forest."""
        value = self._value.ravel().take(places)
        order = (-value).argsort(kind="stable")[self._rows :]  # roots come first
        row, slot = np.divmod(places.take(order), self._slots)
        return row, slot, value.take(order)

    def by_heads(self, row: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """bool: which of these slots, no roots, are there by the heads alone, or by what they are surer of."""
        if not self._continued:
            return np.ones(len(slot), bool)
        by_heads: np.ndarray = self._source[row, slot] < self._ranks
        return by_heads

    def places(self, row: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Places, ascending, of these slots and of all roots."""
        places = np.concatenate([self._edges[: self._rows], row * self._slots + slot])
        places.sort()
        return places

    def build(self, places: np.ndarray) -> Forest:
        """The trees of chosen slots, which hold every chosen slot's parent: depth-first, continuations last."""
        if self._rows == 1 and not self._continued:
            return self._build_one(places)
        row, slot = np.divmod(places, self._slots)
        start = places.searchsorted(self._edges[: self._rows + 1])
        number = self._number_of
        number[places] = np.arange(len(places))
        known = places if self._continued else slot
        parent = number.take(places - slot + self._parent.ravel().take(known))
        bounds = start.tolist()
        nodes = max(end - first for first, end in zip(bounds, bounds[1:], strict=False))
        begin = start.take(row)
        local = parent - begin
        if self._continued:
            own = np.arange(len(places)) - begin  # a node's number in its tree
            above = _ancestors(local, own, row, nodes)
            depth = above[row, own].sum(axis=1) - 1
        else:
            paths = slot
            if len(places) < self._rows * nodes:
                paths = np.zeros((self._rows, nodes), np.int64)
                paths[row, np.arange(len(places)) - begin] = slot
            paths = paths.reshape(self._rows, nodes)
            above = self._universe.ancestors[paths[:, :, None], paths[:, None, :]]
            depth = self._depth.take(slot)
        sources = row * self._sources + self._source.ravel().take(known)
        tokens, parents = self._token.ravel().take(sources).tolist(), local.tolist()
        trees = []
        for i, (first, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            n = end - first
            trees.append(Tree(tokens[first:end], [-1, *parents[first + 1 : end]], depth[first:end], above[i, :n, :n]))
        return Forest(trees, start, parent, places, sources, self._continued)

    def _build_one(self, slot: np.ndarray) -> Forest:
        """The only row's tree of paths [chosen] of the universe: what `build` comes to, with half of its calls."""
        number = self._number_of
        number[slot] = np.arange(len(slot))
        parent = number.take(self._usual_parent.take(slot))
        sources = self._usual_source.take(slot)
        above = self._universe.ancestors[slot[:, None], slot]
        tokens, parents = self._token.take(sources).tolist(), [-1, *parent[1:].tolist()]
        tree = Tree(tokens, parents, self._depth.take(slot), above)
        return Forest([tree], np.array([0, len(slot)]), parent, slot, sources, False)

    def cells(self, forest: Forest) -> np.ndarray:
        """Of the nodes of a forest of this step, int64 [chosen]; ROOT of a root."""
        cells: np.ndarray = self._cell.ravel().take(forest.sources)
        return cells

    def known(self, forest: Forest) -> Known:
        """Of a forest of this step."""
        chance, value = self._chance.ravel().take(forest.sources), self._value.ravel().take(forest.places)
        return Known(self.cells(forest), np.exp(chance), np.exp(value))

    def _reserve(self, rows: int) -> None:
        self._token_of = np.empty((rows, self._sources), np.int64)
        self._cell_of = np.zeros((rows, self._sources), np.int64)
        self._cell_of[:, -1] = ROOT
        self._chance_of = np.zeros((rows, self._sources), np.float32)  # log-probability to be right once the parent is
        self._chance_of[:, -1] = 1.0
        self._value_of = np.empty((rows, self._slots), np.float32)  # log-probability to be accepted
        self._number_of = np.empty(rows * self._slots, np.int64)
        self._edges = np.arange(rows + 1) * self._slots  # where each row's places begin


def _without(chance: np.ndarray, refused: np.ndarray) -> None:
    """Log-probabilities [drafted, top_k] of what may follow, once the `refused` can not: the others become likelier."""
    allowed = np.exp(chance)
    gone = (allowed * refused).sum(axis=1, keepdims=True)
    left = np.maximum(1.0 - gone, allowed.sum(axis=1, keepdims=True) - gone)
    chance -= np.log(np.maximum(left, TINY), out=np.zeros_like(left), where=gone > 0)
    np.minimum(chance, CERTAIN, out=chance)
    chance[refused] = ABSENT


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
