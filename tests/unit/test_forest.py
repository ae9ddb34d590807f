"""Forests: always closed under parents, distinct siblings, ancestors that follow the parents, the best nodes first."""

import numpy as np
import pytest

from runtime.acceptance import Acceptance
from runtime.forest import LOOKUP, NEVER, Candidates, Forest
from runtime.session import Draft
from runtime.tree import PUBLISHED_ACCURACY, Tree, Universe

TOP_K = 10
UNIVERSE = Universe(PUBLISHED_ACCURACY, TOP_K)


def random_draft(rng: np.random.Generator, rows: int, ties: float = 0.0) -> Draft:
    tokens = np.argsort(rng.random((rows, 5, 50)), axis=-1)[..., :TOP_K]
    logprobs = np.sort(np.log(rng.random((rows, 5, TOP_K))), axis=-1)[..., ::-1].astype(np.float32)
    logprobs[rng.random(logprobs.shape) < ties] = 0.0
    logprobs[rng.random(logprobs.shape) < ties] = -np.inf
    logprobs = np.sort(logprobs, axis=-1)[..., ::-1]
    if ties == 1.0:
        logprobs[:, 1:] = np.nan  # heads that broke
    return Draft(tokens, logprobs)


def grown(
    draft: Draft,
    sizes: list[int],
    continuations: dict[int, tuple[int, list[int]]] | None = None,
    universe: Universe = UNIVERSE,
) -> Forest:
    """Trees of so many nodes, roots included; row i's root is 7 + i."""
    return grown_by(Candidates(universe, Acceptance(draft.tokens.shape[1])), draft, sizes, continuations)


def grown_by(
    candidates: Candidates,
    draft: Draft,
    sizes: list[int],
    continuations: dict[int, tuple[int, list[int]]] | None = None,
) -> Forest:
    candidates.begin([7 + i for i in range(len(sizes))], range(len(sizes)), draft, None)
    for row, (matched, tokens) in (continuations or {}).items():
        candidates.add_continuation(row, matched, tokens, draft.tokens[row])
    return candidates.build(candidates.best(sizes, NEVER))


def check(tree: Tree, root: int) -> None:
    assert tree.tokens[0] == root and tree.parents[0] == -1 and tree.depth[0] == 0
    for i in range(1, len(tree.tokens)):
        parent = tree.parents[i]
        assert 0 <= parent < i and tree.depth[i] == tree.depth[parent] + 1
        want = tree.ancestors[parent].copy()
        want[i] = True
        assert np.array_equal(tree.ancestors[i], want)
    families = [(p, t) for p, t in zip(tree.parents, tree.tokens, strict=True)]
    assert len(set(families)) == len(tree.tokens), "siblings with one token"


def paths(tree: Tree) -> set[tuple[int, ...]]:
    return {tuple(tree.tokens[j] for j in np.flatnonzero(seen)[1:]) for seen in tree.ancestors}


@pytest.mark.parametrize("ties", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [2, 3, 16, 63, 64])
def test_every_tree_is_well_formed(size: int, ties: float) -> None:
    """Certain heads give log-probability 0.0, where a child ties with its parent and must not come without it."""
    rng = np.random.default_rng(size)
    for _ in range(30):
        draft = random_draft(rng, 3, ties)
        repeats = {
            i: (int(rng.integers(2, 9)), rng.integers(0, 50, 16).tolist()) for i in range(3) if rng.random() < 0.5
        }
        for row, tree in enumerate(grown(draft, [size] * 3, repeats).trees):
            check(tree, 7 + row)
            assert len(tree.tokens) == size


def test_the_best_nodes_are_taken_depth_first() -> None:
    draft = random_draft(np.random.default_rng(1), 1)
    [tree] = grown(draft, [12]).trees
    value = {path: sum(draft.logprobs[0, h, r] - 1e-4 for h, r in enumerate(path)) for path in UNIVERSE.paths}
    best = sorted(UNIVERSE.paths, key=lambda path: -value[path])[:12]
    want = [[draft.tokens[0, h, r] for h, r in enumerate(path)] for path in sorted(best)]
    got = [[tree.tokens[j] for j in np.flatnonzero(tree.ancestors[i])[1:]] for i in range(12)]
    assert got == want


