"""Draft trees: which continuations of a sequence one step verifies.

A *universe* is fixed: the few hundred rank-tuples (rank of the token under head 0, under head 1, ...) that the heads'
accuracies make most likely a priori; `runtime/forest.py` fills them with a step's drafts and chooses among them. They
are in depth-first order, best child first, so that the accepted path tends to lie in the first slots.

Dimension words: [rows] sequences, [heads] Medusa heads, [top_k] ranks of a head, [nodes] nodes of a tree, root first.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.manifest import Manifest

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
DEPTH_COST = 1e-4  # above float32's resolution at the sum of the least log-probabilities: no child ties with its parent


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


def accuracy_of(manifest: Manifest) -> Sequence[Sequence[float]]:
    """The heads' measured accuracies, else the published ones, the last repeated for further heads."""
    if manifest.head_accuracy is not None:
        return manifest.head_accuracy
    known = PUBLISHED_ACCURACY[: manifest.medusa_heads]
    return known + known[-1:] * (manifest.medusa_heads - len(known))


class Universe:
    """The rank-tuples a tree may be made of, in depth-first order, and how they hang together.

    Index 0 is the root. A tuple's parent is always in the universe, and before it.
    """

    def __init__(self, accuracy: Sequence[Sequence[float]], top_k: int, size: int = UNIVERSE) -> None:
        heads = len(accuracy)
        probability = rank_probabilities(accuracy, top_k)  # [heads, top_k]
        best: list[tuple[int, ...]] = []
        heap: list[tuple[float, tuple[int, ...]]] = [(-probability[0, 0], (0,))] if heads else []
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
        self.paths = paths
        self.ranks = heads * top_k
        self.parent = np.array([place[path[:-1]] if path else -1 for path in paths])
        self.depth = np.array([len(path) for path in paths])
        # where the last step of each path but the root's lies among a row's heads * top_k ranks
        self.last = np.array([(len(path) - 1) * top_k + path[-1] for path in paths[1:]], np.int64)
        self.child: list[dict[int, int]] = [{} for _ in paths]  # [paths]: rank to path
        for i, path in enumerate(paths[1:], 1):
            self.child[self.parent[i]][path[-1]] = i
        self.routes: list[tuple[int, ...]] = [()]  # [paths]: the paths it goes through, itself last, without the root
        for i in range(1, len(paths)):
            self.routes.append((*self.routes[self.parent[i]], i))
        self.ancestors = np.eye(len(paths), dtype=bool)  # [paths, paths]: which paths a path goes through, itself too
        for i in range(1, len(paths)):
            self.ancestors[i] |= self.ancestors[self.parent[i]]
        # [heads * top_k, paths]: which ranks a path takes
        self.incidence = np.zeros((heads * top_k, len(paths)), np.float32)
        for i, path in enumerate(paths):
            self.incidence[[head * top_k + rank for head, rank in enumerate(path)], i] = 1
        # [paths]: how likely each is accepted, as far as the heads' accuracies say
        self.chance = np.array([np.prod([probability[at] for at in enumerate(path)]) for path in paths])


def lone(root: int) -> Tree:
    """The tree of plain decoding: the root alone."""
    return Tree([root], [-1], _NO_DEPTH, _SELF)
