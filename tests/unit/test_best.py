"""Draws from the best logits of a row alone: the bits of a draw from all of it, or no draw."""

from collections.abc import Iterator

import numpy as np
import pytest

from runtime.errors import StepError
from runtime.params import SamplingParams
from runtime.sampling import Best, distribution, draw, draw_best, left_of_best

BEST = 256


def best_of(logits: np.ndarray, temperature: float, rng: np.random.Generator, count: int = BEST) -> Best:
    """What a device brings over: its sum in another order, and equal logits in any."""
    order = np.lexsort((rng.random(len(logits)), -logits))[: min(count, len(logits))]
    with np.errstate(over="ignore"):
        shares = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)
    return Best(order, logits[order], float(rng.permutation(shares).sum()), len(logits))


def cases(trials: int) -> Iterator[tuple[np.ndarray, SamplingParams, np.random.Generator]]:
    """Smooth logits, and ones on a grid of float16's steps, so that ties stand at most cuts."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        vocab = int(rng.choice([40, 257, 1000])) if trial % 20 else 32000
        logits = rng.standard_normal(vocab) * rng.choice([1.0, 3.0, 8.0])
        if trial % 2:
            logits = np.round(logits * 4) / 4
        yield (
            logits.astype(np.float32),
            SamplingParams(
                temperature=float(rng.choice([0.05, 0.7, 1.0, 2.5])),
                top_k=int(rng.choice([0, 1, 20, 255, 256, 300])),
                top_p=float(rng.choice([0.05, 0.6, 0.95, 1.0])),
                min_p=float(rng.choice([0.0, 0.02, 0.5])),
            ),
            rng,
        )


def test_what_is_told_is_the_whole_rows_distribution_to_the_bit() -> None:
    told = 0
    for logits, params, rng in cases(600):
        best = best_of(logits, params.temperature, rng)
        found = left_of_best(best, params)
        if found is None:
            assert draw_best(best, params, 1, 0, 0) is None
            continue
        told += 1
        ids, probabilities = distribution(logits, params)
        left, weights = found
        assert np.array_equal(np.arange(len(logits)) if left is None else left, ids)
        assert np.array_equal(weights / weights.sum(), probabilities)
        for position in range(3):
            assert draw_best(best, params, 7, 0, position) == draw(logits, params, 7, 0, position)
    assert told > 300, "most rows have to be told, or whole ones cross the bus after all"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"top_k": 200}, True),
        ({"top_p": 0.9}, True),
        ({"min_p": 0.01}, True),
        ({"top_k": 256}, False),  # the 257th may be as large as the 256th
        ({"top_k": 400}, False),
        ({"top_p": 0.9999999}, False),
        ({"min_p": 1e-9}, False),
        ({}, False),
        ({"top_k": 400, "min_p": 0.01}, False),
    ],
)
def test_when_the_best_tell(settings: dict[str, float], told: bool) -> None:
    logits = -np.arange(2000, dtype=np.float32) / 20
    params = SamplingParams(temperature=1.0, **settings)  # type: ignore[arg-type]
    best = best_of(logits, 1.0, np.random.default_rng(0))
    assert (left_of_best(best, params) is not None) == told


def test_a_nucleus_that_ends_with_the_last_of_the_best_is_not_told() -> None:
    """Equal logits: half of them reach 0.5, which ends among ties that the best do not all hold."""
    logits = np.zeros(1000, np.float32)
    best = best_of(logits, 1.0, np.random.default_rng(0))
    assert left_of_best(best, SamplingParams(temperature=1.0, top_p=0.2003)) is None
    assert left_of_best(best, SamplingParams(temperature=1.0, top_k=5)) is None
    assert left_of_best(best, SamplingParams(temperature=1.0, min_p=0.5)) is None


def test_a_nucleus_at_the_edge_of_what_sums_tell_is_not_told() -> None:
    """Two halves: 0.5 is reached with the first, or just not, as the sum is rounded."""
    logits = np.full(1000, -1e4, np.float32)
    logits[[3, 5]] = 0
    best = best_of(logits, 1.0, np.random.default_rng(0))
    assert left_of_best(best, SamplingParams(temperature=1.0, top_p=0.5)) is None
    ids, _ = distribution(logits, SamplingParams(temperature=1.0, top_p=0.6))
    found = left_of_best(best, SamplingParams(temperature=1.0, top_p=0.6))
    assert found is not None and found[0] is not None and found[0].tolist() == ids.tolist() == [3, 5]


def test_logits_that_are_no_distribution() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        best = Best(np.arange(256), np.full(256, bad, np.float32), 1.0, 1000)
        with pytest.raises(StepError, match="it has to be finite"):
            left_of_best(best, SamplingParams(temperature=1.0, top_k=5))
