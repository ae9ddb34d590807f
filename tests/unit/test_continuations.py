"""How often prompt lookup is asked."""

from typing import Any

import pytest

from runtime.continuations import ASKING, EXPLORE_EVERY, MEMORY, NOT_FOUND, UNASKED, Continuations
from runtime.habit import Habit
from runtime.params import SamplingParams
from runtime.sequence import Sequence

RATE = 0.1 / ASKING  # tokens a second, where a tenth of a token pays for asking


def sequence(number: int, looks: bool = True) -> Sequence:
    habit, stream = Habit(16, fixed=False, looks=looks), Any
    return Sequence(number, [5, 6], SamplingParams(100), 0, habit, 100, 0, stream, tokens=[7])  # type: ignore[arg-type]


def asked(continuations: Continuations, s: Sequence, steps: int) -> list[int]:
    """In which of so many steps it was, while the text never repeats itself."""
    known = []
    for step in range(steps):
        before = 0 if s.habit.lookup is None else len(s.habit.lookup)
        assert continuations.find([s]) == [NOT_FOUND]
        if s.habit.lookup is not None and len(s.habit.lookup) > before:
            assert len(s.habit.lookup) == len(s.prompt) + len(s.tokens), "it learns all that came meanwhile"
            known.append(step)
        s.tokens.append(s.tokens[-1] + 1)
    return known


def disappointed(rate: float = RATE) -> Continuations:
    """Who asked often, and got nothing."""
    continuations, s = Continuations([1]), sequence(0)
    for _ in range(4 * MEMORY):
        s.habit.unasked = 0
        continuations.find([s])
        continuations.learn(0, rate)
    return continuations


def test_who_knows_nothing_is_asked_every_fourth_step() -> None:
    assert asked(Continuations([1]), sequence(3), 14) == [0, 4, 8, 12]
    assert asked(Continuations([1]), sequence(3, looks=False), 14) == []


def test_what_pays_for_nobody_is_asked_more_rarely() -> None:
    """But by one in EXPLORE_EVERY sequences, or nobody would see that it pays again."""
    late = UNASKED[1]
    for number in range(2 * EXPLORE_EVERY):
        expected = [0, 4, 8, 12, 16, 20] if number % EXPLORE_EVERY == 0 else [late]
        assert asked(disappointed(), sequence(number), 2 * late - 6) == expected


def test_where_time_is_cheap_asking_pays_all_the_same() -> None:
    """As with a large model, each of whose steps takes a thousand times what asking does."""
    assert asked(disappointed(rate=RATE / 1000), sequence(3), 6) == [0, 4]


@pytest.mark.parametrize(("tokens", "late"), [(8, False), (800, True)])
def test_to_index_a_prompt_is_not_free(tokens: int, late: bool) -> None:
    """One node for each of the sequences: for short prompts that is worth it, for long ones it is not."""
    continuations = Continuations([1])
    for number in range(MEMORY):
        s = sequence(EXPLORE_EVERY * number)
        s.prompt = list(range(10, 10 + tokens))
        continuations.find([s])
        continuations.learn(1, RATE)
    assert asked(continuations, sequence(3), 6) == ([] if late else [0, 4])


def test_what_it_brings_makes_it_pay_again() -> None:
    continuations, s = disappointed(), sequence(0)
    for _ in range(MEMORY):
        s.habit.unasked = 0
        continuations.find([s])
        continuations.learn(1, RATE)
    assert asked(continuations, sequence(3), 6) == [0, 4]


@pytest.mark.parametrize("pays", [True, False])
def test_who_knows_something_is_asked_in_each_step(pays: bool) -> None:
    continuations, s = Continuations([1]) if pays else disappointed(), sequence(3)
    s.prompt = [7, 8, 7]
    steps = []
    for step in range(2 * UNASKED[1]):
        s.tokens.append(8 - step % 2)
        if continuations.find([s]) != [NOT_FOUND]:
            steps.append(step)
    assert steps == list(range(0 if pays else UNASKED[1], 2 * UNASKED[1]))
