import math

import numpy as np
import pytest
from scipy.stats import chisquare

from runtime.errors import StepError
from runtime.params import SamplingParams
from runtime.sampling import distribution, draw, uniform

SETTINGS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=2.0),
    SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(temperature=0.7, top_p=0.8),
    SamplingParams(temperature=1.3, min_p=0.1),
    SamplingParams(temperature=1.5, top_k=12, top_p=0.9, min_p=0.05),
]


def slow_distribution(logits: np.ndarray, params: SamplingParams) -> dict[int, float]:
    """The definition, token by token: most probable first, lower id first where they are equal."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if params.temperature == 0:
        return {order[0]: 1.0}
    peak = float(logits[order[0]])
    weight = {i: math.exp((float(logits[i]) - peak) / params.temperature) for i in order}
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        total = math.fsum(weight[i] for i in order)
        kept: list[int] = []
        while math.fsum(weight[i] for i in kept) < params.top_p * total:
            kept.append(order[len(kept)])
        order = kept
    order = [i for i in order if weight[i] >= params.min_p]
    total = math.fsum(weight[i] for i in order)
    return {i: weight[i] / total for i in sorted(order)}


def test_distribution_matches_its_definition() -> None:
    """Random logits on a coarse grid, so that ties stand at most cuts."""
    rng = np.random.default_rng(7)
    for trial in range(600):
        vocab = int(rng.integers(2, 60)) if trial % 20 else 2000
        logits = (rng.integers(-6, 7, vocab) * rng.choice([0.25, 1.0, 3.0])).astype(np.float32)
        params = SamplingParams(
            temperature=float(rng.choice([0, 0.3, 1, 2.5])),
            top_k=int(rng.choice([0, 1, 3, 10, 100])),
            top_p=float(rng.choice([0.05, 0.37, 0.9, 0.999, 1])),
            min_p=float(rng.choice([0, 0.02, 0.3, 1])),
        )
        expected = slow_distribution(logits, params)
        ids, probabilities = distribution(logits, params)
        assert ids.tolist() == list(expected), (logits.tolist(), params)
        np.testing.assert_allclose(probabilities, list(expected.values()), rtol=1e-12)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "params", SETTINGS, ids=lambda p: f"temperature {p.temperature} top_k {p.top_k} top_p {p.top_p} min_p {p.min_p}"
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = np.random.default_rng(3).normal(size=40).astype(np.float32)
    ids, probabilities = distribution(logits, params)
    draws = 4000
    tokens = np.array([draw(logits, params, 11, 0, position) for position in range(draws)])
    assert set(tokens) <= set(ids.tolist())
    common = probabilities * draws >= 5  # chi-squared wants five expected in each class: the rest become one class
    observed = [np.sum(tokens == i) for i in ids[common]] + [np.sum(np.isin(tokens, ids[~common]))]
    expected = [*probabilities[common] * draws, probabilities[~common].sum() * draws]
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert len(observed) >= 5
    assert chisquare(observed, expected).pvalue > 0.001


def test_uniform_numbers_depend_on_their_key_alone() -> None:
    keys = [(seed, choice, position) for seed in (0, 1, 2**64 - 1) for choice in (0, 1) for position in range(50)]
    forward = [uniform(*key) for key in keys]
    backward = [uniform(*key) for key in reversed(keys)]
    assert forward == backward[::-1]
    assert len(set(forward)) == len(keys)
    assert all(0 <= number < 1 for number in forward)


def test_uniform_numbers_stay_what_they_are() -> None:
    """A seeded answer stays the same text in later versions: numpy's Philox, counter and key as here."""
    generator = np.random.Generator(np.random.Philox(key=np.array([42, 1], np.uint64), counter=[9, 0, 0, 0]))
    assert uniform(42, 1, 9) == generator.random() == 0.30158206298520673
    for position in (0, 31, 32, 33, 2**20 + 31):  # several are made at once
        philox = np.random.Philox(key=np.array([42, 1], np.uint64), counter=[position, 0, 0, 0])
        assert uniform(42, 1, position) == np.random.Generator(philox).random()


def test_uniform_numbers_are_uniform() -> None:
    numbers = [uniform(5, 0, position) for position in range(10_000)]
    counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
    assert chisquare(counts).pvalue > 0.001


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    logits = np.array([0.0, math.log(2), -math.inf, math.log(5)], np.float32)  # 1/8, 2/8, 0, 5/8
    for position in range(200):
        number = uniform(1, 2, position)
        expected = 0 if number < 0.125 else 1 if number < 0.375 else 3
        assert draw(logits, SamplingParams(temperature=1.0), 1, 2, position) == expected


@pytest.mark.parametrize("vocab", [8, 1024])  # 1024: the cumulative sum is taken in blocks
def test_a_draw_on_the_boundary_between_tokens(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token owns its lower boundary, and a token of probability 0 owns nothing."""
    logits = np.full(vocab, -math.inf, np.float32)
    possible = [vocab // 4 * i + 1 for i in range(4)]
    logits[possible] = 0
    for number, token in [(0.0, 0), (0.2499, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1 - 2**-53, 3)]:
        monkeypatch.setattr("runtime.sampling.uniform", lambda *_, number=number: number)
        assert draw(logits, SamplingParams(temperature=1.0), 0, 0, 0) == possible[token]


def test_a_large_vocabulary() -> None:
    logits = np.random.default_rng(4).normal(size=32_000).astype(np.float32) * 4
    weights = np.exp(logits.astype(np.float64))
    mass = np.cumsum(weights / weights.sum())
    for position in range(100):
        expected = int(np.searchsorted(mass, uniform(3, 0, position)))
        assert draw(logits, SamplingParams(temperature=1.0), 3, 0, position) == expected


def test_greedy_takes_the_lowest_of_the_most_probable() -> None:
    logits = np.array([1, 3, 3, 2], np.float32)
    assert draw(logits, SamplingParams(), 0, 0, 0) == 1
    ids, probabilities = distribution(logits, SamplingParams())
    assert (ids.tolist(), probabilities.tolist()) == ([1], [1.0])


def test_extreme_temperatures() -> None:
    logits = np.array([3e38, -3e38, 0, 3e38], np.float32)
    ids, probabilities = distribution(logits, SamplingParams(temperature=1e-300, top_k=3))
    assert (ids.tolist(), probabilities.tolist()) == ([0, 1, 3], [0.5, 0, 0.5])
    assert {draw(logits, SamplingParams(temperature=1e-300), 0, 0, p) for p in range(40)} == {0, 3}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_without_a_finite_maximum_are_refused(bad: float) -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(StepError, match="token 2"):
            draw(np.array([0, 1, bad, 0], np.float32), SamplingParams(temperature=temperature), 0, 0, 0)
    with pytest.raises(StepError):
        draw(np.full(4, -math.inf, np.float32), SamplingParams(), 0, 0, 0)
