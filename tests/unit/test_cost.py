"""The cost model: what it predicts, that more is never cheaper, and what it learns from timed steps."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from runtime.cost import CostModel

ROWS, TOKENS = [1, 2, 4, 8], [2, 4, 8, 16, 32, 64, 128]


def model(scale: Callable[[int, int], float] = lambda rows, tokens: 1.0) -> CostModel:
    """1 ms and 0.2 ms a row; flat up to 16 tokens, then 50 us a token. `scale` bends the table."""
    body = [[scale(r, t) * (1e-3 + 2e-4 * r + 5e-5 * max(0, t - 16)) for t in TOKENS] for r in ROWS]
    return CostModel(ROWS, TOKENS, body, [1e-5 * t for t in TOKENS], [4e-4, 5e-4, 6e-4, 7e-4], 1e-8, 1e-6, 5e-7)


def random_model(rng: np.random.Generator) -> CostModel:
    """Tables of nothing but noise."""
    rows = sorted({1, *rng.integers(1, 40, rng.integers(0, 5)).tolist()})
    tokens = sorted({*rng.integers(1, 300, rng.integers(1, 9)).tolist()})
    noise = lambda *shape: (rng.standard_normal(shape) * 1e-3).tolist()  # noqa: E731
    prices = (rng.random(3) * 1e-5).tolist()
    return CostModel(rows, tokens, noise(len(rows), len(tokens)), noise(len(tokens)), noise(len(rows)), *prices)


def test_a_step_costs_its_parts() -> None:
    expected = 1e-3 + 8e-4 + 5e-5 * 16 + 1e-5 * 32 + 1e-8 * 9000 + 1e-6 * 4 * 20 + 5e-7 * 700
    assert model().decoder(4, 32, 20, 9000, 0, 700) == pytest.approx(expected)
    assert model().decoder(4, 32, 20, 9000, 24, 700) == pytest.approx(expected - 1e-5 * 24)


def test_lines_are_straight_between_and_beyond_the_points() -> None:
    cost = model()
    at = lambda rows, tokens: float(cost.decoder(rows, tokens, 0, 0, 0, 0))  # noqa: E731
    assert at(3, 24) == pytest.approx((at(2, 16) + at(4, 16) + at(2, 32) + at(4, 32)) / 4)
    assert at(1, 640) == pytest.approx(at(1, 64) + 9 * (at(1, 128) - at(1, 64)))
    assert at(16, 64) == pytest.approx(2 * at(8, 64) - at(0, 64))
    assert 0 < at(1, 1) <= at(1, 2), "plain decoding without `exact`"
    assert cost.heads(3) == pytest.approx(5.5e-4)
    assert cost.heads(16) == pytest.approx(9e-4)
    assert cost.heads(0) == 0


def test_choices_are_predicted_together() -> None:
    cost = model()
    tokens = np.arange(16, 80)
    widest, attended, silent = tokens - 14, tokens * 300, np.minimum(tokens // 2, 20)
    together = cost.decoder(8, tokens, widest, attended, silent, 2000)
    single = [
        cost.decoder(8, *choice, 2000)
        for choice in zip(*(a.tolist() for a in (tokens, widest, attended, silent)), strict=True)
    ]
    assert together == pytest.approx(single)
    assert cost.heads(np.arange(9)) == pytest.approx([cost.heads(rows) for rows in range(9)])


def test_without_keys_rows_are_taken_to_be_alike() -> None:
    """Of several choices the one with the fewest tokens tells: all read the same keys."""
    length, nodes = 300, 4
    step = 8, 8 * nodes, nodes, 8 * nodes * (length + nodes)
    assert model().decoder(*step) == pytest.approx(model().decoder(*step, 0, 8 * length))
    choices = 8, np.array([40, 8 * nodes]), 12, np.array([20000, step[3]])
    assert model().decoder(*choices) == pytest.approx(model().decoder(*choices, 0, 8 * length))


@pytest.mark.parametrize("seed", range(200))
def test_more_is_never_cheaper(seed: int) -> None:
    """Whatever was measured and learnt: noise must not make a bigger tree look free."""
    rng = np.random.default_rng(seed)
    cost = random_model(rng)
    for _ in range(50):
        cost.observe_decoder(*rng.integers(1, 40, 4).tolist(), 0, float(rng.exponential(1e-2)), 0)
        cost.observe_heads(int(rng.integers(1, 40)), float(rng.exponential(1e-2)))
    for rows in (1, 3, 17, 60):
        nodes = np.full(rows, 1)
        length = rng.integers(0, 900, rows)
        loads = []
        for _ in range(100):  # a node more in one row, wherever
            nodes[rng.integers(rows)] += 1
            loads.append((nodes.sum(), nodes.max(), (nodes * (length + nodes)).sum()))
        tokens, widest, attended = np.array(loads).T
        for silent, keys in ((0, int(length.sum())), (np.minimum(np.arange(100), tokens - 1), None)):
            seconds = cost.decoder(rows, tokens, widest, attended, silent, keys)
            assert (seconds > 0).all()
            assert (np.diff(seconds) >= -1e-12 * seconds[1:]).all()
    assert (np.diff(cost.heads(np.arange(64))) >= 0).all()


def test_some_of_the_heads_take_their_share_of_the_time() -> None:
    cost = CostModel([1, 2], [1], [[1e-3], [1e-3]], [0.0], [4e-4, 6e-4], base=0.25)
    assert cost.heads(1, 0.2) == pytest.approx(4e-4 * (0.25 + 0.75 * 0.2))
    assert cost.heads(2, np.array([0.5, 1.0])) == pytest.approx([6e-4 * 0.625, 6e-4])
    before = float(cost.heads(2))
    cost.observe_heads(2, float(cost.heads(2, 0.5)), 0.5)
    assert cost.heads(2) == pytest.approx(before), "what was predicted teaches nothing"
    cost.observe_heads(2, 2 * float(cost.heads(2, 0.5)), 0.5)
    assert cost.heads(2) > before
    assert CostModel.from_json(cost.to_json()).base == 0.25
    for base in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="base is"):
            CostModel([1], [1], [[1e-3]], [0.0], [1e-4], base=base)


def test_what_was_predicted_teaches_nothing() -> None:
    cost = model()
    before = json.dumps(cost.to_json())
    for rows, tokens in ((1, 2), (3, 21), (8, 128), (8, 500)):
        cost.observe_decoder(rows, tokens, 20, 9000, 1, float(cost.decoder(rows, tokens, 20, 9000, 1)))
        cost.observe_heads(rows, float(cost.heads(rows)))
    after = cost.to_json()
    assert np.allclose(after["body"], json.loads(before)["body"], rtol=1e-12)
    assert cost.factor == pytest.approx(1.0)


def test_what_was_timed_shows_at_once() -> None:
    cost = model()
    before = cost.decoder(4, 32, 8, 9000), cost.heads(3)
    cost.observe_decoder(4, 32, 8, 9000, 0, float(before[0]))  # the machine is as quick as it was
    cost.observe_heads(3, 2 * float(before[1]))
    assert cost.decoder(4, 32, 8, 9000) == pytest.approx(before[0])
    assert 1.001 * before[1] < cost.heads(3) < 1.01 * before[1]
    cost.observe_decoder(4, 32, 8, 9000, 0, 2 * float(before[0]))
    assert 1.1 * before[0] < cost.decoder(4, 32, 8, 9000) < 1.2 * before[0]
    assert cost.decoder(4, 32, 8, 9000) > cost.factor * before[0], "the table learns, not the factor alone"


def steps(seed: int, count: int) -> list[tuple[int, int, int, int]]:
    """Steps of a service: (rows, tokens, widest, keys)."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        rows = int(rng.integers(1, 9))
        nodes = rng.integers(2, 17, rows)
        result.append((rows, int(nodes.sum()), int(nodes.max()), int(rows * rng.integers(20, 900))))
    return result


