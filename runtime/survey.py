"""Times steps of a session: decoder runs of so many rows, tokens and keys, and the heads for so many rows.

The probes are ordered by what they tell: first the corners of the tables and what tells the prices apart, then the rows
and the tokens between. A slow model gets the first of them only. All are timed in rounds, each in another order, and
what counts is a low quantile, so that a moment in which the machine is busy bends no point.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.batch import Packer
from runtime.session import Batch, Session
from runtime.tree import Tree

SECONDS = 2.0  # that a survey should take, where steps are fast
PATIENCE = 50.0  # that it may take, where they are not
LEAST = 3  # probes without which there is no table
ROUNDS = (3, 15)  # how often each probe is timed: as often as PATIENCE allows; at most
QUANTILE = 0.25  # of a probe's times
FILL_SECONDS = 1.5  # that may be spent on keys and values to attend to, once there are SHORT of them in a row
CONTEXT, SHORT = 512, 128  # committed tokens of a row: as many where that is quick, at least
PREFILL = 64  # prompt tokens a step meanwhile
MEMORY = 1 << 30  # bytes that the keys and values of a survey may take
NEAR = 8  # most probes see an eighth of the longest context


@dataclass(frozen=True, slots=True)
class Probe:
    """A step to be timed: nodes of each row; all rows have `context` committed tokens. Or a run of so many heads."""

    nodes: tuple[int, ...]
    context: int
    silent: bool = False  # a chunk of prompt: of each row the last logits only
    heads: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A probe's quantities as the cost model counts them, and the seconds it took: a low quantile."""

    rows: int
    tokens: int
    widest: int
    attended: int
    silent: int
    keys: int
    seconds: float
    heads: int = 0
    spread: float = 0.0  # by what share its upper quartile was longer


def survey(
    session: Session,
    exact: bool,
    even: bool,
    rows: int,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
    memory: int = MEMORY,
) -> list[Sample]:
    """Times steps of 1 to `rows` rows, and gives all rows back.

    `exact` and `even` are the packer's, `memory` is in bytes: of keys and values.
    """
    return _Survey(session, exact, even, rows, progress, clock).run(memory)


def row_points(rows: int) -> list[int]:
    """Powers of two, and `rows`."""
    return sorted({1 << i for i in range(rows.bit_length())} | {rows})


def token_points(top: int, even: bool) -> list[int]:
    """Powers of two and the middles between them, to the first that is at least `top`."""
    points = sorted({n << i for i in range(16) for n in (1, 3)})
    points = [n for n in points if not (even and n % 2)]
    return [n for n, before in zip(points, [0, *points], strict=False) if before < top]


