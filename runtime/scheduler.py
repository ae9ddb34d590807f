"""Which sequences take part in a step, in which rows, and which prefixes are kept for later ones.

First come first served, within a priority (`runtime/waiting.py`). Rows in use are always 0 .. n-1 and all of them take
part in every step, so that a step's cache is one contiguous range. A sequence is admitted when a row is free, the
key-value budget has room for everything it may ever need, and the step has prompt tokens to spare; nothing is preempted
later. The scheduler imports no tensors.

A finished sequence's row stays *held*: a later prompt that begins as it does takes the row over, or copies the common
prefix out of it, and prefills only what is new. Running rows are copied from as well. Held rows give way, the least
recently used first, where rows or the budget are needed.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from runtime.sequence import Sequence
from runtime.waiting import Waiting

LEAST_SHARED = 16  # tokens of a prefix worth a copy


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `length` tokens of row `source` go to row `target`, which is free."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Release:
    row: int


@dataclass(slots=True)
class Held:
    """A row without a sequence, whose first tokens are these, computed as a prefill would."""

    tokens: list[int]
    reserved: int  # bytes of keys and values
    used: int  # when last: counts up


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: the sequence of each row, how many prompt tokens it prefills (0: it decodes), and what happens to rows
    first, in this order."""

    sequences: list[Sequence]
    prefill: list[int]
    changes: list[Copy | Release]