def test_any_beginning_of_the_ranking_is_a_forest() -> None:
    rng = np.random.default_rng(5)
    candidates = Candidates(UNIVERSE, Acceptance(5))
    draft = random_draft(rng, 2, 0.3)
    candidates.begin([1, 2, 3], [0, 2], draft, np.array([1.0, 0.3], np.float32))
    candidates.add_continuation(0, 5, [int(draft.tokens[0, 0, 1]), 60, 61], draft.tokens[0])
    candidates.add_continuation(1, 3, [70, 71, 72], None)
    row, slot, value = candidates.ranked(candidates.best([41, 41, 41], NEVER))
    assert (np.diff(value) <= 0).all()
    for n in range(len(row) + 1):
        forest = candidates.build(candidates.places(row[:n], slot[:n]))
        assert sum(len(tree.tokens) for tree in forest.trees) == n + 3
        for root, tree in enumerate(forest.trees, 1):
            check(tree, root)


def test_a_node_knows_its_parent_and_its_chances() -> None:
    candidates = Candidates(UNIVERSE, Acceptance(5))
    forest = grown_by(candidates, random_draft(np.random.default_rng(3), 2), [5, 9])
    known = candidates.known(forest)
    assert forest.start.tolist() == [0, 5, 14]
    for row, tree in enumerate(forest.trees):
        own = slice(forest.start[row], forest.start[row + 1])
        assert (forest.parent[own] - forest.start[row]).tolist()[1:] == tree.parents[1:]
        reach, chance = known.value[own], known.chance[own]
        assert reach[0] == 1
        for i, parent in enumerate(tree.parents[1:], 1):
            assert reach[i] == pytest.approx(reach[parent] * chance[i], rel=1e-3)


def test_rows_may_have_different_sizes_and_none() -> None:
    forest = grown(random_draft(np.random.default_rng(2), 3), [2, 64, 1])
    assert [len(tree.tokens) for tree in forest.trees] == [2, 64, 1]


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_a_row_alone_has_the_tree_that_it_has_beside_others(ties: float) -> None:
    rng = np.random.default_rng(11)
    for size in (1, 2, 6, 17, 64):
        draft = random_draft(rng, 2, ties)
        both = grown(draft, [size, 5])
        alone = grown(Draft(draft.tokens[:1], draft.logprobs[:1]), [size])
        [one], other = alone.trees, both.trees[0]
        assert (one.tokens, one.parents) == (other.tokens, other.parents)
        assert np.array_equal(one.depth, other.depth) and np.array_equal(one.ancestors, other.ancestors)
        for name in ("parent", "places", "sources"):
            assert np.array_equal(getattr(alone, name), getattr(both, name)[: len(one.tokens)]), name
        assert alone.start.tolist() == [0, len(one.tokens)]


def test_a_small_universe_gives_a_small_tree() -> None:
    draft = random_draft(np.random.default_rng(2), 1)
    small = Draft(draft.tokens[:, :2, :1], draft.logprobs[:, :2, :1])
    [tree] = grown(small, [64], universe=Universe([[0.5], [0.4]], 1)).trees
    assert tree.parents == [-1, 0, 1]


def test_a_continuation_shares_the_heads_nodes_and_goes_on_alone() -> None:
    draft = random_draft(np.random.default_rng(4), 1)
    first, second = int(draft.tokens[0, 0, 0]), int(draft.tokens[0, 1, 1])
    [tree] = grown(draft, [64], {0: (8, [first, second, 60, 61])}).trees
    check(tree, 7)
    assert {(first,), (first, second), (first, second, 60), (first, second, 60, 61)} <= paths(tree)
    assert tree.tokens.count(60) == 1


