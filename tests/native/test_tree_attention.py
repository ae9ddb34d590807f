"""The kernel alone: against float64, and the bits of one key order against those of another."""

from dataclasses import replace

import numpy as np
import pytest

from runtime.native.library import Library
from tests.native.attention import (
    MARK,
    TYPES,
    Cache,
    Kernel,
    Refused,
    Shape,
    Step,
    chain,
    expected,
    new_keys,
    plain,
    random_cache,
    random_parents,
    random_step,
)

GROUPS = ((1, 1), (4, 4), (4, 2), (6, 2), (8, 1), (15, 3))  # heads, key-value heads
HEAD_DIMS = (64, 96, 128, 8, 24, 40, 72, 88, 104, 120)
LENGTHS = (0, 1, 5, 62, 63, 64, 65, 127, 128, 190, 254, 255, 256, 257, 300, 511, 600)
COUNTS = (1, 1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 64)


PATHS = ("portable", "avx2", "avx512_vnni")  # the others take one of these


@pytest.fixture(params=PATHS)
def kernel(request: pytest.FixtureRequest, library: Library) -> Kernel:
    if not library.has(request.param):
        pytest.skip(f"this processor has no {request.param}")
    return Kernel(library, request.param)


def random_case(seed: int, types: tuple[str, ...] = tuple(TYPES)) -> tuple[Shape, Step, Cache]:
    """Up to five rows, of trees and chains; now and then one has no node."""
    rng = np.random.default_rng(seed)
    heads, kv_heads = GROUPS[rng.integers(len(GROUPS))]
    shape = Shape(heads, kv_heads, int(rng.choice(HEAD_DIMS)), 720, str(rng.choice(types)))
    rows = int(rng.integers(1, 6))
    length = rng.choice(LENGTHS, rows).tolist()
    count = rng.choice(COUNTS, rows).tolist()
    if rows > 1 and rng.random() < 0.3:
        count[rng.integers(rows)] = 0
    if sum(count) == 0:
        count[0] = 1
    parents = [chain(n) if rng.random() < 0.3 or n == 0 else random_parents(rng, n) for n in count]
    return shape, random_step(rng, shape, length, parents), random_cache(rng, shape, length)


def close(kernel: Kernel, shape: Shape, step: Step, cache: Cache) -> None:
    got = kernel.run(shape, step, cache)
    assert np.abs(got - expected(shape, step, cache).reshape(got.shape)).max() < 3e-5


@pytest.mark.parametrize("seed", range(30))
def test_random_steps_against_float64(kernel: Kernel, seed: int) -> None:
    close(kernel, *random_case(seed))


@pytest.mark.parametrize("length", [0, 1000, 1500, 2000])
@pytest.mark.parametrize("chunk", [True, False])
def test_long_pasts_and_chunks_against_float64(kernel: Kernel, length: int, chunk: bool) -> None:
    rng = np.random.default_rng(length)
    shape = Shape(4, 2, 64, 2560)
    lengths = [length, 3] if chunk else [length]
    step = random_step(rng, shape, lengths, [chain(512), random_parents(rng, 64)] if chunk else [[-1, 0, 0]])
    close(kernel, shape, step, random_cache(rng, shape, lengths))


@pytest.mark.parametrize("seed", range(60, 70))
def test_nothing_is_written_but_the_nodes(kernel: Kernel, seed: int) -> None:
    shape, step, before = random_case(seed)
    after = before.copy()
    kernel.run(shape, step, after)
    key, value = new_keys(shape, step)
    first = 0
    for row, n in enumerate(step.count):
        nodes = slice(step.length[row], step.length[row] + n)
        for was, now, scale, want in (
            (before.key, after.key, after.key_scale, key),
            (before.value, after.value, after.value_scale, value),
        ):
            got, new = plain(now[row, :, nodes], scale[row, :, nodes], shape), want[first : first + n].swapaxes(0, 1)
            top = np.abs(new).max(-1, keepdims=True, initial=0)
            error = {"fp32": 1e-6 * top, "fp16": np.abs(new) / 2**11 + 1e-7, "int8": top * (0.5 / 127 + 1e-5)}
            assert (np.abs(got - new) <= error[shape.type]).all()
            assert np.array_equal(np.delete(now[row], np.r_[nodes], 1), np.delete(was[row], np.r_[nodes], 1))
            assert (now[row, :, nodes.stop :] == MARK).all()
        first += n