def learn(cost: CostModel, truth: CostModel, seed: int, count: int, outliers: float = 0.0) -> None:
    """Steps whose times are noisy, for long phases 1 to 3 times slower, and now and then 100 times."""
    rng = np.random.default_rng(seed)
    slower = 1.0
    for i, (rows, tokens, widest, keys) in enumerate(steps(seed, count)):
        if i % 400 == 0:
            slower = float(rng.choice([1.0, 1.5, 3.0]))
        noise = math.exp(rng.normal(0, 0.1)) * (100.0 if rng.random() < outliers else 1.0)
        seconds = float(truth.decoder(rows, tokens, widest, keys * 8, 0, keys)) * noise * slower
        cost.observe_decoder(rows, tokens, widest, keys * 8, 0, seconds, keys)
        cost.observe_heads(rows, float(truth.heads(rows)) * noise * slower)


def ratio_errors(cost: CostModel, truth: CostModel) -> np.ndarray:
    """By how much L(a) / L(b) is wrong, over many pairs of steps."""
    seconds = lambda cost: np.array([cost.decoder(r, t, w, k * 8, 0, k) for r, t, w, k in steps(99, 200)])  # noqa: E731
    logs = np.log(seconds(cost) / seconds(truth))
    return np.abs(logs[:, None] - logs[None])


