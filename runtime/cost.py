"""What a step costs: seconds of a decoder run and of the heads, predicted from what the step brings.

    decoder = body(rows, tokens) + vocabulary(tokens - silent) + pair * attended + slot * rows * widest + key * keys

`body` and `vocabulary` are measured tables with straight lines between and beyond their points. `pair` is the price of
a node that sees a key, `key` that of a key read at all, whoever sees it, `slot` that of a place in attention's padded
output. Every term grows with every one of its quantities, so that a step with more tokens is never predicted cheaper,
whatever the noise of a measurement. All is scaled by a factor for the machine's momentary speed, which decides nothing.

Dimension words: [rows] and [tokens] points of the tables, [choices] steps that are compared with one another.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

FAR = 1 << 24  # rows or tokens that no step has: the end of the last straight line
LEAST = 1e-9  # seconds that a run takes at least: logarithms want some
FAST, FAST_LIMIT = 0.2, 0.7  # how much of a step's surprise (a log-ratio, cut off at the limit) the factor takes on
SLOW, SLOW_LIMIT = 0.03, 0.1  # and the tables: a throttled phase is in the factor before it is in them
TOO_DEAR = -0.7  # surprise from which on the heads' table was wrong: what seems too dear is seldom run, to learn more

Values = Any  # a number, or an array [choices]
Cell = tuple[list[float], int, float]  # line of a table, point in it, share of the point in what was read


class CostModel:
    """Predicts steps, and learns from steps that were timed.

    `body` [rows][tokens] is over the ascending points `rows` and `tokens`, `vocabulary` [tokens] over tokens whose
    logits are wanted, `heads` [rows] over rows that draft; `base` is the share of it that any number of heads takes.
    Times and prices are in seconds. Tables are made to rise.
    Raises ValueError for values that are no tables.
    """

    def __init__(
        self,
        rows: Sequence[int],
        tokens: Sequence[int],
        body: Sequence[Sequence[float]],
        vocabulary: Sequence[float],
        heads: Sequence[float],
        pair: float = 0.0,
        slot: float = 0.0,
        key: float = 0.0,
        base: float = 1.0,
    ) -> None:
        self._rows, self._tokens = _points("rows", rows), _points("tokens", tokens)
        if len(body) != len(rows):
            raise ValueError(f"body has {len(body)} lines for {len(rows)} numbers of rows")
        self._body = [_rising("body", line, len(tokens), LEAST) for line in body]
        self._vocabulary = _rising("vocabulary", vocabulary, len(tokens), 0.0)
        self._heads = _rising("heads", heads, len(rows), 0.0)
        for name, price in (("pair", pair), ("slot", slot), ("key", key)):
            if not (math.isfinite(price) and price >= 0.0):
                raise ValueError(f"{name} is {price!r}: it has to be a number of at least 0")
        if not 0.0 <= base <= 1.0:
            raise ValueError(f"base is {base!r}: it has to be a share from 0 to 1")
        self.pair, self.slot, self.key, self.base = float(pair), float(slot), float(key), float(base)
        self.factor = 1.0  # of the machine's momentary speed, above 1 where it is slower than it was
        self._usual = 0.0  # error: what all steps have in common is the factor's, and must not pile up in the tables
        self._row_ends = np.array([0, *self._rows, FAR], np.float64)
        self._token_ends = np.array([0, *self._tokens, FAR], np.float64)
        self._vocabulary_line = _line(self._tokens, self._vocabulary)
        self._heads_line: np.ndarray | None = None
        self._body_lines: dict[int, np.ndarray] = {}  # by rows

    def decoder(
        self,
        rows: int,
        tokens: Values,
        widest: Values,
        attended: Values,
        silent: Values = 0,
        keys: Values | None = None,
    ) -> Any:
        """Seconds of a decoder run: an array [choices] where an argument is one, else a number.

        `rows` in use, `tokens` packed, `widest` nodes of the largest row, `attended` the sum over rows of nodes *
        (committed length + nodes), `silent` tokens whose logits are not wanted, `keys` the sum of committed lengths
        (None: as if all rows were alike; it is one number for all choices).
        """
        if (line := self._body_lines.get(rows)) is None:
            line = self._body_lines[rows] = self._body_line(rows)
        seconds = np.interp(tokens, self._token_ends, line)
        seconds = seconds + np.interp(tokens - silent, self._token_ends, self._vocabulary_line)
        if keys is None:
            keys = _alike(rows, tokens, attended)
        return (seconds + attended * self.pair + widest * (rows * self.slot) + keys * self.key) * self.factor

    def heads(self, rows: Values, share: Values = 1.0) -> Any:
        """Seconds of a run of a `share` of the heads for `rows` rows, none for no rows.

        An array [choices] where an argument is one.
        """
        if self._heads_line is None:
            self._heads_line = _line(self._rows, self._heads)
            self._heads_line[0] = 0.0
        return np.interp(rows, self._row_ends, self._heads_line) * self._part(share) * self.factor

    def observe_decoder(
        self,
        rows: int,
        tokens: int,
        widest: int,
        attended: int,
        silent: int,
        seconds: float,
        keys: float | None = None,
    ) -> float:
        """Learns from a decoder run that took so many seconds; the other arguments are those of `decoder`.

        Returns the seconds that were predicted.
        """
        cells = [
            (self._body[r], t, r_share * t_share)
            for r, r_share in _between(self._rows, rows)
            for t, t_share in _between(self._tokens, tokens)
        ]
        body = max(sum(line[t] * share for line, t, share in cells), LEAST)
        if keys is None:
            keys = _alike(rows, tokens, attended)
        logits = sum(self._vocabulary[t] * share for t, share in _between(self._tokens, tokens - silent))
        predicted = body + max(logits, 0.0) + attended * self.pair + widest * rows * self.slot + keys * self.key
        said = predicted * self.factor
        surprise = _surprise(said, seconds)
        error = _cut(surprise, SLOW_LIMIT)
        self._usual += SLOW * (error - self._usual)
        _shift(cells, SLOW * (error - self._usual) * body * body / predicted, LEAST)
        self.factor *= math.exp(FAST * _cut(surprise, FAST_LIMIT))
        self._body_lines.clear()
        return said

    def observe_heads(self, rows: int, seconds: float, share: float = 1.0) -> None:
        """Learns from a run of a `share` of the heads. The factor follows the decoder alone: every step runs it."""
        cells = [(self._heads, r, share) for r, share in _between(self._rows, rows)]
        predicted = sum(line[r] * part for line, r, part in cells)
        surprise = _surprise(predicted * self._part(share) * self.factor, seconds)
        change = math.expm1(surprise) / 2 if surprise < TOO_DEAR else SLOW * _cut(surprise, SLOW_LIMIT)
        _shift(cells, change * predicted, 0.0)
        self._heads_line = None

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes. The factor is not kept: it belongs to the moment."""
        return {
            "rows": self._rows, "tokens": self._tokens, "body": self._body, "vocabulary": self._vocabulary,
            "heads": self._heads, "pair": self.pair, "slot": self.slot, "key": self.key, "base": self.base,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Any) -> "CostModel":
        """Raises ValueError where `value` is not what `to_json` gave."""
        try:
            return cls(**value)
        except TypeError as error:
            raise ValueError(f"not a cost model: {error}") from None

    def _part(self, share: Values) -> Any:
        return self.base + (1.0 - self.base) * share

    def _body_line(self, rows: int) -> np.ndarray:
        parts = [(self._body[r], share) for r, share in _between(self._rows, rows)]
        # beyond the table two rising lines may come to one that falls
        seconds = [sum(line[t] * share for line, share in parts) for t in range(len(self._tokens))]
        return _line(self._tokens, list(accumulate((max(second, LEAST) for second in seconds), max)))


