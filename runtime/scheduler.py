"""Which sequences take part in a step, and in which rows.

First come first served. Rows in use are always 0 .. n-1 and all of them take part in every step, so that a step's cache
is one contiguous range. A sequence is admitted when a row is free, the key-value budget has room for everything it
may ever need, and the step has prompt tokens to spare; nothing is preempted later. The scheduler imports no tensors.
"""

from collections import deque
from dataclasses import dataclass

from runtime.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: the sequence of each row, how many prompt tokens it prefills (0: it decodes), and which moves
    (source row, target row, committed tokens) come first."""

    sequences: list[Sequence]
    prefill: list[int]
    moves: list[tuple[int, int, int]]


class Scheduler:
    def __init__(self, rows: int, kv_limit: int) -> None:
        self.rows: list[Sequence | None] = []  # the last is never None after a plan
        self.waiting: deque[Sequence] = deque()
        self.kv_reserved = 0
        self.kv_limit = kv_limit
        self._max_rows = rows

    @property
    def running(self) -> list[Sequence]:
        return [sequence for sequence in self.rows if sequence is not None]

    @property
    def free_rows(self) -> int:
        return self._max_rows - len(self.running)

    @property
    def prefilling(self) -> Sequence | None:
        """The prompt that goes on first: one half done, else the next that would be admitted."""
        half_done = next((s for s in self.running if s.prefilling), None)
        return half_done or (self.waiting[0] if self.waiting and self.free_rows else None)

    def plan(self, chunk: int) -> Plan:
        """Admits what can be, closes the holes that finished sequences left, and shares out `chunk` prompt tokens."""
        tokens = chunk - sum(len(s.prompt) - s.length for s in self.running if s.prefilling)
        while tokens > 0 and (row := self._free_row()) is not None and self._admit(row):
            admitted = self.rows[row]
            assert admitted is not None
            tokens -= len(admitted.prompt)
        moves = self._close_holes()
        sequences = self.running
        prefill = [max(0, min(len(s.prompt) - s.length, chunk)) for s in sequences]
        over = sum(prefill) - chunk
        if over > 0:  # only the newest may be cut short: those before it end their prompts in this step
            newest = max((i for i, n in enumerate(prefill) if n), key=lambda i: sequences[i].id)
            prefill[newest] -= over
        return Plan(sequences, prefill, moves)

    def remove(self, sequence: Sequence) -> int | None:
        """Forgets a sequence; returns the row it had."""
        row = sequence.row
        if row is None:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            return None
        self.rows[row] = None
        self.kv_reserved -= sequence.reserved
        sequence.row = None
        return row

    def check_integrity(self) -> None:
        """Raises AssertionError where the bookkeeping contradicts itself."""
        assert len(self.rows) <= self._max_rows, "more rows than there are"
        assert self.kv_reserved == sum(s.reserved for s in self.running) <= self.kv_limit, "the budget does not add up"
        for row, sequence in enumerate(self.rows):
            if sequence is not None:
                assert sequence.row == row and sequence.finish_reason is None, "a row and its sequence disagree"
        assert all(s.row is None and s.finish_reason is None for s in self.waiting), "a waiting sequence has a row"
        assert sum(s.prefilling and s.length > 0 for s in self.running) <= 1, "two prompts are half done"

    def _free_row(self) -> int | None:
        """A hole first, so that fewer rows have to be moved."""
        if None in self.rows:
            return self.rows.index(None)
        return len(self.rows) if len(self.rows) < self._max_rows else None

    def _admit(self, row: int) -> bool:
        if not self.waiting or self.kv_reserved + self.waiting[0].reserved > self.kv_limit:
            return False
        sequence = self.waiting.popleft()
        sequence.row = row
        self.kv_reserved += sequence.reserved
        if row == len(self.rows):
            self.rows.append(sequence)
        else:
            self.rows[row] = sequence
        return True

    def _close_holes(self) -> list[tuple[int, int, int]]:
        moves = []
        while self.rows and self.rows[-1] is None:
            self.rows.pop()
        while None in self.rows:
            hole, last = self.rows.index(None), self.rows.pop()
            assert last is not None and last.row is not None
            moves.append((last.row, hole, last.length))
            self.rows[hole], last.row = last, hole
            while self.rows and self.rows[-1] is None:
                self.rows.pop()
        return moves
