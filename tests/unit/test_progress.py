"""The time left is judged by the steps that are done."""

from export.progress import Countdown


def test_the_time_left_follows_the_steps() -> None:
    now, said = 100.0, list[str]()
    progress = Countdown(said.append, 10, clock=lambda: now)
    for what, seconds in (("one", 30.0), ("two", 90.0), ("three", 0.0)):
        progress(what)
        now += seconds
    assert said == ["one", "two, 4 min left", "three, 8 min left"]


def test_the_last_seconds_are_not_worth_a_word() -> None:
    now, said = 0.0, list[str]()
    progress = Countdown(said.append, 3, clock=lambda: now)
    for what, seconds in (("one", 20.0), ("two", 20.0), ("three", 0.0)):
        progress(what)
        now += seconds
    assert said == ["one", "two, 40 s left", "three, 20 s left"]
    quick = Countdown(said.append, 3, clock=lambda: now)
    for _ in range(3):
        quick("quick")
        now += 1.0
    assert said[3:] == ["quick"] * 3