def _surprise(predicted: float, seconds: float) -> float:
    """The log-ratio of what was and what was expected."""
    return math.log(max(seconds, LEAST) / max(predicted, LEAST))


def _shift(cells: list[Cell], change: float, least: float) -> None:
    """Changes what the cells together say by `change` seconds, each according to its share in that.

    This is the step of normalized least mean squares: stable, also where shares lie outside 0 .. 1.
    """
    change /= sum(share * share for _, _, share in cells)
    for line, point, share in cells:
        _move(line, point, max(line[point] + change * share, least))


def _alike(rows: int, tokens: Values, attended: Values) -> float:
    """Keys of a step whose rows are all alike; of several choices those of the one with the fewest tokens.

    Choices of one step differ in their trees and read the same keys.
    """
    if isinstance(tokens, np.ndarray) and tokens.ndim:
        least = int(tokens.argmin())
        attended = attended[least] if isinstance(attended, np.ndarray) and attended.ndim else attended
        tokens = tokens[least]
    elif isinstance(attended, np.ndarray):
        attended = attended.min()
    return max(0.0, float(attended * rows / tokens - tokens))


def _points(name: str, points: Sequence[int]) -> list[int]:
    whole = [int(point) for point in points]
    if not whole or whole[0] < 1 or any(after <= before for before, after in zip(whole, whole[1:], strict=False)):
        raise ValueError(f"{name} are {whole}: they have to be whole numbers that ascend, from 1")
    return whole


def _rising(name: str, values: Sequence[float], length: int, least: float) -> list[float]:
    line = [float(value) for value in values]
    if len(line) != length or not all(map(math.isfinite, line)):
        raise ValueError(f"{name} has the line {line}: it has to be {length} finite numbers")
    rising: list[float] = np.maximum.accumulate(np.maximum(line, least)).tolist()
    return rising


def _line(points: Sequence[int], values: Sequence[float]) -> np.ndarray:
    """Values at 0, at the points and at FAR, so that np.interp goes on straight before and beyond the points."""
    ends = np.empty(len(points) + 2)
    ends[1:-1] = values
    first = last = 0.0
    if len(points) > 1:
        first = (values[1] - values[0]) / (points[1] - points[0])
        last = (values[-1] - values[-2]) / (points[-1] - points[-2])
    ends[0] = max(0.0, values[0] - first * points[0])
    ends[-1] = values[-1] + last * (FAR - points[-1])
    return ends


def _between(points: Sequence[int], value: int) -> list[tuple[int, float]]:
    """The points around `value` and their shares in it, which lie outside 0 .. 1 before and beyond the points."""
    if len(points) == 1:
        return [(0, 1.0)]
    at = min(max(bisect_right(points, value) - 1, 0), len(points) - 2)
    share = (value - points[at]) / (points[at + 1] - points[at])
    return [(at, 1.0)] if share == 0.0 else [(at, 1.0 - share), (at + 1, share)]


def _cut(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


def _move(line: list[float], at: int, value: float) -> None:
    """Changes one point of a rising line; where it would fall then, points that were not timed just now give way."""
    line[at] = value
    for i in range(at + 1, len(line)):
        if line[i] >= value:
            break
        line[i] = value
    for i in range(at - 1, -1, -1):
        if line[i] <= value:
            break
        line[i] = value
