"""When it is decided anew: how long budgets last, how often it is decided who drafts, and what time is worth."""

from dataclasses import replace

import numpy as np
import pytest

from runtime.acceptance import Acceptance
from runtime.asking import DECIDE_EVERY, Asking
from runtime.cost import CostModel
from runtime.habit import REMEMBERED, Habit
from runtime.load import Load
from runtime.pace import BUDGET_AFTER, BUDGET_ROW, Pace
from runtime.session import Batch
from runtime.speculation import STEADY, Budget
from runtime.stats import Decisions
from runtime.tree import PUBLISHED_ACCURACY, Universe

HEADS = len(PUBLISHED_ACCURACY)
BUDGET = Budget(least=-1.0, most=9, beyond=-0.5, rate=1000.0, outdated=0.1, clear=True)


def model(token: float, heads: float = 1e-4) -> CostModel:
    """A step takes 1 ms, and `token` seconds more for each token."""
    points = [1, 2, 4, 8, 16, 32, 64]
    return CostModel([1, 8], points, [[1e-3 + token * n for n in points]] * 2, [0.0] * len(points), [heads] * 2)


def asking(cost: CostModel) -> tuple[Asking, Pace]:
    pace = Pace(cost, Decisions())
    return Asking(HEADS, Universe(PUBLISHED_ACCURACY, 10), Acceptance(HEADS), pace), pace


def sequence(chance: float) -> Habit:
    """One whose drafts had nodes of this chance lately."""
    return Habit(nodes=16, fixed=False, looks=False, values=np.full(REMEMBERED, chance))


def decide(asked: Asking, habits: list[Habit], proven: bool = True) -> None:
    lengths = [50] * len(habits)
    asked.decide(habits, [0] * len(habits), np.array(lengths), Load.planned(lengths, [0] * len(habits)), proven)


def steps_until_the_next(asked: Asking, habits: list[Habit]) -> int:
    steps = 1
    while asked.carry_on(habits):
        steps += 1
    return steps


def test_a_budget_lasts_longer_while_it_says_the_same() -> None:
    lasts, last = [], None
    for _ in range(4):
        last = BUDGET.after(last)
        lasts.append(last.lasts)
    assert lasts == [1, 2, STEADY, STEADY]
    assert replace(BUDGET, most=11).after(last).lasts == STEADY, "about the same"
    assert replace(BUDGET, most=12).after(last).lasts == 1, "another number of nodes"
    assert replace(BUDGET, clear=False).after(last).lasts == 1, "drafts that hardly pay are looked at again"


def test_a_budget_is_due_by_the_seconds_that_the_decoder_took() -> None:
    pace = Pace(model(1e-5), Decisions())
    batch = Batch(*(np.ones(1, np.int64) for _ in range(4)), np.ones((1, 1, 1), bool), np.zeros(1, np.int64))
    usual, disappointing = BUDGET_AFTER
    pace.ran(batch, 1, disappointing * 1.01)
    assert not pace.budget_is_due(1) and pace.budget_is_due(1, disappointing=True)
    pace.ran(batch, 1, usual - disappointing)
    assert pace.budget_is_due(1) and not pace.budget_is_due(2) and not pace.budget_is_due(1, lasts=2)
    pace.ran(batch, 1, usual + BUDGET_ROW)
    assert pace.budget_is_due(2) and pace.budget_is_due(1, lasts=2)
    pace.planned()
    assert not pace.budget_is_due(1)


def test_who_drafts_is_decided_more_rarely_where_it_is_clear() -> None:
    first, most = DECIDE_EVERY
    asked, _ = asking(model(1e-6))
    habits = [sequence(0.9), sequence(0.9)]
    waits = []
    for _ in range(4):
        decide(asked, habits)
        assert all(habit.heads for habit in habits)
        waits.append(steps_until_the_next(asked, habits))
    assert waits == [2 * first, most, most, most]
    decide(asked, habits, proven=False)
    assert steps_until_the_next(asked, habits) == first, "who knows whether they come true"
    decide(asked, [sequence(0.9), sequence(0.0)])
    assert steps_until_the_next(asked, habits) == first, "not for all"


def test_what_gives_more_than_plain_steps_goes_on_though_averages_promise_less() -> None:
    """On the average a node is worth a fifth of what it costs here; the best ones of each step may be worth more."""
    asked, pace = asking(model(2e-3))
    habits = [sequence(0.2)]
    habits[0].heads = True
    for _ in range(100):
        pace.took(1, drafted=True, inside=3e-3, seconds=0.0, tokens=3, giving=0.0)
    decide(asked, habits)
    assert habits[0].heads, "steps gave 1000 tokens a second, plain ones would give 333"
    for _ in range(100):
        pace.took(1, drafted=False, inside=0.8e-3, seconds=0.0, tokens=1, giving=0.0)
        pace.took(1, drafted=True, inside=3e-3, seconds=0.0, tokens=3, giving=0.0)
    decide(asked, habits)
    assert not habits[0].heads, "plain ones gave 1250"


@pytest.mark.parametrize("gave", [500.0, 2000.0])
def test_time_is_worth_what_all_rows_give_together(gave: float) -> None:
    """Also while some of them take in their prompts; and at least what steps without drafts gave."""
    pace = Pace(model(1e-4), Decisions())
    pace.took(1, drafted=True, inside=1.0, seconds=0.0, tokens=100, giving=0.0)
    pace.took(2, drafted=True, inside=1.0, seconds=0.0, tokens=1000, giving=0.0)
    pace.took(3, drafted=False, inside=1.0, seconds=0.0, tokens=round(gave), giving=0.0)
    beside_a_prompt = pace.prices(Load.planned([50, 0], [0, 20]))
    assert beside_a_prompt.rate == pytest.approx(1000.0) and beside_a_prompt.floor == 0.0
    assert pace.prices(Load.planned([50] * 3, [0] * 3)).floor == pytest.approx(gave)


@pytest.mark.parametrize("lately", [None, 2000.0])
def test_no_heads_for_what_is_found_without_them(lately: float | None) -> None:
    """Where the text goes on as it did before, heads that are right say the same.

    That it made steps faster than plain ones lately is no merit of the heads.
    """
    for matched, heads in ((0, True), (8, False)):
        asked, pace = asking(model(1e-6, heads=5e-4))
        if lately is not None:
            pace.took(1, drafted=True, inside=10.0, seconds=0.0, tokens=round(10 * lately), giving=0.0)
        habit = sequence(0.3)
        habit.heads = True
        asked.decide([habit], [matched], np.array([50]), Load.planned([50], [0]), True)
        assert habit.heads == heads, f"{matched} tokens match"
