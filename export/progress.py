"""How long it still takes: judged by the steps that are done, which are about equally long."""

import time
from collections.abc import Callable

Say = Callable[[str], None]
WORTH_SAYING = 5.0  # seconds


def unheard(line: str) -> None:
    """For work whose remarks nobody reads."""


class Countdown:
    """Says what each of `steps` steps does as it begins, with the time left."""

    def __init__(self, say: Say, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._steps, self._clock = say, steps, clock
        self._began = clock()
        self._done = -1

    def __call__(self, what: str) -> None:
        self._done += 1
        left = (self._clock() - self._began) / max(1, self._done) * (self._steps - self._done)
        self._say(f"{what}, {_duration(left)} left" if self._done and left >= WORTH_SAYING else what)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
