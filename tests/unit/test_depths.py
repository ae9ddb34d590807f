"""How many heads run: as many as bring more than they cost, and all of them now and then."""

import numpy as np
import pytest

from runtime.cost import CostModel
from runtime.depths import LOOK_AGAIN, Depths

HEADS = 5
RATE = 50.0  # tokens a second: a head has to bring 0.1


def cost(base: float = 0.0) -> CostModel:
    """10 ms for all heads, whatever the rows."""
    return CostModel([1], [1], [[1e-3]], [0.0], [10e-3], base=base)


def learnt(brings: list[float], base: float = 0.0, rows: int = 1, steps: int = 40, ran: int = HEADS) -> Depths:
    """After steps in whose trees nodes of each depth were worth so much a row."""
    depths = Depths(HEADS)
    for step in range(steps):
        depth, surplus = np.arange(1, HEADS + 1)[:ran], rows * np.array(brings)[:ran]
        depths.observe(rows, ran if step else HEADS, depth, surplus, RATE, cost(base), step * 0.02)
    return depths


@pytest.mark.parametrize(
    ("brings", "want"),
    [([0.5, 0.05, 0.0, 0.0, 0.0], 1), ([0.5, 0.3, 0.05, 0.0, 0.0], 2), ([0.9, 0.8, 0.7, 0.6, 0.5], 5),
     ([0.5, 0.05, 0.3, 0.0, 0.0], 3), ([0.0, 0.0, 0.0, 0.0, 0.0], 1)],
)  # fmt: skip
def test_as_many_run_as_pay(brings: list[float], want: int) -> None:
    depths = learnt(brings)
    assert depths.choose(1, 0.0) == want and depths.share(1) == want / HEADS


def test_heads_that_cost_nothing_more_all_run() -> None:
    assert learnt([0.5, 0.05, 0.001, 0.001, 0.001], base=1.0).choose(1, 0.0) == HEADS


def test_more_rows_want_more_heads() -> None:
    assert learnt([0.5, 0.05, 0.0, 0.0, 0.0], rows=4).choose(4, 0.0) == 2


def test_all_run_for_rows_that_nobody_has_seen() -> None:
    depths = learnt([0.5, 0.0, 0.0, 0.0, 0.0])
    assert (depths.choose(1, 0.0), depths.choose(8, 0.0)) == (1, HEADS)
    assert (depths.share(8), Depths(HEADS).share(8)) == (1 / HEADS, 1.0), "what is expected is what is known nearest"


def test_the_others_are_looked_at_again() -> None:
    """As often as their time, 8 ms, is a share LOOK_AGAIN of all."""
    depths = learnt([0.5, 0.0, 0.0, 0.0, 0.0])
    every = [now for now in np.arange(0.0, 20.0, 0.02).tolist() if depths.choose(1, now) == HEADS]
    assert np.diff(every) == pytest.approx(8e-3 / LOOK_AGAIN, abs=0.021) and len(every) > 5


@pytest.mark.parametrize(("deep", "want"), [(0.0, 2), (0.5, HEADS)])
def test_what_did_not_run_is_remembered(deep: float, want: int) -> None:
    """Nothing is heard of deep heads while they do not run, and the first ones' worth says nothing of them."""
    depths = learnt([0.5, 0.2, deep, deep, deep])
    for step in range(40):
        depths.observe(1, 2, np.array([1, 2]), np.array([0.9, 0.8]), RATE, cost(), 0.8 + step * 0.02)
    assert depths.choose(1, 0.0) == want


def test_heads_that_begin_to_pay_run_again() -> None:
    depths = learnt([0.5, 0.2, 0.0, 0.0, 0.0])
    for step in range(10):
        every = np.arange(1, HEADS + 1)
        depths.observe(1, HEADS, every, np.full(HEADS, 0.5), RATE, cost(), 0.8 + step * 0.02)
    assert depths.choose(1, 0.0) == HEADS
