"""What became of requests."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Every request counts once among `requests`; those of clients that broke something also among `faults`."""

    requests: int = 0
    answered: int = 0  # to the end, each compared with what plain decoding says
    stated: int = 0  # ended early with a status or an event that says why
    left: int = 0  # by clients that went away
    faults: Counter[str] = field(default_factory=Counter)  # by kind, those injected into the server too
    unheard: list[str] = field(default_factory=list)  # while no server was there
    lost: list[str] = field(default_factory=list)  # neither an answer nor why not
    wrong: list[str] = field(default_factory=list)
    leaked: int = 0  # rows in use, or requests waiting, when nobody asks any more
    notes: list[str] = field(default_factory=list)  # what was measured beside

    def add(self, other: "Tally") -> None:
        self.requests += other.requests
        self.answered += other.answered
        self.stated += other.stated
        self.left += other.left
        self.faults += other.faults
        self.unheard += other.unheard
        self.lost += other.lost
        self.wrong += other.wrong
        self.leaked += other.leaked

    def check(self) -> None:
        """Raises AssertionError where an answer was lost or wrong, a row leaked, or a request is not accounted for."""
        assert not self.unheard, f"{len(self.unheard)} requests found no server: {self.unheard[:3]}"
        assert not self.lost, f"{len(self.lost)} answers were lost: {self.lost[:3]}"
        assert not self.wrong, f"{len(self.wrong)} answers were wrong: {self.wrong[:3]}"
        assert not self.leaked, f"{self.leaked} rows or places in the queue were not given back"
        assert self.requests == self.answered + self.stated + self.left, "a request has no end"
