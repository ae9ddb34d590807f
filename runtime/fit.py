"""From timed steps to a cost model: first the prices, then tables of what the prices leave over."""

from collections.abc import Iterable, Sequence

import numpy as np

from runtime.cost import CostModel
from runtime.survey import Sample

Even = dict[tuple[int, int], Sample]  # (rows, tokens): rows of equal width and of the shorter context
Difference = tuple[float, float, float]  # x, y: what an observation has more of than another; seconds it took more


def fit(samples: Sequence[Sample]) -> CostModel:
    """The cost model that says what a survey timed."""
    decoder = [s for s in samples if not s.heads]
    near = min(s.keys // s.rows for s in decoder)
    loud = [s for s in decoder if not s.silent]
    even = {(s.rows, s.tokens): s for s in loud if s.keys == near * s.rows and s.widest == -(-s.tokens // s.rows)}
    rows, tokens = sorted({r for r, _ in even}), sorted({t for _, t in even})
    pair, key = _context_prices(loud, even)
    slot = _slot_price(loud, even, pair)
    vocabulary = _vocabulary(decoder, even, tokens)
    rest = {
        (s.rows, s.tokens): s.seconds - wanted - pair * s.attended - key * s.keys - slot * s.rows * s.widest
        for t, wanted in zip(tokens, vocabulary, strict=True)
        for s in even.values()
        if s.tokens == t
    }
    body = [_rising(_filled(rest, rows, tokens, r)) for r in rows]
    return CostModel(rows, tokens, body, vocabulary, _heads(samples, rows), pair, slot, key, _base(samples))


def _context_prices(loud: Iterable[Sample], even: Even) -> tuple[float, float]:
    """Of a pair and of a key: from steps that differ in their contexts only."""
    differences = [
        ((s.attended - base.attended) / s.seconds, (s.keys - base.keys) / s.seconds, 1 - base.seconds / s.seconds)
        for s in loud
        if (base := even.get((s.rows, s.tokens))) is not None and s.keys > base.keys
    ]
    return _non_negative(differences)


def _slot_price(loud: Iterable[Sample], even: Even, pair: float) -> float:
    """From steps that differ in how their tokens are spread over the rows."""
    differences = [
        (s.rows * (s.widest - base.widest) / s.seconds, 0.0,
         (s.seconds - base.seconds - pair * (s.attended - base.attended)) / s.seconds)
        for s in loud
        if (base := even.get((s.rows, s.tokens))) is not None and s.keys == base.keys and s.widest > base.widest
    ]  # fmt: skip
    return _non_negative(differences)[0]


def _vocabulary(decoder: Iterable[Sample], even: Even, tokens: list[int]) -> list[float]:
    """[tokens]: seconds for logits, above those for the fewest: from steps that want all of them or only the last."""
    gains = {tokens[0]: 0.0}
    for s in decoder:
        if s.silent and (base := even.get((s.rows, s.tokens))) is not None:
            gains[s.tokens] = base.seconds - s.seconds
    known = sorted(gains)
    line: list[float] = np.interp(tokens, known, _rising([gains[t] for t in known])).tolist()
    return line


def _heads(samples: Iterable[Sample], rows: list[int]) -> list[float]:
    most = max(s.heads for s in samples)
    seconds = {s.rows: s.seconds for s in samples if s.heads == most} if most else {1: 0.0}  # an artifact may have none
    known = sorted(seconds)
    line: list[float] = np.interp(rows, known, _rising([seconds[r] for r in known])).tolist()
    return line


def _base(samples: Sequence[Sample]) -> float:
    """The share of the heads' time that does not grow with their number: from runs of one and of all."""
    most = max(s.heads for s in samples)
    one = {s.rows: s.seconds for s in samples if s.heads == 1}
    shares = [
        (one[s.rows] / s.seconds * most - 1) / (most - 1) for s in samples if s.heads == most > 1 and s.rows in one
    ]
    return min(max(float(np.median(shares)), 0.0), 1.0) if shares else 1.0


def _filled(rest: dict[tuple[int, int], float], rows: list[int], tokens: list[int], row: int) -> list[float]:
    """One row's line of the table; where it was not timed, tokens cost as much more or less as in the nearest row."""
    timed = [t for t in tokens if (row, t) in rest]
    donors = sorted((r for r in rows if r != row), key=lambda r: abs(rows.index(r) - rows.index(row)))
    line = []
    for t in tokens:
        known = min(timed, key=lambda point: abs(point - t))
        donor = next((r for r in donors if {(r, t), (r, known)} <= rest.keys()), None)
        more = rest[donor, t] - rest[donor, known] if donor is not None and known != t else 0.0
        line.append(rest[row, known] + more)
    return line


def _rising(values: Sequence[float]) -> list[float]:
    """The rising line nearest to the values: neighbours that fall are averaged (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []  # value, how many points have it
    for value in values:
        size = 1
        while pools and pools[-1][0] >= value:
            other, count = pools.pop()
            value, size = (value * size + other * count) / (size + count), size + count
        pools.append((value, size))
    return [value for value, size in pools for _ in range(size)]


def _non_negative(differences: Sequence[Difference]) -> tuple[float, float]:
    """a, b of at least 0 for which a * x + b * y is nearest to the seconds, over all differences."""
    if not differences:
        return 0.0, 0.0
    x, y, seconds = np.array(differences).T
    candidates = [(_ratio(seconds, x), 0.0), (0.0, _ratio(seconds, y))]
    a, b = np.linalg.lstsq(np.stack([x, y], axis=1), seconds)[0].tolist()
    if a >= 0.0 and b >= 0.0:
        candidates.append((a, b))
    return min(candidates, key=lambda c: float(np.square(c[0] * x + c[1] * y - seconds).sum()))


def _ratio(seconds: np.ndarray, x: np.ndarray) -> float:
    square = float(x @ x)
    return max(0.0, float(seconds @ x) / square) if square else 0.0