class Scheduler:
    def __init__(self, rows: int, kv_limit: int, bytes_of: Callable[[int], int] | None = None) -> None:
        """`bytes_of` tokens of one row in whole pages; None: no row is held."""
        self.rows: list[Sequence | None] = []  # the last is never None after a plan
        self.held: dict[int, Held] = {}
        self.waiting = Waiting()
        self.kv_reserved = 0  # by running sequences
        self.kv_limit = kv_limit
        self._max_rows = rows
        self._bytes_of = bytes_of
        self._uses = 0
        self._changes: list[Copy | Release] = []

    @property
    def running(self) -> list[Sequence]:
        return [sequence for sequence in self.rows if sequence is not None]

    @property
    def free_rows(self) -> int:
        return self._max_rows - len(self.running)

    @property
    def kv_held(self) -> int:
        return sum(held.reserved for held in self.held.values())

    @property
    def prefilling(self) -> Sequence | None:
        """The prompt that goes on first: one half done, else the next that would be admitted."""
        half_done = next((s for s in self.running if s.prefilling), None)
        return half_done or (self.waiting.first if self.waiting and self.free_rows else None)

    def plan(self, chunk: int) -> Plan:
        """Admits what can be, closes the holes that finished sequences left, and shares out `chunk` prompt tokens."""
        self._changes = []
        tokens = chunk - sum(len(s.prompt) - s.length for s in self.running if s.prefilling)
        while tokens > 0 and (admitted := self._admit()) is not None:
            tokens -= len(admitted.prompt) - admitted.length
        self._close_holes()
        sequences = self.running
        prefill = [max(0, min(len(s.prompt) - s.length, chunk)) for s in sequences]
        over = sum(prefill) - chunk
        if over > 0:  # only the newest may be cut short: those before it end their prompts in this step
            newest = max((i for i, n in enumerate(prefill) if n), key=lambda i: sequences[i].id)
            prefill[newest] -= over
        return Plan(sequences, prefill, self._changes)

    def remove(self, sequence: Sequence, hold: bool = False) -> list[int]:
        """Forgets a sequence; returns the rows to release: its own unless it is to be held, and what that outdates."""
        row = sequence.row
        if row is None:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            return []
        self.rows[row] = None
        self.kv_reserved -= sequence.reserved
        sequence.row = None
        tokens = sequence.exact
        if not hold or self._bytes_of is None or len(tokens) < LEAST_SHARED:
            return [row]
        for other in self.held.values():
            if _shared(other.tokens, tokens) == len(tokens):
                other.used = self._now()
                return [row]
        outdated = [i for i, held in self.held.items() if _shared(held.tokens, tokens) == len(held.tokens)]
        for i in outdated:
            del self.held[i]
        touched = self._bytes_of(sequence.length + sequence.habit.nodes)
        self.held[row] = Held(tokens, min(sequence.reserved, touched), self._now())
        return outdated

    def forget(self) -> list[int]:
        """Gives up all held rows; returns them, to be released."""
        rows = list(self.held)
        self.held.clear()
        return rows

    def check_integrity(self) -> None:
        """Raises AssertionError where the bookkeeping contradicts itself."""
        assert len(self.rows) <= self._max_rows, "more rows than there are"
        assert self.kv_reserved == sum(s.reserved for s in self.running), "the budget does not add up"
        assert self.kv_reserved + self.kv_held <= self.kv_limit, "more is kept than the budget has"
        for row, sequence in enumerate(self.rows):
            if sequence is not None:
                assert sequence.row == row and sequence.finish_reason is None, "a row and its sequence disagree"
                assert row not in self.held, "a row is used and held"
        assert all(0 <= row < self._max_rows for row in self.held), "a row is held that does not exist"
        assert all(s.row is None and s.finish_reason is None for s in self.waiting), "a waiting sequence has a row"
        assert sum(s.prefilling and s.length > 0 for s in self.running) <= 1, "two prompts are half done"

    def _admit(self) -> Sequence | None:
        """Gives the first that waits a row and the longest prefix that stands anywhere; None: not in this step."""
        if not self.waiting or not self.free_rows:
            return None
        sequence = self.waiting.first
        if self.kv_reserved + sequence.reserved > self.kv_limit:
            return None
        source, length = self._prefix(sequence.prompt)
        if self._bytes_of is not None and any(
            _shared(s.prompt, sequence.prompt) - length >= LEAST_SHARED for s in self.running if s.prefilling
        ):
            return None  # the rest of what it shares is being computed
        self.waiting.pop()
        row = self._free_row(source)
        if row == source:
            self._keep_copy(row, length)
        else:
            self._vacate(row, source)
            if source is not None:
                self._changes.append(Copy(source, row, length))
                if (held := self.held.get(source)) is not None:
                    held.used = self._now()
                    if len(held.tokens) - length < LEAST_SHARED:  # the copy will do
                        self._drop(source)
        sequence.row, sequence.length, sequence.cached = row, length, length
        self.kv_reserved += sequence.reserved
        while self.kv_reserved + self.kv_held > self.kv_limit:
            self._drop(min(self.held, key=lambda i: self.held[i].used))
        if row == len(self.rows):
            self.rows.append(sequence)
        else:
            self.rows[row] = sequence
        return sequence

    def _prefix(self, prompt: list[int]) -> tuple[int | None, int]:
        """The row that begins as `prompt` does for longest, and for how long; one token is left to compute."""
        if self._bytes_of is None:
            return None, 0
        rows = [(row, held.tokens) for row, held in self.held.items()]
        rows += [(s.row, s.exact) for s in self.running if s.row is not None]
        best: tuple[int | None, int] = (None, 0)
        for row, tokens in rows:
            length = min(_shared(tokens, prompt), len(prompt) - 1)
            if length >= LEAST_SHARED and length > best[1]:
                best = row, length
        return best

    def _free_row(self, source: int | None) -> int:
        """The held row that is copied from if it will do, else a hole, so that fewer rows have to be moved."""
        holes = [row for row, sequence in enumerate(self.rows) if sequence is None]
        rows = holes or [len(self.rows)]
        if source in self.held and source in rows:
            return source
        return min(rows, key=lambda row: row in self.held)

    def _vacate(self, row: int, keep: int | None = None, busy: int | None = None) -> None:
        """Moves what `row` holds past the rows in use, in place of something older, or else gives it up.

        `keep` is not given up for it, `busy` is no place for it.
        """
        held = self.held.get(row)
        if held is None:
            return
        places = [i for i in range(self._max_rows - 1, len(self.rows) - 1, -1) if i not in (row, keep, busy)]
        free = [i for i in places if i not in self.held]
        older = [i for i in places if i in self.held and self.held[i].used < held.used]
        if not free and older:
            free = [min(older, key=lambda i: self.held[i].used)]
            self._drop(free[0])
        if not free:
            self._drop(row)
            return
        del self.held[row]
        self._changes += [Copy(row, free[0], len(held.tokens)), Release(row)]
        self.held[free[0]] = held

    def _keep_copy(self, row: int, length: int) -> None:
        """Hands a held row over to a sequence that shares `length` tokens; what is longer is copied, given room."""
        held = self.held.pop(row)
        free = [i for i in range(self._max_rows - 1, max(row, len(self.rows) - 1), -1) if i not in self.held]
        if free and len(held.tokens) - length >= LEAST_SHARED:
            self._changes.append(Copy(row, free[0], len(held.tokens)))
            self.held[free[0]] = held

    def _drop(self, row: int) -> None:
        del self.held[row]
        self._changes.append(Release(row))

    def _close_holes(self) -> None:
        while self.rows and self.rows[-1] is None:
            self.rows.pop()
        while None in self.rows:
            hole, last = self.rows.index(None), self.rows.pop()
            assert last is not None and last.row is not None
            self._vacate(hole, busy=last.row)
            self._changes += [Copy(last.row, hole, last.length), Release(last.row)]
            self.rows[hole], last.row = last, hole
            while self.rows and self.rows[-1] is None:
                self.rows.pop()

    def _now(self) -> int:
        self._uses += 1
        return self._uses


def _shared(one: Items[int], other: Items[int]) -> int:
    """The number of tokens with which both begin: whole blocks are compared while they are equal."""
    at, end = 0, min(len(one), len(other))
    while at < end:
        block = min(64, end - at)
        if one[at : at + block] != other[at : at + block]:
            return next(i for i in range(at, at + block) if one[i] != other[i])
        at += block
    return end