@pytest.mark.parametrize("seed", range(100, 115))
def test_the_bits_do_not_depend_on_what_shares_the_step(kernel: Kernel, seed: int) -> None:
    """The batch against each row alone, in another capacity, and with one thread against several."""
    shape, step, before = random_case(seed)
    cache = before.copy()
    want = kernel.run(shape, step, cache)
    for threads in (2, 3, 16):
        again = before.copy()
        assert np.array_equal(replace(kernel, threads=threads).run(shape, step, again), want)
        assert all(np.array_equal(a, b) for a, b in zip(cache.arrays, again.arrays, strict=True))
    first = 0
    larger = Shape(shape.heads, shape.kv_heads, shape.head_dim, shape.capacity + 96, shape.type)
    for row, n in enumerate(step.count):
        alone = Cache.empty(larger, 1)
        for place, held in zip(alone.arrays, before.row(row).arrays, strict=True):
            place[:, :, : shape.capacity] = held
        assert np.array_equal(kernel.run(larger, step.row(row), alone), want[first : first + n])
        first += n


@pytest.mark.parametrize("seed", range(200, 225))
def test_a_path_with_gaps_has_the_bits_of_the_path_in_place(kernel: Kernel, seed: int) -> None:
    """Every node of a tree against its path as a chain, and against one token at a time."""
    shape, step, before = random_case(seed)
    row = int(np.argmax(step.count))
    length, parents, before = int(step.length[row]), step.parents[row], before.row(row)
    tree = kernel.run(shape, step.row(row), before.copy())
    rng = np.random.default_rng(seed)
    for node in {len(parents) - 1, *rng.integers(0, len(parents), 4).tolist()}:
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        together = kernel.run(shape, step.nodes(row, path, chain(len(path)), length), before.copy())
        assert np.array_equal(together, tree[path])
        cache = before.copy()
        for i, slot in enumerate(path):
            assert np.array_equal(kernel.run(shape, step.nodes(row, [slot], [-1], length + i), cache)[0], tree[slot])


