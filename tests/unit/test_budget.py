"""How many nodes a budget takes, against a search by its definition, and at which prices."""

import numpy as np
import pytest

from runtime.budget import Nodes, Prices, best
from runtime.cost import CostModel
from runtime.load import Load
from runtime.pace import Pace
from runtime.stats import Decisions

POINTS = [1, 2, 4, 8, 16, 32, 64]


def cost_model(rng: np.random.Generator) -> CostModel:
    body = np.sort(rng.uniform(1e-3, 9e-3, (2, len(POINTS))), axis=1)
    heads = np.sort(rng.uniform(1e-4, 1e-3, 2))
    return CostModel([1, 8], POINTS, body.tolist(), [0.0] * len(POINTS), heads.tolist(), pair=1e-8, slot=1e-6)


def candidates(rng: np.random.Generator, rows: int, count: int = 20) -> Nodes:
    chance = np.sort(rng.uniform(0.0, 1.0, count))[::-1]
    return Nodes(rng.integers(0, rows, count), chance, rng.random(count) < 0.7)


def by_definition(
    nodes: Nodes, count: int, lengths: np.ndarray, prices: Prices, asked: int | None
) -> tuple[float, float]:
    """Tokens and seconds of a step with so many of the nodes."""
    taken = nodes.row[:count].tolist()
    sizes = [1 + taken.count(row) for row in range(len(lengths))]
    attended = sum(size * (int(length) + size) for size, length in zip(sizes, lengths, strict=True))
    seconds = float(prices.cost.decoder(len(lengths), sum(sizes), max(sizes), attended, 0, int(lengths.sum())))
    ran = len(set(nodes.row[:count][nodes.by_heads[:count]].tolist())) if asked is None else asked
    tokens = len(lengths) + float(nodes.chance[:count].sum())
    seconds += float(prices.cost.heads(ran, prices.share)) + (prices.drafting if ran else prices.plain)
    return tokens, seconds + tokens * prices.token


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("ran", [True, False])
def test_a_budget_is_the_best_of_all(rows: int, ran: bool) -> None:
    rng = np.random.default_rng(rows)
    sizes = set()
    for _ in range(100):
        nodes, lengths = candidates(rng, rows), rng.integers(10, 300, rows)
        prices = Prices(cost_model(rng), 1e-4, 3e-4, 5e-5, float(rng.choice([0.0, 200.0, 1500.0])), share=0.5)
        asked = rows if ran else None
        choice = best(nodes, lengths, Load.planned(lengths.tolist(), [0] * rows), prices, asked)
        steps = [by_definition(nodes, count, lengths, prices, asked) for count in range(len(nodes.row) + 1)]
        plain = by_definition(nodes, 0, lengths, prices, 0)
        rate = max(prices.rate, plain[0] / plain[1])
        worth = [tokens - rate * seconds if prices.rate else tokens / seconds for tokens, seconds in steps]
        assert worth[choice.nodes] == pytest.approx(max(worth)), "there is a better number of nodes"
        if prices.rate:
            assert choice.rate == pytest.approx(rate), "time is worth what plain decoding gives at least"
        sizes.add(choice.nodes)
    assert len(sizes) > 5, "none, a few, all"


def test_prices_part_the_nodes_that_pay_from_the_others() -> None:
    """A node costs 0.1 ms up to 8 tokens, and 1 ms behind: nodes of a half pay before the kink, and not behind it."""
    body = [1e-3 + 1e-4 * min(n, 8) + 1e-3 * max(0, n - 8) for n in POINTS]
    cost = CostModel([1], POINTS, [body], [0.0] * len(POINTS), [0.0])
    nodes = Nodes(np.zeros(20, np.int64), np.full(20, 0.5), np.ones(20, bool))
    load, lengths = Load.planned([100], [0]), np.array([100])
    choice = best(nodes, lengths, load, Prices(cost, 0.0, 0.0, 0.0, 1000.0), asked=1)
    assert choice.nodes == 7
    assert choice.last_price == pytest.approx(0.1) and choice.next_price == pytest.approx(1.0)
    dear = best(nodes, lengths, load, Prices(cost, 0.0, 0.0, 2e-4, 1000.0), asked=1)
    assert dear.nodes == 7, "what every token takes is no price of drafts"
    assert dear.last_price == pytest.approx(0.1 / 0.8) and dear.next_price == pytest.approx(1.0 / 0.8)


def test_the_rate_is_what_steps_gave() -> None:
    rng = np.random.default_rng(0)
    pace = Pace(cost_model(rng), Decisions())
    load = Load.planned([50, 60], [0, 0])
    assert pace.prices(load).rate == 0.0, "nothing is known"
    for _ in range(200):
        pace.took(2, True, inside=3e-3, seconds=1e-3, tokens=8, giving=4e-4)
    prices = pace.prices(load)
    assert prices.rate == pytest.approx(8 / 4e-3) and prices.token == pytest.approx(5e-5)
    assert prices.drafting == pytest.approx(6e-4) and prices.plain == 0.0, "without what its tokens take"
    pace.cost.factor = 2.0  # the machine is slow just now: for the session of every step, not for the host
    assert pace.prices(load).rate == pytest.approx(8 / 7e-3)
    assert pace.prices(Load.planned([50], [0])).rate == 0.0, "other numbers of rows are other matters"
    pace.took(1, True, inside=0.0, seconds=0.0, tokens=1, giving=0.0)
    assert pace.prices(Load.planned([50], [0])).rate == 0.0, "a clock that stands tells nothing"
