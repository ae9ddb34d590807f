"""Verification: which nodes of a tree the model itself would have chosen.

The walk draws the model's own next token at each node it visits and follows it into the tree while it can. What it
emits is therefore exactly what plain decoding emits, greedy or sampled; the tree decides only how far one step gets.
"""

from collections.abc import Callable

from runtime.tree import Tree


def verify(tree: Tree, choose: Callable[[int, int], int]) -> tuple[list[int], list[int]]:
    """Walks `tree` from its root; `choose(node, t)` is the model's token after `node`, the t-th of this step.

    Returns the path of nodes walked, the root first, and the tokens emitted: one for each node of the path.
    """
    path, emitted = [0], [choose(0, 0)]
    while (child := tree.child(path[-1], emitted[-1])) is not None:
        path.append(child)
        emitted.append(choose(child, len(emitted)))
    return path, emitted


def first_gap(path: list[int]) -> int | None:
    """How many nodes of a walked path lie in the tree's first slots, in order, before the first that does not."""
    return None if path[-1] == len(path) - 1 else next(i for i, slot in enumerate(path) if slot != i)


def children(tree: Tree, node: int) -> list[int]:
    """The tokens that the children of `node` continue with."""
    return [token for token, parent in zip(tree.tokens, tree.parents, strict=True) if parent == node]
