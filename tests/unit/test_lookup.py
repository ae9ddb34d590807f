"""Prompt lookup: the longest match known by its last two or three tokens, and what followed it."""

import random

import pytest

from runtime.lookup import LONGEST, Lookup


def test_it_finds_what_followed() -> None:
    assert Lookup([1, 2, 3, 4, 5, 9, 1, 2]).continuation(3) == (2, [3, 4, 5])
    assert Lookup([7, 1, 2, 3, 4, 5, 9, 7, 1, 2, 3]).continuation(2) == (4, [4, 5])


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4], [2, 1, 3, 2]])
def test_nothing_repeats_nothing_is_found(tokens: list[int]) -> None:
    assert Lookup(tokens).continuation(4) == (0, [])


def test_three_tokens_win_over_two_that_came_later() -> None:
    assert Lookup([5, 1, 2, 3, 8, 1, 2, 4, 5, 1, 2]).continuation(1) == (3, [3])


def test_a_period_goes_on() -> None:
    matched, tokens = Lookup([1, 2, 3] * 4).continuation(7)
    assert (matched, tokens) == (LONGEST, [1, 2, 3, 1, 2, 3, 1])
    assert Lookup([4] * 9).continuation(3)[1] == [4, 4, 4]


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_search(seed: int) -> None:
    """Pushed one by one: the last earlier place of the newest three tokens, else of the newest two."""
    rng = random.Random(seed)
    lookup, tokens = Lookup([]), []
    for _ in range(300):
        tokens.append(rng.randrange(6))
        lookup.extend(tokens[-1:])
        end = len(tokens)
        places = [
            next((i for i in range(end - 1, width - 1, -1) if tokens[i - width : i] == tokens[end - width :]), None)
            for width in (3, 2)
            if end > width
        ]
        place = next((p for p in places if p is not None), None)
        matched, found = lookup.continuation(5)
        assert Lookup(tokens).continuation(5) == (matched, found), "as a prompt they are the same tokens"
        if place is None:
            assert (matched, found) == (0, [])
            continue
        assert matched == next(
            n for n in range(LONGEST, 1, -1) if place >= n and tokens[place - n : place] == tokens[end - n :]
        )
        longer = list(tokens)
        for i in range(5):
            longer.append(longer[place + i])
        assert found == longer[end:]
