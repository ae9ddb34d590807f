"""The universe of rank-tuples, and the heads' probabilities it is made of."""

import pytest

from runtime.tree import PUBLISHED_ACCURACY, Universe, rank_probabilities

TOP_K = 10


def test_the_universe_holds_the_most_likely_paths() -> None:
    universe = Universe(PUBLISHED_ACCURACY, TOP_K, size=64)
    probability = rank_probabilities(PUBLISHED_ACCURACY, TOP_K)
    value = {(): 1.0}
    for h in range(5):
        for path in [p for p in value if len(p) == h]:
            value |= {(*path, r): value[path] * probability[h, r] for r in range(TOP_K)}
        value = dict(sorted(value.items(), key=lambda kv: -kv[1])[:3000])
    best = sorted(value, key=lambda path: -value[path])[:65]
    assert sum(value[p] for p in universe.paths) == pytest.approx(sum(value[p] for p in best))


def test_ranks_past_the_known_ones_are_less_likely() -> None:
    probability = rank_probabilities([[0.5, 0.7]], 5)[0]
    assert probability == pytest.approx([0.5, 0.2, 0.1, 0.05, 0.025])
