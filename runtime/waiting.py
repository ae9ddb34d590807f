"""The sequences that wait for a row, and which of them is next.

The lowest priority number goes first, of equal ones who came first. That alone would let a few who are always urgent
keep the rest out for good, so of any EVERY sequences that are let in, one is whoever waits longest.
"""

from collections import deque
from collections.abc import Iterator

from runtime.sequence import Sequence

EVERY = 8  # sequences let in, at least one of which has waited longest


class Waiting:
    """One deque for each priority in use, so that a look at the next costs as many looks as there are priorities."""

    def __init__(self) -> None:
        self._of: dict[int, deque[Sequence]] = {}
        self._passed = 0  # sequences let in since the one that had waited longest was

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """By priority, then by arrival."""
        return (sequence for priority in sorted(self._of) for sequence in self._of[priority])

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._of.get(sequence.params.priority, ())

    @property
    def first(self) -> Sequence:
        """Who is next, and stays it until someone more urgent comes."""
        if len(self._of) == 1 or self._passed < EVERY - 1:
            return self._of[min(self._of)][0]
        return self._longest

    def append(self, sequence: Sequence) -> None:
        self._of.setdefault(sequence.params.priority, deque()).append(sequence)

    def pop(self) -> Sequence:
        """Lets the first in."""
        sequence = self.first
        self._passed = 0 if sequence is self._longest else self._passed + 1
        self.remove(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        priority = sequence.params.priority
        self._of[priority].remove(sequence)
        if not self._of[priority]:
            del self._of[priority]

    @property
    def _longest(self) -> Sequence:
        return min((line[0] for line in self._of.values()), key=lambda sequence: sequence.id)
