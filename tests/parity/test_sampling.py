"""Seeded sampling: the same text whatever speculates and shares the batch, drawn from exactly the distribution."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from runtime.params import SamplingParams
from runtime.sampling import distribution, uniform
from tests.parity.paths import Model
from tests.parity.questions import answer, engine_of, prompts
from tests.parity.test_greedy import noise_of

COUNT = 40
SETTINGS = (
    {"temperature": 1.0},
    {"temperature": 2.5},
    {"temperature": 1.5, "top_k": 20},
    {"temperature": 2.0, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.05},
    {"temperature": 3.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
)


def nearest_boundary(logits: np.ndarray, params: SamplingParams, position: int) -> float:
    """How far the drawn number lies from where another token would be drawn."""
    _, probabilities = distribution(logits, params)
    return float(np.abs(np.cumsum(probabilities) - uniform(params.seed or 0, 0, position)).min())


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_same_seed_gives_the_same_text(demo_artifact: Callable[[str], Path], precision: str) -> None:
    """A fork needs a drawn number within the noise's reach of a boundary of the distribution, or of a cut."""
    artifact, asked = demo_artifact(precision), prompts(COUNT, seed=2)
    texts = {}
    for rows in (1, 8):
        for speculation in ("off", 4, 16):
            params = [
                SamplingParams(40, seed=i, speculation=speculation, **SETTINGS[i % len(SETTINGS)]) for i in range(COUNT)
            ]
            texts[rows, speculation] = answer(engine_of(artifact, rows), asked, params, seed=rows)
    plain = texts.pop((1, "off"))
    assert texts.pop((8, "off")) == plain, "plain decoding is bit-equal in any batch"
    forks = [
        (i, next(t for t, (a, b) in enumerate(zip(mine, want, strict=False)) if a != b))
        for got in texts.values()
        for i, (mine, want) in enumerate(zip(got, plain, strict=True))
        if mine != want
    ]
    if forks:
        model = Model.load(artifact)
        noise = noise_of(model, 100)
        for i, at in forks:
            params = SamplingParams(seed=i, **SETTINGS[i % len(SETTINGS)])
            logits = model.plain(asked[i], plain[i][:at])[-1]
            reach = np.expm1(4 * noise / params.temperature)
            assert nearest_boundary(logits, params, at) <= reach, f"answer {i} forks at token {at}"
    assert len(forks) <= 0.01 * COUNT * len(texts)


@pytest.mark.parametrize("setting", SETTINGS)
def test_speculative_tokens_have_the_exact_distribution(demo_artifact: Callable[[str], Path], setting: dict) -> None:
    """Chi-squared of the tokens drawn inside trees, each against the distribution after what came before it."""
    samples = 1500
    artifact, [prompt] = demo_artifact("fp32"), prompts(1, seed=3)
    engine, model = engine_of(artifact, 8), Model.load(artifact)
    drawn = [
        s
        for seed in range(0, samples, 500)
        for s in (
            engine.add(prompt, SamplingParams(3, seed=seed + i, speculation=32, ignore_eos=True, **setting))
            for i in range(500)
        )
    ]
    while engine.has_work:
        engine.step()
    assert sum(s.accepted for s in drawn) > 0, "no token was drawn below a root"
    params = SamplingParams(**setting)
    tested = 0
    for depth in range(3):
        before = [tuple(s.tokens[:depth]) for s in drawn]
        for prefix in sorted(set(before), key=before.count, reverse=True)[:2]:
            tokens = np.array([s.tokens[depth] for s, p in zip(drawn, before, strict=True) if p == prefix])
            ids, probability = distribution(model.plain(prompt, list(prefix))[-1], params)
            assert np.isin(tokens, ids).all(), "a token the distribution does not hold"
            often = probability * len(tokens) >= 5
            observed = np.array([np.count_nonzero(tokens == i) for i in ids[often]])
            rest = 1 - probability[often].sum()
            expected = probability[often] * len(tokens)
            if rest * len(tokens) >= 5:
                observed, expected = (
                    np.append(observed, len(tokens) - observed.sum()),
                    np.append(expected, rest * len(tokens)),
                )
            if len(expected) > 1:
                expected *= observed.sum() / expected.sum()
                assert stats.chisquare(observed, expected).pvalue > 1e-4
                tested += 1
    assert tested >= 2