@pytest.mark.parametrize("chunk", [1, 2, 3, 16, 50, 64, 100, 256])
@pytest.mark.parametrize("head", [(8, 1, 64), (2, 2, 40)])
def test_a_prompt_in_chunks_has_the_bits_of_the_whole(kernel: Kernel, chunk: int, head: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(chunk)
    shape = Shape(*head, 512, str(rng.choice(list(TYPES))))
    step, whole, parts = random_step(rng, shape, [0], [chain(301)]), Cache.empty(shape, 1), Cache.empty(shape, 1)
    want = kernel.run(shape, step, whole)
    for at in range(0, 301, chunk):
        slots = list(range(at, min(at + chunk, 301)))
        got = kernel.run(shape, step.nodes(0, slots, chain(len(slots)), at), parts)
        assert np.array_equal(got, want[slots])
    assert all(np.array_equal(a, b) for a, b in zip(whole.arrays, parts.arrays, strict=True))


def test_a_long_past_is_divided_among_threads_without_a_change(kernel: Kernel) -> None:
    rng = np.random.default_rng(0)
    shape = Shape(2, 1, 64, 2560)
    step, before = random_step(rng, shape, [2000], [[-1, 0, 1, 0]]), random_cache(rng, shape, [2000])
    want = kernel.run(shape, step, before.copy())
    for threads in (2, 3, 5, 8, 64):
        assert np.array_equal(replace(kernel, threads=threads).run(shape, step, before.copy()), want)


def test_what_is_not_a_number_stays_in_its_row_and_is_seen(kernel: Kernel) -> None:
    """A hidden key or a row beside it changes nothing; one that is seen does."""
    rng = np.random.default_rng(0)
    shape = Shape(2, 1, 64, 128)
    step, cache = random_step(rng, shape, [20, 30], [[-1, 0, 0], chain(3)]), random_cache(rng, shape, [20, 30])
    want = kernel.run(shape, step, cache.copy())
    cache.key[0, :, 7] = np.nan
    got = kernel.run(shape, step, cache)
    assert np.isnan(got[:3]).all() and np.array_equal(got[3:], want[3:])


def test_the_exponential(kernel: Kernel) -> None:
    """Relative error below 2e-7 from 0 down to the smallest normal number, and 1 and 0 exactly where they must be."""
    x = np.concatenate(
        [np.linspace(-87.3, 0, 1 << 20, dtype=np.float32), -np.logspace(-30, 0, 1 << 16, dtype=np.float32)]
    )
    y = kernel.exponential(x).astype(np.float64)
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() < 2e-7
    ends = np.array([0.0, -0.0, -87.4, -88, -1e4, -3e38, -np.inf, np.nan] + [0] * 8, np.float32)
    assert np.array_equal(kernel.exponential(ends)[:8], [1, 1, 0, 0, 0, 0, 0, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": np.array([-1, 5])}, "row 0 has -1 committed tokens and 3 nodes"),
        ({"length": np.array([4, 126])}, "row 1 has 126 committed tokens and 3 nodes: .* the cache holds 128"),
        ({"length": np.array([4, 2**62])}, "row 1 has 4611686018427387904 committed tokens"),
        ({"count": np.array([3, 4])}, "row 1 has 5 committed tokens and 4 nodes: ancestors are 3 wide"),
        ({"count": np.array([3, -2])}, "row 1 has 5 committed tokens and -2 nodes"),
        ({"count": np.array([3, 2])}, "the rows have 5 nodes, there are 6 tokens"),
        ({"tokens": 5}, "row 1 ends after token 6 of 5"),
        ({"depth": np.array([0, 1, 1, 0, 1, 5])}, "row 1, node 2: depth 5"),
        ({"depth": np.array([0, 1, 1, 0, 1, -1])}, "row 1, node 2: depth -1"),
        ({"positions": 6}, "row 1, node 1: depth 1 after 5 tokens, with 3 nodes and 6 positions"),
        ({"depth": np.array([0, 1, 2, 0, 1, 2])}, "row 0, node 2 of depth 2 sees 1 nodes before it"),
        ({"ancestors": np.ones((2, 3, 3), bool)}, "row 0, node 0 of depth 0 sees 0 nodes before it, 2 after it"),
        ({"ancestors": np.tri(3, k=-1, dtype=bool)[None].repeat(2, 0)}, "and itself not: it must see 0, 0 and itself"),
        ({"heads": 3}, "3 heads and 2 key-value heads: the first must be a multiple of the second"),
        ({"head_dim": 12}, "a head has 12 elements: it must be a multiple of 8"),
        ({"type": 3}, "cache type 3"),
        ({"type": 2, "key_scale": 0}, "a cache of int8 needs its scales"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_before_memory_is_touched(kernel: Kernel, change: dict, said: str) -> None:
    rng = np.random.default_rng(0)
    shape = Shape(4, 2, 16, 128)
    step, cache = random_step(rng, shape, [4, 5], [[-1, 0, 0], chain(3)]), random_cache(rng, shape, [4, 5])
    before = cache.copy()
    with pytest.raises(Refused, match=said):
        kernel.run(shape, step, cache, **change)
    assert all(np.array_equal(a, b) for a, b in zip(cache.arrays, before.arrays, strict=True))