class _Survey:
    def __init__(
        self, session: Session, exact: bool, even: bool, rows: int, progress: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._session, self._rows, self._progress, self._clock = session, rows, progress, clock
        self._even = exact and even
        self._packer = Packer(exact, even, session.manifest.capacity)
        self._rng = np.random.default_rng(0)
        self._began = clock()
        self._batches: dict[Probe, Batch] = {}
        self._times: dict[Probe, list[float]] = {}

    def run(self, memory: int) -> list[Sample]:
        try:
            far = self._fill(memory)
            for level in self._levels(far):
                self._progress(f"timing steps: {len(self._times)} kinds so far, {len(level)} more")
                for probe in level:
                    if self._elapsed() < PATIENCE or len(self._times) < LEAST:
                        self._time(probe)
                if self._elapsed() > SECONDS:
                    break
            self._repeat()
        finally:
            for row in range(self._rows):
                self._session.release(row)
        return [self._sample(probe, times) for probe, times in self._times.items()]

    def _elapsed(self) -> float:
        return self._clock() - self._began

    def _repeat(self) -> None:
        """Further rounds over all probes, while there is time."""
        probes = list(self._times)
        for done in range(1, ROUNDS[1]):
            limit = PATIENCE * done / (done + 1) if done < ROUNDS[0] else SECONDS
            if self._elapsed() > limit:
                break
            self._progress(f"timing steps: {len(probes)} kinds, round {done + 1}")
            for i in self._rng.permutation(len(probes)):
                self._time(probes[i])

    def _fill(self, memory: int) -> int:
        """Keys and values to attend to, the same in all rows; returns how many tokens. Warms up, too."""
        m, session = self._session.manifest, self._session
        goal = max(1, min(CONTEXT, m.context // 2, memory // (self._rows * m.kv_bytes)))
        began, length = self._clock(), 0
        while length < goal and (length < SHORT or self._clock() - began < FILL_SECONDS):
            self._progress(f"timing steps: {length} of {goal} tokens to attend to")
            chunk = self._random(min(PREFILL, goal - length))
            batch, first = self._packer.pack([(length, chunk)])
            session.run(batch)
            session.commit(0, length, list(range(len(chunk))), first[0])
            length += len(chunk)
        for row in range(1, self._rows):
            session.copy(0, row, length)
        return length

    def _levels(self, far: int) -> list[list[Probe]]:
        """Probes, the most informative ones first, each level ascending; a slow model gets the first level alone."""
        m, most = self._session.manifest, self._rows
        near, rows = max(1, far // NEAR), row_points(most)
        tokens = token_points(min(16 * most + 64, 512), self._even)
        coarse = [n for n in tokens if n & (n - 1) == 0 or n == tokens[-1]]
        few = [n for n in tokens if n <= 3 * most or n in coarse and n <= max(64, 4 * most)]
        ends = sorted({1, most})
        grid = lambda some, points: [  # noqa: E731
            Probe(_spread(r, t), near) for t in points for r in some if t >= r
        ]
        deep = lambda widths: [Probe((n,) * r, far) for n in widths for r in ends]  # noqa: E731
        silent = lambda points: [Probe((t,), near, silent=True) for t in points if t > 1]  # noqa: E731
        uneven = lambda points: [  # noqa: E731
            Probe((t - (most - 1), *(1,) * (most - 1)), near) for t in points if most > 1 and t >= 6 * most
        ]
        heads = [Probe((1,) * r, near, heads=m.medusa_heads) for r in rows if m.medusa_heads]
        heads += [Probe((1,), near, heads=1)] if m.medusa_heads > 1 else []
        levels = [
            grid(ends, few) + deep((1, 4, 8)) + silent((16, 64)) + uneven(few) + heads,
            grid(ends, coarse) + deep((16,)) + silent(coarse) + uneven(coarse),
            grid(rows, coarse),
            grid(rows, tokens),
        ]
        seen: set[Probe] = set()
        fresh = lambda p: p not in seen and p.context + max(p.nodes) < m.capacity  # noqa: E731
        result = []
        for level in levels:
            result.append(list(dict.fromkeys(filter(fresh, level))))
            seen.update(level)
        return result

    def _random(self, tokens: int) -> list[int]:
        chunk: list[int] = self._rng.integers(0, self._session.manifest.vocab, tokens).tolist()
        return chunk

    def _batch(self, probe: Probe) -> Batch:
        works: list[tuple[int, list[int] | Tree]] = []
        for n in probe.nodes:
            chunk = self._random(n)
            chain = Tree(chunk, list(range(-1, n - 1)), np.arange(n), np.tri(n, dtype=bool))
            works.append((probe.context, chunk if probe.silent else chain))
        return self._packer.pack(works)[0]

    def _time(self, probe: Probe) -> None:
        if probe.heads:
            began = self._clock()
            self._session.heads(list(range(len(probe.nodes))), probe.heads)
        else:
            if (batch := self._batches.get(probe)) is None:
                batch = self._batches[probe] = self._batch(probe)
            began = self._clock()
            self._session.run(batch)
        self._times.setdefault(probe, []).append(self._clock() - began)

    def _sample(self, probe: Probe, times: list[float]) -> Sample:
        rows, seconds = len(probe.nodes), float(np.quantile(times, QUANTILE))
        spread = float(np.quantile(times, 1 - QUANTILE)) / seconds - 1.0
        if probe.heads:
            return Sample(rows, 0, 0, 0, 0, 0, seconds, probe.heads, spread)
        batch = self._batches[probe]
        tokens, widest, keys = len(batch.tokens), int(batch.count.max()), rows * probe.context
        attended = int((batch.count * (batch.length + batch.count)).sum())
        silent = max(0, tokens - len(batch.wanted))
        return Sample(rows, tokens, widest, attended, silent, keys, seconds, 0, spread)


def _spread(rows: int, tokens: int) -> tuple[int, ...]:
    """Nodes of each row, as evenly as they go."""
    return tuple(tokens // rows + (i < tokens % rows) for i in range(rows))
