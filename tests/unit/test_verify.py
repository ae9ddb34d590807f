"""The walk through a tree: exact, and no further than the model agrees."""

import numpy as np

from runtime.tree import Tree, lone
from runtime.verify import verify

PARENTS = [-1, 0, 1, 1, 0]
TREE = Tree([10, 11, 12, 13, 14], PARENTS, np.array([0, 1, 2, 2, 1]), np.eye(5, dtype=bool))


def walk(answers: dict[int, int]) -> tuple[list[int], list[int]]:
    asked = []

    def choose(node: int, t: int) -> int:
        assert t == len(asked)
        asked.append(node)
        return answers[node]

    path, emitted = verify(TREE, choose)
    assert asked == path, "a node off the path was looked at"
    return path, emitted


def test_follows_the_model_into_the_tree() -> None:
    assert walk({0: 11, 1: 13, 3: 99}) == ([0, 1, 3], [11, 13, 99])


def test_stops_where_the_model_disagrees() -> None:
    assert walk({0: 99}) == ([0], [99])


def test_a_token_elsewhere_in_the_tree_does_not_count() -> None:
    assert walk({0: 14, 4: 12}) == ([0, 4], [14, 12])


def test_a_lone_root_emits_one_token() -> None:
    assert verify(lone(5), lambda node, t: 6) == ([0], [6])
