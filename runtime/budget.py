"""The tree budget of one step over all its rows: as many of the best nodes as pay for their time.

    S* = argmax_S (rows + sum of the S best nodes' chances to be accepted) - rate * L(rows, tokens + S, ...)

with the tokens a second of the last steps as the rate, or those of plain decoding where that is faster. Over many steps
that makes tokens over time most, which the best ratio of each single step does not: a step that promises little should
be short (Dinkelbach 1967, On Nonlinear Fractional Programming).

Functions of arrays. Dimension words: [rows] sequences that may draft, [nodes] candidates, best first over all rows.
"""

from dataclasses import dataclass, replace

import numpy as np

from runtime.cost import CostModel
from runtime.load import Load

LEAST_LEFT = 0.1  # of a token's worth, once the time to hand it out is paid
CLEAR = 1.2  # times what plain decoding gives, from which on it is no matter of small errors whether drafts pay
AHEAD = 8  # nodes beyond a choice whose price is looked at
STEPS = np.arange(1, AHEAD + 1)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Candidates of several rows, best first; any beginning of them is a tree in every row."""

    row: np.ndarray  # int64 [nodes]
    chance: np.ndarray  # float [nodes], to be accepted
    by_heads: np.ndarray  # bool [nodes], whether it takes a run of the heads


@dataclass(frozen=True, slots=True)
class Prices:
    """What a step costs: the session by the model, and seconds outside of it, `plain` or `drafting` and for each token.

    `rate` is in tokens a second; 0 stands for the best one that this step can have. `floor` is what steps without
    drafts gave, 0 where there were none. A `share` of the heads runs.
    """

    cost: CostModel
    plain: float
    drafting: float
    token: float
    rate: float
    floor: float = 0.0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """So many of the best nodes, where time is worth `rate` tokens a second: what plain decoding gives at least.

    The last one was worth its time from a chance of `last_price` on, the next ones would be from `next_price` on. It is
    `clear` that they pay if they are expected to give CLEAR times as many tokens a second as none.
    """

    nodes: int
    clear: bool
    rate: float
    last_price: float
    next_price: float


def best(
    nodes: Nodes, lengths: np.ndarray, load: Load, prices: Prices, asked: int | None = None, gained: float = 0.0
) -> Choice:
    """How many of the nodes to draft, beside what `load` holds, which gains `gained` tokens.

    `lengths` [rows] are committed. The heads have run for `asked` rows, or run for those of which a choice takes nodes
    `by_heads`.
    """
    row, cost, more = nodes.row, prices.cost, np.arange(len(nodes.row) + 1)
    tokens = load.tokens + more
    if len(lengths) == 1:
        widest = np.maximum(load.widest, more + 1)
        attended = load.attended + more * (more + (int(lengths[0]) + 1))
    else:
        own = _numbers(row, len(lengths))
        widest = np.maximum(load.widest, _from(1, np.maximum.accumulate(own)))
        attended = _from(load.attended, (lengths[row] + 2 * own).cumsum())
    seconds = cost.decoder(load.rows, tokens, widest, attended, load.silent, load.keys)
    if load.decoding < load.rows:  # what the prompts of this step cost in any case is not the trees' cost
        alone = load.without_prompts()
        decoding = cost.decoder(alone.rows, alone.tokens, alone.widest, alone.attended, 0, alone.keys)
        seconds = seconds - max(0.0, float(seconds[0]) - float(decoding))
    gain = _from(load.decoding + gained, nodes.chance.cumsum())
    plain = float(gain[0]) / (float(seconds[0]) + prices.plain + float(gain[0]) * prices.token)  # tokens a second
    if asked is None:
        ask = _from(0, _firsts(row, nodes.by_heads).cumsum())
        drafted = seconds + (cost.heads(ask, prices.share) + np.where(ask > 0, prices.drafting, prices.plain))
    else:
        drafted = seconds + (float(cost.heads(asked, prices.share)) + (prices.drafting if asked else prices.plain))
    seconds = drafted + gain * prices.token
    known = prices.rate and max(prices.rate, prices.floor, plain)
    chosen = int((gain - known * seconds if known else gain / seconds).argmax())
    rate = known or float(gain[chosen] / seconds[chosen])
    price = rate / max(1.0 - rate * prices.token, LEAST_LEFT)  # chance that pays for a second
    last_price = price * float(drafted[chosen] - drafted[chosen - 1]) if chosen else 1.0
    further = (drafted[chosen + 1 : chosen + 1 + AHEAD] - drafted[chosen]) / STEPS[: len(drafted) - chosen - 1]
    next_price = price * float(further.max()) if len(further) else 1.0
    clear = bool(chosen and gain[chosen] >= CLEAR * plain * seconds[chosen])
    return Choice(chosen, clear, rate, last_price, next_price)


def with_trees(load: Load, row: np.ndarray, lengths: np.ndarray) -> Load:
    """`load` with trees of so many nodes in it: `row` [nodes] names each node's row, roots left out."""
    count = np.bincount(row, minlength=len(lengths))
    return replace(
        load,
        tokens=load.tokens + len(row),
        widest=max(load.widest, int(count.max()) + 1),
        attended=load.attended + int((count * (lengths + count)).sum()),
    )


def _numbers(row: np.ndarray, rows: int) -> np.ndarray:
    """[nodes]: each node's number among those of its row, from 1."""
    order = row.argsort(kind="stable")
    ordered = row.take(order)
    numbers = np.empty(len(row), np.int64)
    numbers[order] = np.arange(1, len(row) + 1) - ordered.searchsorted(np.arange(rows)).take(ordered)
    return numbers


def _firsts(row: np.ndarray, by_heads: np.ndarray) -> np.ndarray:
    """bool [nodes]: whether it is its row's first one by the heads."""
    places = by_heads.nonzero()[0]
    firsts = np.zeros(len(row), bool)
    firsts[places[np.unique(row.take(places), return_index=True)[1]]] = True
    return firsts


def _from(begin: float, rest: np.ndarray) -> np.ndarray:
    """[nodes + 1]: `begin` without any node, then what `rest` [nodes] adds to it."""
    return np.concatenate([[begin], begin + rest])
