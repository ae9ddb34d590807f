"""Shapes of the padded form's runs: which rows share one, and what they bring."""

import numpy as np
import pytest

from runtime.batch import Packer
from runtime.buckets import Run, node_bucket, node_buckets, plan, row_buckets
from runtime.device import layout
from runtime.manifest import capacity_of
from runtime.padding import pad, shapes
from runtime.params import MAX_CHUNK, MAX_NODES
from tests.parity.paths import random_tree

CAPACITY = 192


def test_buckets() -> None:
    assert row_buckets(12) == [1, 2, 4, 8, 12] and row_buckets(8) == [1, 2, 4, 8] and row_buckets(1) == [1]
    assert node_buckets() == [1, 2, 4, 8, 16, 32, 64]
    assert [node_bucket(n) for n in (1, 3, 33, 64, 65, 128, 129, 1000)] == [1, 4, 64, 64, 128, 128, 192, 1024]
    for context in (1, 100, 2048):  # no run of a prompt is wider than what is left of the row
        for length in range(0, context, 7):
            for chunk in {1, min(63, context - length), min(MAX_CHUNK, context - length)} - {0}:
                assert length + node_bucket(chunk) <= capacity_of(context)


@pytest.mark.parametrize(
    ("counts", "free", "runs"),
    [
        ([1], 128, [Run(0, 1, 2, True)]),
        ([7, 9, 1], 128, [Run(0, 4, 16, True)]),
        # 64 x 8 tokens padded against 8 x 2 and a chunk alone: the weights are read again, for fewer tokens
        ([1] * 7 + [64], 128, [Run(0, 8, 2, True), Run(7, 1, 64, False)]),
        ([1, 1, 64], 512, [Run(0, 4, 64, True)]),  # where tokens cost nothing beside the weights
        ([64] * 8, 128, [Run(0, 8, 64, True)]),
        ([500], 128, [Run(0, 1, 512, False)]),
        ([2, 500, 3], 128, [Run(0, 4, 4, True), Run(1, 1, 512, False)]),
    ],
)
def test_plan(counts: list[int], free: int, runs: list[Run]) -> None:
    found, own = plan(counts, 64, 2, free)
    assert found == runs
    for row, run in enumerate(own):
        at = runs[run]
        assert at.first <= row < at.first + at.rows and counts[row] <= at.nodes
        assert at.narrow or at.first == row


def test_plans_cover_every_row_once_and_fit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        most = int(rng.integers(1, 70))
        rows = int(rng.integers(1, most + 1))
        counts = rng.choice([1, 2, 5, 16, 17, 64, 65, 300], rows).tolist()
        runs, own = plan(counts, most, int(rng.integers(1, 3)), int(rng.choice([1, 4, 128, 1000])))
        assert len(own) == rows and all(run.rows <= most and run.first + run.rows <= most for run in runs)
        assert [run.narrow for run in runs] == [True] * (runs[0].narrow) + [False] * (len(runs) - runs[0].narrow)
        assert all(run.nodes <= MAX_NODES for run in runs if run.narrow), "a tree's last slots are 64"
        for row, count in enumerate(counts):
            assert runs[own[row]].nodes >= count


def test_padded_inputs() -> None:
    """Every real node has its token, depth and ancestors; the rest see something, and write where nothing is kept."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        n, packer = int(rng.integers(1, 6)), Packer(True, False, 200)
        lengths = rng.integers(1, 100, n).tolist()
        works = [random_tree(rng, [3, 4], int(k), 97, False)[0] for k in rng.choice([2, 5, 16, 40], n)]
        batch, _ = packer.pack(list(zip(lengths, works, strict=True)))
        runs, own = plan(batch.count.tolist(), 8, 2, 4)
        start = np.cumsum(batch.count) - batch.count
        for number, run in enumerate(runs):
            parts, size = layout(shapes(run.rows, run.nodes, 1))
            memory = np.full(size, 255, np.uint8)
            into = {
                name: memory[at : at + int(np.prod(shape)) * np.dtype(kind).itemsize].view(kind).reshape(shape)
                for name, (at, kind, shape) in parts.items()
            }
            pad(batch, run, np.array(own) == number, CAPACITY, into)
            for i in range(run.rows):
                row = run.first + i
                real = int(batch.count[row]) if row < n and own[row] == number else 0
                length = lengths[row] if row < n else CAPACITY - run.nodes
                assert (into["length"][i], into["count"][i]) == (length, max(real, 1))
                at = slice(start[row], start[row] + real) if real else slice(0, 0)
                assert into["tokens"][i, :real].tolist() == batch.tokens[at].tolist()
                assert into["depth"][i, :real].tolist() == batch.depth[at].tolist()
                assert not into["tokens"][i, real:].any() and not into["depth"][i, real:].any()
                seen = into["ancestors"][i]
                assert np.array_equal(seen[:real, :real], batch.ancestors[row, :real, :real] if real else seen[:0, :0])
                assert not seen[:real, real:].any(), "a node sees no padding"
                assert seen[real:, 0].all() and not seen[real:, 1:].any()
                assert length + run.nodes <= CAPACITY


def test_junk_past_a_rows_count_is_ignored() -> None:
    packer = Packer(True, False, 64)
    batch, _ = packer.pack([(5, [1]), (7, [2, 3, 4])])
    batch.ancestors[0, 1:] = batch.ancestors[0, :, 1:] = True
    [run], _ = plan(batch.count.tolist(), 2, 2, 128)
    into = {name: np.zeros(shape, kind) for name, kind, shape in shapes(run.rows, run.nodes, 1)}
    pad(batch, run, np.array([True, True]), CAPACITY, into)
    assert into["ancestors"][0].tolist() == [[True, False, False, False]] * 4
