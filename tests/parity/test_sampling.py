"""Seeded sampling: the same text whatever speculates and shares the batch, drawn from exactly the distribution."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from runtime.params import SamplingParams
from runtime.sampling import distribution, uniform
from tests.parity.paths import Model
from tests.parity.promises import PADDED_IN_FULL, to_the_bit
from tests.parity.questions import answer, engine_of, prompts
from tests.parity.test_greedy import noise_of

COUNT = 40
USUAL: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.3, "top_k": 50, "top_p": 0.95},
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 2.5},
    {"temperature": 1.5, "top_k": 20},
    {"temperature": 2.0, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.05},
    {"temperature": 3.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
)
SAMPLES = 800
TESTED = 100  # tokens at each depth, at least
ASKED = (20, 18, 20, 28, 2, 13)  # for each setting a question whose answer is drafted well, and yet not certain


def distance(logits: np.ndarray, params: SamplingParams, position: int, token: int) -> float:
    """How far the drawn number lies from the interval in which `token` is drawn; infinite for a token cut off."""
    ids, probabilities = distribution(logits, params)
    [place] = np.flatnonzero(ids == token).tolist() or [None]
    if place is None:
        return float("inf")
    end, number = float(probabilities[: place + 1].sum()), uniform(params.seed or 0, 0, position)
    return max(end - float(probabilities[place]) - number, number - end, 0.0)


@pytest.mark.parametrize(("kind", "settings", "count"), [("usual", USUAL, 100), ("hot", SETTINGS, 150)])
@pytest.mark.parametrize(
    ("precision", "operators"),
    [
        *((precision, "stock") for precision in ("fp32", "int8", "int4")),
        *(pytest.param(precision, "native", marks=pytest.mark.slow) for precision in ("fp32", "int8", "int4")),
        *(pytest.param(name, "stock", marks=pytest.mark.slow) for name in ("padded-fp32", "padded-fp16")),
    ],
    indirect=["operators"],
)
def test_the_same_seed_gives_the_same_text(
    demo_artifact: Callable[[str], Path],
    precision: str,
    kind: str,
    settings: tuple[dict[str, Any], ...],
    count: int,
    operators: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A fork needs a drawn number within the noise's reach of where plain decoding draws the other token."""
    if precision.startswith("padded"):  # which is slow where there is no GPU
        count = 30
    artifact, asked = demo_artifact(precision), prompts(count, seed=2)
    texts = {}
    for rows, speculation in ((1, "off"), (1, 16), (8, "off"), (8, 4), (8, 16)):
        params = [
            SamplingParams(40, seed=i, speculation=speculation, **settings[i % len(settings)]) for i in range(count)
        ]
        texts[rows, speculation] = answer(engine_of(artifact, rows, operators), asked, params, seed=rows)
    plain, exact = texts.pop((1, "off")), to_the_bit(precision)
    if exact:
        assert texts.pop((8, "off")) == plain, "plain decoding is bit-equal in any batch"
    forks = [
        (i, *next((t, a) for t, (a, b) in enumerate(zip(mine, want, strict=False)) if a != b))
        for got in texts.values()
        for i, (mine, want) in enumerate(zip(got, plain, strict=True))
        if mine != want
    ]
    if forks:
        model = Model.load(artifact, operators=operators)
        noise = noise_of(model, 100)
        for i, at, token in forks:
            params = SamplingParams(seed=i, **settings[i % len(settings)])
            logits = model.plain(asked[i], plain[i][:at])[-1]
            reach = np.expm1(4 * noise / params.temperature)
            assert distance(logits, params, at, plain[i][at]) <= (1e-9 if exact else reach), "plain draws its token"
            assert distance(logits, params, at, token) <= reach, f"answer {i} forks at token {at}"
    with capsys.disabled():
        print(
            f"\n{precision}, {operators}, {kind} temperatures:"
            f" {len(forks)} of {count * len(texts)} sampled answers fork"
        )
    most = 0 if operators == "native" else 0.01 if exact else 0.2
    assert len(forks) <= most * count * len(texts)


@pytest.mark.parametrize(("setting", "asked"), list(zip(SETTINGS, ASKED, strict=True)))
@pytest.mark.parametrize("precision", ["fp32", *PADDED_IN_FULL])
def test_speculative_tokens_have_the_exact_distribution(
    demo_artifact: Callable[[str], Path], precision: str, setting: dict[str, Any], asked: int
) -> None:
    """Chi-squared of the tokens drawn at a tree's root and at its accepted nodes of depth 1 and 2.

    What came before decides the distribution of a token, and also the depth of the node where it is drawn.
    """
    artifact, prompt = demo_artifact(precision), prompts(COUNT, seed=3)[asked]
    exact = precision.endswith("fp32") and to_the_bit(precision)
    engine, model = engine_of(artifact, 8), Model.load(artifact)
    for seed in range(SAMPLES):
        engine.add(prompt, SamplingParams(4, seed=seed, speculation=16, ignore_eos=True, **setting))
    drawn: dict[int, dict[tuple[int, ...], list[int]]] = {0: {}, 1: {}, 2: {}}  # by depth, by what came before
    while engine.has_work:
        for output in engine.step():
            tokens = output.sequence.tokens
            before = len(tokens) - len(output.tokens)
            for depth, token in enumerate(output.tokens):
                drawn[depth].setdefault(tuple(tokens[: before + depth]), []).append(token)
    params = SamplingParams(**setting)
    for depth, groups in drawn.items():
        tested = 0
        for prefix, found in sorted(groups.items(), key=lambda group: len(group[1]), reverse=True)[:4]:
            ids, probability = distribution(model.plain(prompt, list(prefix))[-1], params)
            tested += fits(np.array(found), ids, probability, 0.0 if exact else 0.01)
        assert tested >= TESTED, f"only {tested} tokens drawn at depth {depth} were tested"


def fits(tokens: np.ndarray, ids: np.ndarray, probability: np.ndarray, others: float) -> int:
    """Asserts that `tokens` may have been drawn so; the number tested: 0 where all but one token are too rare.

    A share of `others` may be tokens that the distribution cuts off, where its logits are only near.
    """
    held = np.isin(tokens, ids)
    assert (~held).mean() <= others, "a token the distribution does not hold"
    tokens = tokens[held]
    expected = probability * len(tokens)
    often = expected >= 5
    observed = np.array([np.count_nonzero(tokens == i) for i in ids[often]])
    rest = expected[~often].sum()
    if rest >= 5:
        observed, expected = np.append(observed, len(tokens) - observed.sum()), np.append(expected[often], rest)
    else:
        expected = expected[often]
    if len(expected) < 2:
        return 0
    expected *= observed.sum() / expected.sum()
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    return len(tokens)
