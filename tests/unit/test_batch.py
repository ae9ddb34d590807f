"""Packing: what is added to a row changes nothing for the nodes that count."""

import numpy as np

from runtime.batch import Packer
from runtime.tree import Tree, lone

TREE = Tree([7, 8, 9], [-1, 0, 0], np.array([0, 1, 1]), np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], bool))


def test_rows_are_packed_side_by_side() -> None:
    batch, first = Packer(exact=True, even=False, widest=8).pack([(5, TREE), (0, [1, 2, 3, 4]), (9, lone(6))])
    assert batch.tokens.tolist() == [7, 8, 9, 1, 2, 3, 4, 6]
    assert batch.depth.tolist() == [0, 1, 1, 0, 1, 2, 3, 0]
    assert batch.length.tolist() == [5, 0, 9] and batch.count.tolist() == [3, 4, 1]
    assert batch.wanted.tolist() == [0, 1, 2, 6, 7] and first == [0, 3, 4]
    assert np.array_equal(batch.ancestors[0, :3, :3], TREE.ancestors)
    assert np.array_equal(batch.ancestors[1], np.tri(4, dtype=bool))
    assert not batch.ancestors[2, 0, 1:].any(), "a node sees what stands in beside it"


def test_rows_of_one_token_have_place_for_two_nodes_only_when_exact() -> None:
    works = [(5, lone(6)), (7, lone(8))]
    batch, _ = Packer(exact=True, even=False, widest=8).pack(works)
    assert batch.tokens.tolist() == [6, 8] and batch.count.tolist() == [1, 1] and batch.ancestors.shape == (2, 2, 2)
    batch, _ = Packer(exact=False, even=False, widest=8).pack(works)
    assert batch.ancestors.shape == (2, 1, 1)


def test_an_odd_step_gets_one_token_more_when_asked() -> None:
    batch, first = Packer(exact=True, even=True, widest=8).pack([(5, TREE), (5, lone(6)), (5, TREE)])
    assert batch.count.tolist() == [3, 1, 4] and len(batch.tokens) == 8
    assert batch.wanted.tolist() == [0, 1, 2, 3, 4, 5, 6] and first == [0, 3, 4]
    assert not batch.ancestors[2, :3, 3].any()


def test_a_chunk_of_one_stays_alone() -> None:
    batch, _ = Packer(exact=True, even=False, widest=8).pack([(0, [4])])
    assert batch.ancestors[0].tolist() == [[True, False], [False, False]] and batch.depth.tolist() == [0]


def test_a_tree_alone_is_packed_as_beside_others() -> None:
    for exact in (True, False):
        for even in (True, False):
            packer = Packer(exact, even, widest=8)
            for work in (TREE, lone(6)):
                alone, first = packer.pack([(5, work)])
                beside, _ = packer.pack([(5, work), (0, [1, 2, 3])])
                n = len(work.tokens)
                assert first == [0] and alone.wanted.tolist() == list(range(n)) == beside.wanted[:n].tolist()
                assert alone.length.tolist() == [5] and alone.count.tolist() == [n + (exact and even and n % 2)]
                assert np.array_equal(alone.tokens[:n], beside.tokens[:n])
                assert np.array_equal(alone.depth[:n], beside.depth[:n])
                assert np.array_equal(alone.ancestors[0, :n, :n], beside.ancestors[0, :n, :n])
                assert alone.ancestors.shape[1] == max(2 if exact else 1, int(alone.count[0]))
