"""Calibration: what the drafts claim becomes what they turn out to be worth."""

import numpy as np
import pytest

from runtime.acceptance import FORCED, Acceptance
from runtime.forest import ROOT
from runtime.habit import PATIENCE, Habit


def feed(acceptance: Acceptance, claimed: float, truth: float, count: int, head: int = 0) -> float:
    """Observes `count` drafts that claim one probability and have another; the calibrated probability after them."""
    rng = np.random.default_rng(0)
    draft = np.full((1, 5, 1), np.log(claimed), np.float32)
    for _ in range(count):
        chance, cells = acceptance.heads(draft)
        acceptance.observe(cells[0, head], np.exp(chance[0, head]), rng.random(1) < truth)
    return float(np.exp(acceptance.heads(draft)[0][0, head, 0]))


@pytest.mark.parametrize(("claimed", "truth"), [(0.9, 0.3), (0.5, 0.9), (0.05, 0.3), (0.3, 0.3), (0.97, 0.01)])
def test_a_probability_becomes_the_share_that_came_true(claimed: float, truth: float) -> None:
    assert feed(Acceptance(5), claimed, truth, 3000) == pytest.approx(truth, rel=0.2, abs=0.01)


def test_it_begins_with_what_the_draft_says_and_forgets_slowly() -> None:
    acceptance = Acceptance(5)
    assert feed(acceptance, 0.5, 0.5, 0) == pytest.approx(0.5)
    feed(acceptance, 0.9, 0.9, 2000)
    assert feed(acceptance, 0.9, 0.1, 20) > 0.6, "twenty drafts outweigh two thousand"
    assert feed(acceptance, 0.9, 0.1, 3000) < 0.2


def test_heads_and_probabilities_are_calibrated_apart() -> None:
    acceptance = Acceptance(5)
    feed(acceptance, 0.9, 0.1, 500, head=2)
    chance, _ = acceptance.heads(np.log(np.array([[[0.9], [0.9], [0.9], [0.9], [0.9]]], np.float32)))
    assert np.exp(chance[0, [0, 1, 3, 4], 0]) == pytest.approx(0.9)
    chance, _ = acceptance.heads(np.full((1, 5, 1), np.log(0.25), np.float32))
    assert np.exp(chance[0, 2, 0]) == pytest.approx(0.25)


def test_no_chance_is_above_certainty_or_no_number() -> None:
    acceptance = Acceptance(2)
    feed_high = np.zeros((1, 2, 3), np.float32)
    feed_high[0, 1] = [np.nan, -np.inf, -50]
    chance, _ = acceptance.heads(feed_high)
    assert (chance < 0).all() and np.isfinite(chance).all()


def test_longer_matches_promise_more_and_learn_apart() -> None:
    acceptance = Acceptance(0)
    short, _ = acceptance.lookup(2, 6)
    long, cells = acceptance.lookup(9, 6)
    assert (long[:3] > short[:3]).all() and acceptance.is_lookup(cells).all()
    for _ in range(200):
        chance, cells = acceptance.lookup(9, 1)
        acceptance.observe(cells, np.exp(chance), np.zeros(1, bool))
    assert np.exp(acceptance.lookup(9, 1)[0][0]) < 0.05
    assert np.array_equal(acceptance.lookup(2, 6)[0], short)
    forced = acceptance.lookup(FORCED, 6)[1]
    assert acceptance.is_forced(forced).all() and not acceptance.is_forced(acceptance.lookup(1000, 6)[1]).any()
    assert not acceptance.is_lookup(np.array([ROOT])).any(), "also where there are no heads"


def test_a_sequence_whose_drafts_fail_is_trusted_less() -> None:
    habit = Habit(16, fixed=False, looks=False)
    assert habit.trust == 1
    for _ in range(50):
        habit.learn(expected=1.0, right=0.0)
    assert habit.trust < 0.3
    for _ in range(300):
        habit.learn(expected=1.0, right=1.0)
    assert habit.trust > 0.9


def test_heads_that_do_not_pay_are_tried_ever_more_rarely() -> None:
    habit, tried = Habit(16, fixed=False, looks=False), []
    for step in range(2000):
        habit.decide(pays=False, steps=1, may_try=True)
        if habit.heads:
            tried.append(step)
        habit.end_trial()
        assert not habit.heads
    gaps = np.diff(tried)
    assert (np.diff(gaps) >= 0).all() and gaps.max() == PATIENCE[1]
    habit.decide(pays=False, steps=PATIENCE[1], may_try=False)
    assert not habit.heads, "not now"
    habit.decide(pays=False, steps=1, may_try=True)
    assert habit.heads, "but as soon as it may be"
    habit.decide(pays=True, steps=1, may_try=True)
    habit.end_trial()
    assert habit.heads
