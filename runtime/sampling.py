"""From a token's logits to its distribution, and from a seed to a token drawn from it.

Functions of arrays: nothing here knows a model, a tree or a tokenizer. A draw takes one number from a counter-based
generator, so it depends on (seed, choice, position) alone: not on the order of calls, the batch, or speculation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runtime.errors import StepError
from runtime.params import SamplingParams

Ids = NDArray[np.int64]
Probabilities = NDArray[np.float64]

BLOCK = 256  # probabilities summed at once
EPSILON, DELTA = 0.09, 0.3  # of typical acceptance, as published for Medusa
LEAST_LOGPROB = -9999.0  # instead of minus infinity, which JSON does not have
SLACK = 1e-9  # share by which float64 sums of a row may differ, and much more
ONE = np.float64(1).view(np.int64)  # the bits of 1.0, the largest weight
NUMBERS, SEQUENCES = 32, 1024  # random numbers made at once, and of how many sequences they are kept
COLDEST = 1e-250  # temperature, below which nothing but the largest logits has a weight


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) for output `position` of `choice`: Philox 4x64 (Salmon et al. 2011), 53 bits of it."""
    return _uniform(seed, choice, position // NUMBERS)[position % NUMBERS]


@lru_cache(SEQUENCES)
def _uniform(seed: int, choice: int, block: int) -> list[float]:
    """The numbers of NUMBERS positions: the first of the four that each position's counter gives."""
    key = np.array((seed, choice), np.uint64)
    counter = np.array((block * NUMBERS, 0, 0, 0), np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(4 * NUMBERS)[::4]
    numbers: list[float] = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
    return numbers


def distribution(logits: NDArray[np.floating], params: SamplingParams) -> tuple[Ids, Probabilities]:
    """The tokens that may follow, ascending, and their probabilities, which sum to 1.

    logits [vocab]. `top_k`, `top_p`, `min_p` cut in this order, each what the one before left; where equally probable
    tokens stand at a cut, those of lower id stay. Raises StepError for logits without a finite maximum.
    """
    ids, weights = _left(logits, params)
    return np.arange(weights.size) if ids is None else ids, weights / weights.sum()


def _left(logits: NDArray[np.floating], params: SamplingParams) -> tuple[Ids | None, Probabilities]:
    """As `distribution`, with weights of any sum; ids are None where nothing was cut."""
    best = int(logits.argmax())  # the lowest id on ties; numpy counts NaN as the largest
    peak = float(logits[best])
    if not math.isfinite(peak):
        raise StepError(f"the model's logits have the maximum {peak} at token {best}: it has to be finite")
    if params.temperature == 0:
        return np.array([best]), np.ones(1)
    ids, weights = None, _weights(logits, peak, params.temperature)
    if 0 < params.top_k < weights.size:
        ids = _largest(weights, _kth(weights, params.top_k), params.top_k)
        weights = weights[ids]
    if params.top_p < 1:
        kept = _nucleus(weights, params.top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= params.min_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


@dataclass(frozen=True, slots=True)
class Best:
    """The largest logits of a row, best first, and `mass`: the row's sum of exp((logit - largest) / temperature).

    Logits that are not among them are at most the last one.
    """

    ids: Ids  # [best]
    logits: NDArray[np.float32]  # [best]
    mass: float
    vocab: int


def left_of_best(best: Best, params: SamplingParams) -> tuple[Ids | None, Probabilities] | None:
    """What `_left` makes of the whole row, to the bit; None where the best logits cannot tell.

    They can where every token that is left lies strictly above the last of them. Raises StepError as `distribution`.
    """
    order = np.argsort(best.ids)
    ids, logits = best.ids[order], best.logits[order]
    if ids.size == best.vocab:
        return _left(logits, params)
    peak = float(best.logits[0])
    if not np.isfinite(peak):
        raise StepError(f"the model's logits have the maximum {peak} at token {best.ids[0]}: it has to be finite")
    weights = _weights(logits, peak, params.temperature)
    least = float(weights[np.flatnonzero(order == ids.size - 1)[0]])
    told = False  # whether what is left is known to be all
    if 0 < params.top_k < best.vocab:
        if params.top_k > ids.size or (floor := _kth(weights, params.top_k)) <= least:
            return None
        kept, told = _largest(weights, floor, params.top_k), True
        ids, weights = ids[kept], weights[kept]
    if params.top_p < 1:
        nucleus = (
            _nucleus(weights, params.top_p) if told else _nucleus_of_best(weights, params.top_p * best.mass, least)
        )
        if nucleus is None:
            return None
        ids, weights, told = ids[nucleus], weights[nucleus], True
    if params.min_p > 0:
        if not told and least >= params.min_p:
            return None
        kept, told = np.flatnonzero(weights >= params.min_p), True
        ids, weights = ids[kept], weights[kept]
    return (ids, weights) if told else None


def draw_best(best: Best, params: SamplingParams, seed: int, choice: int, position: int) -> int | None:
    """As `draw` with the whole row; None where that is needed."""
    left = left_of_best(best, params)
    return None if left is None else _drawn(*left, seed, choice, position)


def draw(logits: NDArray[np.floating], params: SamplingParams, seed: int, choice: int, position: int) -> int:
    """The token at output `position` of `choice`: inverse CDF in vocabulary order; the argmax at temperature 0."""
    return _drawn(*_left(logits, params), seed, choice, position)


def _drawn(ids: Ids | None, weights: Probabilities, seed: int, choice: int, position: int) -> int:
    if weights.size == 1:
        return 0 if ids is None else int(ids[0])
    place = _invert(weights, uniform(seed, choice, position))
    return place if ids is None else int(ids[place])


def typical(logits: NDArray[np.floating], params: SamplingParams, drafted: Sequence[int]) -> int | None:
    """The most probable of the `drafted` tokens if it is probable enough, given the entropy; else None."""
    if not drafted:
        return None
    ids, probabilities = distribution(logits, params)
    entropy = -float((probabilities * np.log(np.maximum(probabilities, np.finfo(float).tiny))).sum())
    known = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
    best = max(drafted, key=lambda token: known.get(token, 0.0))
    return best if known.get(best, 0.0) > min(EPSILON, DELTA * math.exp(-entropy)) else None


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The model's own logarithmic probability of an emitted token, and the most probable tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # the most probable first, of equal ones the lower id


def logprobs(logits: NDArray[np.floating], token: int, count: int) -> Logprobs:
    """Of `token` and the `count` most probable ones under softmax(logits [vocab])."""
    peak = float(logits.max())
    if not np.isfinite(peak):
        raise StepError(f"the model's logits have the maximum {peak}: it has to be finite")
    shifted = logits.astype(np.float64) - peak
    shifted -= np.log(np.exp(shifted).sum())
    np.maximum(shifted, LEAST_LOGPROB, out=shifted)
    top: list[int] = []
    if count:
        best = _largest(shifted, _kth(shifted, min(count, shifted.size)), min(count, shifted.size))
        top = best[np.argsort(-shifted[best], kind="stable")].tolist()
    return Logprobs(token, float(shifted[token]), tuple((i, float(shifted[i])) for i in top))


def _weights(logits: NDArray[np.floating], peak: float, temperature: float) -> Probabilities:
    """[vocab], the best is 1."""
    weights = logits.astype(np.float64)
    weights -= peak
    weights /= max(temperature, COLDEST)  # which keeps quotients finite
    return np.exp(weights, out=weights)


def _invert(weights: Probabilities, number: float) -> int:
    """The first index up to which more than `number` of the whole lies: its block, then its place in the block."""
    starts = np.arange(0, weights.size, BLOCK)
    mass = np.add.reduceat(weights, starts).cumsum()
    goal = number * mass[-1]  # below mass[-1], as number is below 1
    block = int(mass.searchsorted(goal, side="right"))  # "right" passes over what has weight 0
    first = block * BLOCK
    inside = weights[first : first + BLOCK]
    before = mass[block - 1] if block else 0.0
    place = int(inside.cumsum().searchsorted(goal - before, side="right"))
    if place == inside.size:  # the two sums of a block round differently
        place = int(np.flatnonzero(inside)[-1])
    return first + place


def _largest(weights: Probabilities, floor: float, count: int) -> Ids:
    """Indices, ascending, of the `count` largest weights, the last of which is `floor`."""
    kept = weights > floor
    level = np.flatnonzero(weights == floor)
    kept[level[: count - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


def _kth(weights: Probabilities, k: int) -> float:
    """The k-th largest weight: no less than the k-th largest maximum of blocks, so that few weights are partitioned."""
    block = weights.size // k
    if block > 1:
        maxima = np.maximum.reduceat(weights, np.arange(0, weights.size, block))
        weights = weights[weights >= np.partition(maxima, -k)[-k]]
    return float(np.partition(weights, -k)[-k])


def _nucleus(weights: Probabilities, top_p: float) -> Ids:
    """Indices, ascending, of the fewest largest weights that together reach `top_p` of the whole."""
    goal = top_p * float(weights.sum())
    # Weights below this bound weigh less than 1 - top_p together, so none of them is needed; half of it for rounding.
    high = weights[weights >= 0.5 * (1 - top_p) * weights.sum() / weights.size]
    # The leading bits of a float order as the floats do: find the bin where the goal is reached, and sort only that.
    bins = (ONE - high.view(np.int64)) >> 46  # 64 bins for each power of two, the largest weights first
    mass = np.cumsum(np.bincount(bins, weights=high))
    last = min(int(np.searchsorted(mass, goal)), mass.size - 1)
    inside = np.sort(high[bins == last])[::-1]
    before = mass[last - 1] if last else 0.0
    count = min(int(np.searchsorted(before + np.cumsum(inside), goal)) + 1, inside.size)
    return _largest(weights, float(inside[count - 1]), int(np.count_nonzero(bins < last)) + count)


def _nucleus_of_best(weights: Probabilities, goal: float, least: float) -> Ids | None:
    """As `_nucleus` of a row whose other weights are at most `least`; None where they may belong to it.

    `goal` was summed elsewhere, in another order: a nucleus that SLACK would change is not told.
    """
    falling = np.sort(weights)[::-1]
    reached = np.cumsum(falling)
    early, late = np.searchsorted(reached, [goal * (1 - SLACK), goal * (1 + SLACK)])
    if early != late or late == weights.size or falling[late] <= least:
        return None
    return _largest(weights, float(falling[late]), int(late) + 1)
