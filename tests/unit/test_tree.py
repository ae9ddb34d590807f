"""Trees: always closed under parents, distinct siblings, ancestors that follow the parents, the best nodes first."""

import numpy as np
import pytest

from runtime.tree import PUBLISHED_ACCURACY, Tree, Universe, rank_probabilities

TOP_K = 10


def draft(rng: np.random.Generator, rows: int, ties: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.argsort(rng.random((rows, 5, 50)), axis=-1)[..., :TOP_K]
    logprobs = np.sort(np.log(rng.random((rows, 5, TOP_K))), axis=-1)[..., ::-1].astype(np.float32)
    logprobs[rng.random(logprobs.shape) < ties] = 0.0
    logprobs[rng.random(logprobs.shape) < ties] = -np.inf
    logprobs = np.sort(logprobs, axis=-1)[..., ::-1]
    if ties == 1.0:
        logprobs[:, 1:] = np.nan  # heads that broke
    return tokens, logprobs


def check(tree: Tree, root: int, size: int) -> None:
    n = len(tree.tokens)
    assert n == size and tree.tokens[0] == root and tree.parents[0] == -1
    for i in range(1, n):
        parent = tree.parents[i]
        assert 0 <= parent < i and tree.depth[i] == tree.depth[parent] + 1
        want = tree.ancestors[parent].copy()
        want[i] = True
        assert np.array_equal(tree.ancestors[i], want)
    families = [(p, t) for p, t in zip(tree.parents, tree.tokens, strict=True)]
    assert len(set(families)) == n, "siblings with one token"


@pytest.mark.parametrize("ties", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [2, 3, 16, 63, 64])
def test_every_tree_is_well_formed(size: int, ties: float) -> None:
    """Certain heads give log-probability 0.0, where a child ties with its parent and must not come without it."""
    rng = np.random.default_rng(size)
    universe = Universe(PUBLISHED_ACCURACY, TOP_K)
    for _ in range(50):
        tokens, logprobs = draft(rng, 3, ties)
        for row, tree in enumerate(universe.grow([7, 8, 9], tokens, logprobs, [size] * 3)):
            check(tree, 7 + row, size)


def test_the_best_nodes_are_taken_depth_first() -> None:
    universe = Universe(PUBLISHED_ACCURACY, TOP_K)
    rng = np.random.default_rng(1)
    tokens, logprobs = draft(rng, 1)
    [tree] = universe.grow([1], tokens, logprobs, [12])
    value = {path: sum(logprobs[0, h, r] - 1e-4 for h, r in enumerate(path)) for path in universe.paths}
    best = sorted(universe.paths, key=lambda path: -value[path])[:12]
    paths = [[tokens[0, h, r] for h, r in enumerate(path)] for path in sorted(best)]
    got = [[tree.tokens[j] for j in np.flatnonzero(tree.ancestors[i])[1:]] for i in range(12)]
    assert got == paths


def test_rows_may_have_different_sizes() -> None:
    tokens, logprobs = draft(np.random.default_rng(2), 3)
    trees = Universe(PUBLISHED_ACCURACY, TOP_K).grow([1, 2, 3], tokens, logprobs, [2, 64, 5])
    assert [len(tree.tokens) for tree in trees] == [2, 64, 5]


def test_a_small_universe_gives_a_small_tree() -> None:
    tokens, logprobs = draft(np.random.default_rng(2), 1)
    universe = Universe([[0.5], [0.4]], 1)
    [tree] = universe.grow([1], tokens[:, :2, :1], logprobs[:, :2, :1], [64])
    assert tree.parents == [-1, 0, 1]


def test_the_universe_holds_the_most_likely_paths() -> None:
    universe = Universe(PUBLISHED_ACCURACY, TOP_K, size=64)
    probability = rank_probabilities(PUBLISHED_ACCURACY, TOP_K)
    value = {(): 1.0}
    for h in range(5):
        for path in [p for p in value if len(p) == h]:
            value |= {(*path, r): value[path] * probability[h, r] for r in range(TOP_K)}
        value = dict(sorted(value.items(), key=lambda kv: -kv[1])[:3000])
    best = sorted(value, key=lambda path: -value[path])[:65]
    assert sum(value[p] for p in universe.paths) == pytest.approx(sum(value[p] for p in best))


def test_ranks_past_the_known_ones_are_less_likely() -> None:
    probability = rank_probabilities([[0.5, 0.7]], 5)[0]
    assert probability == pytest.approx([0.5, 0.2, 0.1, 0.05, 0.025])