def test_a_continuation_needs_no_heads() -> None:
    candidates = Candidates(Universe([], 0), Acceptance(0))
    candidates.begin([5], [], None, None)
    candidates.add_continuation(0, 8, list(range(20, 20 + LOOKUP)), None)
    [tree] = candidates.build(candidates.best([32], NEVER)).trees
    assert tree.tokens == [5, *range(20, 20 + LOOKUP)] and tree.parents == list(range(-1, LOOKUP))
    check(tree, 5)


def test_fewer_heads_give_the_nodes_of_their_depths() -> None:
    """Also where more of them ran the step before."""
    draft = random_draft(np.random.default_rng(3), 3)
    candidates = Candidates(UNIVERSE, Acceptance(5))
    for depth in (5, 2, 1, 4):
        few = Draft(draft.tokens[:, :depth], draft.logprobs[:, :depth])
        forest = grown_by(candidates, few, [64, 64, 64])
        assert max(int(tree.depth.max()) for tree in forest.trees) == depth
        for i, tree in enumerate(forest.trees):
            check(tree, 7 + i)
            assert all(t in draft.tokens[i, d - 1] for t, d in zip(tree.tokens[1:], tree.depth[1:], strict=True))


def test_a_step_leaves_nothing_behind_for_the_next() -> None:
    """The arrays are used again: what earlier steps with more rows, drafts and continuations wrote must not show."""
    rng = np.random.default_rng(6)
    used = Candidates(UNIVERSE, Acceptance(5))
    for rows in (4, 1, 3, 2, 4):
        repeats = {i: (8, rng.integers(0, 50, 16).tolist()) for i in range(rows) if rng.random() < 0.5}
        grown_by(used, random_draft(rng, rows, 0.3), [20] * rows, repeats)
        draft, sizes = random_draft(rng, rows), [int(n) for n in rng.integers(1, 30, rows)]
        for got, want in zip(grown_by(used, draft, sizes).trees, grown(draft, sizes).trees, strict=True):
            check(got, want.tokens[0])
            assert got.tokens == want.tokens and got.parents == want.parents
        used.begin([9] * rows, [], None, None)
        assert [tree.tokens for tree in used.build(used.best([5] * rows, NEVER)).trees] == [[9]] * rows
        used.begin([9] * rows, [rows - 1], random_draft(rng, 1), None)
        lengths = [len(tree.tokens) for tree in used.build(used.best([5] * rows, NEVER)).trees]
        assert lengths == [1] * (rows - 1) + [5]


def test_what_lookup_is_surer_of_is_not_by_the_heads() -> None:
    """Though they propose it as well: it would be drafted without them."""
    universe = Universe([[0.5, 0.2], [0.4, 0.1]], 2)
    draft = Draft(np.array([[[11, 12], [21, 22]]]), np.log(np.array([[[0.995, 0.004], [0.3, 0.05]]], np.float32)))
    candidates = Candidates(universe, Acceptance(2))
    candidates.begin([7], [0], draft, None)
    row, slot, _ = candidates.ranked(candidates.best([64], NEVER))
    assert candidates.by_heads(row, slot).all()
    candidates.add_continuation(0, 8, [11, 21, 60], draft.tokens[0])
    row, slot, _ = candidates.ranked(candidates.best([64], NEVER))
    by_heads = dict(zip(slot.tolist(), candidates.by_heads(row, slot).tolist(), strict=True))
    assert len(by_heads) == len(universe.paths), "60 is one more, the root is none"
    for place, path in enumerate(universe.paths[1:], 1):
        assert by_heads[place] == (path != (0, 0)), path
    assert [flag for place, flag in by_heads.items() if place >= len(universe.paths)] == [False]


def test_a_continuation_ends_where_it_is_not_worth_it() -> None:
    candidates = Candidates(Universe([], 0), Acceptance(0))
    acceptance = Acceptance(0)
    values = acceptance.lookup(8, LOOKUP)[0].cumsum()
    candidates.begin([5], [], None, None)
    candidates.add_continuation(0, 8, list(range(20, 20 + LOOKUP)), None, float(values[4:6].mean()))
    [tree] = candidates.build(candidates.best([32], NEVER)).trees
    assert tree.tokens == [5, *range(20, 25)]
