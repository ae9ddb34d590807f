"""Which requests come, and when: drawn from a seed, so that every setting gets the same ones at the same times."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

OPEN_SECONDS = 20.0  # of arrivals in a run, unless a number of requests is asked for
OPEN_LEAST = 64  # requests: fewer say little about a 99th percentile
CLOSED_TIMES = 8  # requests of a run for each client: the run's tail, when clients run out of them, stays small


@dataclass(frozen=True, slots=True)
class Closed:
    """`clients` that each send a request when the answer to their last one has ended."""

    clients: int

    def __str__(self) -> str:
        return f"{self.clients} client{'s'[: self.clients != 1]}"

    @property
    def requests(self) -> int:
        """Of a run, unless the user says."""
        return CLOSED_TIMES * max(2, self.clients)

    def times(self, count: int, seed: object) -> list[float]:
        return [0.0] * count


@dataclass(frozen=True, slots=True)
class Open:
    """Requests that come at `rate` a second on average, whether or not earlier ones have been answered."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:g} a second"

    @property
    def requests(self) -> int:
        """Of a run, unless the user says."""
        return max(OPEN_LEAST, round(self.rate * OPEN_SECONDS))

    def times(self, count: int, seed: object) -> list[float]:
        """Seconds from the start: a Poisson process, so the time to the next arrival is exponential, mean 1 / rate."""
        rng, at, times = random.Random(f"{seed} {self}"), 0.0, []
        for _ in range(count):
            at += rng.expovariate(self.rate)
            times.append(at)
        return times


Load = Closed | Open


@dataclass(frozen=True, slots=True)
class Request:
    """`due` seconds after the start of the run, or, where the load is closed, as soon as a client is free."""

    due: float
    prompt: str
    max_tokens: int
    seed: int  # of sampling


def draw(
    load: Load, prompts: Sequence[str], count: int | None, max_tokens: tuple[int, int], turn: int
) -> list[Request]:
    """The requests of a turn, in order of arrival: the next `count` prompts, lengths drawn between the bounds."""
    count = count or load.requests
    rng = random.Random(f"{turn} {load}")
    return [
        Request(due, prompts[(turn * count + i) % len(prompts)], rng.randint(*max_tokens), rng.getrandbits(32))
        for i, due in enumerate(load.times(count, turn))
    ]


def random_words(count: int, words: tuple[int, int], seed: int) -> list[str]:
    """`count` prompts of words that mean nothing, a number of them drawn between the bounds."""
    rng = random.Random(seed)
    word = lambda: "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)))  # noqa: E731
    return [" ".join(word() for _ in range(rng.randint(*words))) for _ in range(count)]