def bent(rows: int, tokens: int) -> float:
    """A table that is wrong by up to a factor of 2, in a way that changes decisions."""
    return 0.5 + tokens / 128 if rows > 2 else 1.6 - 0.8 * tokens / 128


@pytest.mark.parametrize("outliers", [0.0, 0.01])
def test_a_wrong_table_is_put_right_by_real_steps(outliers: float) -> None:
    truth, cost = model(), model(bent)
    before = ratio_errors(cost, truth)
    learn(cost, truth, seed=1, count=8000, outliers=outliers)
    after = ratio_errors(cost, truth)
    assert np.median(before) > 0.12 and np.quantile(before, 0.95) > 0.4
    assert np.median(after) < 0.025 and np.quantile(after, 0.95) < 0.07
    assert cost.heads(8) / cost.heads(1) == pytest.approx(truth.heads(8) / truth.heads(1), rel=0.05)


def test_a_right_table_stays_right() -> None:
    """Hiccups only ever make steps slower: what they have in common must not pile up in the tables."""
    cost = model()
    learn(cost, model(), seed=2, count=6000, outliers=0.03)
    assert np.quantile(ratio_errors(cost, model()), 0.95) < 0.03


def test_a_hiccup_does_not_matter() -> None:
    truth, cost = model(), model()
    cost.observe_decoder(4, 32, 8, 9000, 0, 100 * float(truth.decoder(4, 32, 8, 9000)))
    assert np.quantile(ratio_errors(cost, truth), 1.0) < 0.005
    assert cost.factor < 1.2


def test_a_throttled_phase_is_followed_and_leaves_other_cells_alone() -> None:
    """A machine four times as slow, and only ever one kind of step: the factor says so, the ratios stay."""
    truth, cost = model(), model()
    one, other = (8, 64, 8, 20000), (1, 2, 2, 400)
    for _ in range(60):
        cost.observe_decoder(*one, 0, 4 * float(truth.decoder(*one)))
    assert cost.decoder(*one) == pytest.approx(4 * truth.decoder(*one), rel=0.02)
    assert cost.decoder(*other) == pytest.approx(4 * truth.decoder(*other), rel=0.05)
    for _ in range(60):
        cost.observe_decoder(*one, 0, float(truth.decoder(*one)))
    assert cost.decoder(*other) == pytest.approx(truth.decoder(*other), rel=0.02)
    assert cost.decoder(*one) == pytest.approx(truth.decoder(*one), rel=0.02)


def test_heads_that_seem_much_too_dear_are_put_right_by_a_few_runs() -> None:
    """As after a profile of a busy machine: what seems too dear runs so seldom that it would stay so."""
    truth, cost = model(), model()
    while cost.heads(8) < 8 * truth.heads(8):
        cost.observe_heads(8, 100.0)
    for _ in range(4):
        cost.observe_heads(8, float(truth.heads(8)))
    assert cost.heads(8) < 2.1 * truth.heads(8)


def test_a_step_too_short_for_the_clock_breaks_nothing() -> None:
    cost = model()
    cost.observe_decoder(1, 2, 2, 100, 0, 0.0)
    cost.observe_heads(1, 0.0)
    assert np.isfinite(cost.decoder(1, 2, 2, 100)) and cost.decoder(1, 2, 2, 100) > 0


def test_json_keeps_all_but_the_moment() -> None:
    cost = model(bent)
    learn(cost, model(), seed=3, count=50)
    again = CostModel.from_json(json.loads(json.dumps(cost.to_json())))
    assert again.to_json() == cost.to_json()
    assert again.factor == 1.0 != cost.factor
    assert again.decoder(3, 21, 9, 4000, 7, 500) * cost.factor == pytest.approx(cost.decoder(3, 21, 9, 4000, 7, 500))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []}, {"rows": [2, 1, 4, 8]}, {"rows": [0, 1, 2, 3]}, {"tokens": TOKENS[1:]}, {"body": [[1.0]]},
        {"body": [[math.nan] * len(TOKENS)] * 4}, {"vocabulary": [0.0]}, {"heads": ["x"] * 4}, {"heads": None},
        {"pair": -1.0}, {"key": math.inf}, {"slot": "1"}, {"more": 1},
    ],
)  # fmt: skip
def test_tables_that_are_none_are_refused(change: dict[str, object]) -> None:
    value = model().to_json() | change
    with pytest.raises(ValueError):
        CostModel.from_json(value)
    for other in ([], None, {}):
        with pytest.raises(ValueError, match="cost model"):
            CostModel.from_json(other)
