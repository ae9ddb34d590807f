"""Draft trees: which continuations of a sequence one step verifies.

A *universe* is fixed: the few hundred rank-tuples (rank of the token under head 0, under head 1, ...) that the heads'
accuracies make most likely a priori. A step scores each by the sum of its draft log-probabilities and takes the best.
Nodes are kept in depth-first order, best child first, so that the accepted path tends to lie in the first slots.

Dimension words: [rows] sequences, [heads] Medusa heads, [top_k] ranks of a head, [nodes] nodes of a tree, root first.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Top-1 to top-5 accuracy of vicuna-7b's five heads at the end of training: FasterDecoding/Medusa, assets/medusa_acc.csv
# (Apache-2.0). For artifacts whose heads were not evaluated.
PUBLISHED_ACCURACY = (
    (0.5604, 0.6717, 0.7271, 0.7599, 0.7799),
    (0.3164, 0.4236, 0.4851, 0.5282, 0.5625),
    (0.2010, 0.2879, 0.3475, 0.3834, 0.4169),
    (0.1474, 0.2250, 0.2737, 0.3109, 0.3397),
    (0.1175, 0.1866, 0.2346, 0.2721, 0.2998),
)
UNIVERSE = 256
FLOOR = -20.0  # a log-probability below it is as good as none
DEPTH_COST = 1e-4  # above float32's resolution at heads * FLOOR: a child never ties with its parent


@dataclass(frozen=True, slots=True)
class Tree:
    """One row's draft: parents come before their children, the children of a node have distinct tokens."""

    tokens: list[int]  # [nodes], the root is the newest emitted token
    parents: list[int]  # [nodes], -1 for the root
    depth: np.ndarray  # int64 [nodes]
    ancestors: np.ndarray  # bool [nodes, nodes]: which nodes a node sees, itself included

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` that continues with `token`."""
        for i in range(node + 1, len(self.tokens)):
            if self.tokens[i] == token and self.parents[i] == node:
                return i
        return None


_NO_DEPTH, _SELF = np.zeros(1, np.int64), np.ones((1, 1), bool)


def rank_probabilities(accuracy: Sequence[Sequence[float]], top_k: int) -> np.ndarray:
    """[heads, top_k]: how likely each rank is right, from cumulative accuracies; ranks past those known halve."""
    rows = []
    for cumulative in accuracy:
        known = np.maximum(np.diff(np.concatenate([[0.0], cumulative[:top_k]])), 1e-6)
        rest = known[-1] * 0.5 ** np.arange(1, top_k - len(known) + 1)
        rows.append(np.concatenate([known, rest]))
    return np.array(rows)


class Universe:
    """The rank-tuples a tree may be made of, in depth-first order, and how they hang together.

    Index 0 is the root. A tuple's parent is always in the universe, and before it.
    """

    def __init__(self, accuracy: Sequence[Sequence[float]], top_k: int, size: int = UNIVERSE) -> None:
        probability = rank_probabilities(accuracy, top_k)
        heads = len(probability)
        best: list[tuple[int, ...]] = []
        heap: list[tuple[float, tuple[int, ...]]] = [(-probability[0, 0], (0,))]
        while heap and len(best) < size:
            score, path = heapq.heappop(heap)
            best.append(path)
            head, rank = len(path) - 1, path[-1]
            if rank + 1 < top_k:
                heapq.heappush(
                    heap, (score / probability[head, rank] * probability[head, rank + 1], (*path[:-1], rank + 1))
                )
            if head + 1 < heads:
                heapq.heappush(heap, (score * probability[head + 1, 0], (*path, 0)))
        paths = [(), *sorted(best)]
        place = {path: i for i, path in enumerate(paths)}
        absent = heads * top_k  # an entry that holds log-probability 0
        self.paths = paths
        self.parent = np.array([place[path[:-1]] if path else -1 for path in paths])
        self.depth = np.array([len(path) for path in paths])
        # [paths, heads]: where each of a path's steps lies in a row's [heads * top_k] ranks
        self._steps = np.array(
            [[h * top_k + path[h] if h < len(path) else absent for h in range(heads)] for path in paths]
        )
        self._last = np.array([(len(path) - 1) * top_k + path[-1] if path else 0 for path in paths])
        self._cost = (DEPTH_COST * self.depth).astype(np.float32)
        self._ancestors = np.eye(len(paths), dtype=bool)
        for i in range(1, len(paths)):
            self._ancestors[i] |= self._ancestors[self.parent[i]]

    def grow(self, roots: Sequence[int], tokens: np.ndarray, logprobs: np.ndarray, sizes: Sequence[int]) -> list[Tree]:
        """The best tree of each row.

        `roots` and `sizes` (nodes, root included) have one entry a row; `tokens` int64 and `logprobs` float32 are
        [rows, heads, top_k], best first. A tree is smaller than asked only where the universe is.
        """
        rows = len(roots)
        padded = np.zeros((rows, logprobs.shape[1] * logprobs.shape[2] + 1), np.float32)
        np.fmax(logprobs.reshape(rows, -1), FLOOR, out=padded[:, :-1])  # also where a head gives NaN
        np.minimum(padded, 0.0, out=padded)
        cost = self._cost - np.add.reduce(padded.take(self._steps, axis=1), axis=2)  # [rows, paths], least for the root
        candidates = tokens.reshape(rows, -1).take(self._last, axis=1)  # [rows, paths]
        candidates[:, 0] = roots
        trees = []
        for row, size in enumerate(sizes):
            if size < len(self.paths):
                chosen = cost[row].argpartition(size - 1)[:size]
                chosen.sort()
            else:
                chosen = np.arange(len(self.paths))
            parents = chosen.searchsorted(self.parent.take(chosen))
            parents[0] = -1
            ancestors = self._ancestors.take(chosen, axis=0).take(chosen, axis=1)
            picked = candidates[row].take(chosen).tolist()
            trees.append(Tree(picked, parents.tolist(), self.depth.take(chosen), ancestors))
        return trees


def lone(root: int) -> Tree:
    """The tree of plain decoding: the root alone."""
    return Tree([root], [-1], _NO_DEPTH, _SELF)
