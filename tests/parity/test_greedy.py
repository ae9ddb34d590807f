"""Greedy answers to demo questions: transformers' own in fp32, plain decoding's in every precision.

With stock operators, where a tree's accepted path has gaps, attention adds in another order and a logit may differ by
rounding. An answer of a quantized model may therefore fork from plain decoding's, but only where plain decoding was
undecided: where the other token's logit is no further below the best than twice the largest difference ever seen on
this artifact, the noise. With native operators there is no noise and no fork.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.params import SamplingParams
from tests.conftest import CHECKPOINT
from tests.parity import promises
from tests.parity.paths import ROWS as CACHE_ROWS
from tests.parity.paths import Model, random_tree
from tests.parity.questions import COUNT, MAX_TOKENS, answer, engine_of, prompts

SPECULATION = ("off", 4, 16, 63)
ROWS = (1, 3, 8)
CASES = [("fp32", "stock", rows, speculation) for rows in ROWS for speculation in SPECULATION] + [
    pytest.param(
        precision, operators, rows, speculation,
        marks=() if (rows, speculation) == (8, 16) and precision != "padded-fp16" else pytest.mark.slow,
    )
    for precision, operators in (("fp32", "native"), ("padded-fp32", "stock"), ("padded-fp16", "stock"))
    for rows in ROWS
    for speculation in SPECULATION
]  # fmt: skip
NEAR = ("padded-fp32", "padded-fp16", "padded-int4")
LOUDEST = 0.3  # a noise above it is an error
Logits = Callable[[list[list[int]]], list[np.ndarray]]


@pytest.fixture(scope="module")
def transformers_logits() -> Logits:
    """[tokens, vocab] of each text, several at a time: what pads a text comes after it, where it does not look."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()

    def logits(texts: list[list[int]]) -> list[np.ndarray]:
        longest = max(map(len, texts))
        padded = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        with torch.no_grad():
            found = model(padded).logits.numpy()
        return [row[: len(text)] for row, text in zip(found, texts, strict=True)]

    return logits


@pytest.fixture(scope="module")
def transformers_answers(demo_artifact: Callable[[str], Path], transformers_logits: Logits) -> list[list[int]]:
    """Each of whose tokens is the one that transformers finds most probable after those before it, to their end.

    They are shown to be so, all tokens of an answer at once, and not generated one by one, which takes much longer.
    """
    asked = prompts()
    engine = engine_of(demo_artifact("fp32"), 8, "stock")
    answers = answer(engine, asked, [SamplingParams(MAX_TOKENS, speculation="off")] * len(asked))
    ends = set(engine.manifest.eos)
    for begin in range(0, len(asked), 20):
        group = list(zip(asked, answers, strict=True))[begin : begin + 20]
        found = transformers_logits([prompt + said for prompt, said in group])
        for (prompt, said), logits in zip(group, found, strict=True):
            assert said == logits[len(prompt) - 1 : -1].argmax(axis=1).tolist()
            assert len(said) == MAX_TOKENS or said[-1] in ends
            assert not ends & set(said[:-1])
    return answers


@pytest.mark.parametrize(("precision", "operators", "rows", "speculation"), CASES, indirect=["operators"])
def test_answers_are_those_of_transformers(
    demo_artifact: Callable[[str], Path],
    transformers_answers: list[list[int]],
    transformers_logits: Logits,
    precision: str,
    operators: str,
    speculation: int | str,
    rows: int,
) -> None:
    """In fp16, and on a GPU, they fork where transformers itself is undecided within the tolerance."""
    asked = prompts()
    params = [SamplingParams(max_tokens=MAX_TOKENS, speculation=speculation)] * len(asked)
    got = answer(engine_of(demo_artifact(precision), rows, operators), asked, params, seed=rows)
    if precision.endswith("fp32") and promises.to_the_bit(precision):
        assert got == transformers_answers
        return
    for prompt, mine, want in zip(asked, got, transformers_answers, strict=True):
        if mine != want:
            at = promises.first_fork(mine, want)
            [logits] = transformers_logits([prompt + want[:at]])
            best = np.abs(logits[-1]).max()
            below = logits[-1].max() - logits[-1][mine[at]]
            assert below <= 2 * promises.share_of(precision) * best, f"forks at token {at}"


def noise_of(model: Model, trees: int = 500) -> float:
    """The largest difference of a logit between a path in a random tree, among others, and the same path run alone."""
    rng = np.random.default_rng(0)
    vocab = model.session.manifest.vocab
    largest = 0.0
    asked = prompts(trees // 10, seed=1)
    for begin in range(0, len(asked), CACHE_ROWS):
        group = asked[begin : begin + CACHE_ROWS]
        paths = [rng.integers(3, vocab, 5).tolist() for _ in group]
        want = [model.plain(prompt, path)[1:] for prompt, path in zip(group, paths, strict=True)]
        model.prefill(group)
        for _ in range(10):
            made = [random_tree(rng, path, int(rng.integers(6, 64)), vocab, False) for path in paths]
            works = [(len(prompt), tree) for prompt, (tree, _) in zip(group, made, strict=True)]
            for got, (_, slots), right in zip(model.run(works), made, want, strict=True):
                largest = max(largest, float(np.abs(got[slots] - right).max()))
    assert largest <= LOUDEST
    return largest


@pytest.mark.parametrize(
    ("operators", "precision"),
    [
        ("stock", "int8"), ("stock", "int4"), pytest.param("native", "int8", marks=pytest.mark.slow),
        ("native", "int4"),
        *(pytest.param("stock", name, marks=pytest.mark.slow) for name in NEAR),
    ],
    indirect=["operators"],
)  # fmt: skip
def test_answers_fork_only_where_plain_is_undecided(
    demo_artifact: Callable[[str], Path], precision: str, operators: str, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = demo_artifact(precision)
    model = Model.load(artifact, operators=operators)
    padded = precision.startswith("padded")  # which is slow where there is no GPU
    noise = noise_of(model, 160 if padded else 500)
    asked = prompts(40 if padded else COUNT)
    plain = answer(
        engine_of(artifact, 1, operators), asked, [SamplingParams(MAX_TOKENS, speculation="off")] * len(asked)
    )
    forks, answers = [], 0
    for rows, speculation in ((1, 16), (8, 4), (8, 16), (8, 63)):
        params = [SamplingParams(MAX_TOKENS, speculation=speculation)] * len(asked)
        got = answer(engine_of(artifact, rows, operators), asked, params, seed=rows)
        answers += len(got)
        for prompt, mine, want in zip(asked, got, plain, strict=True):
            if mine != want:
                at = promises.first_fork(mine, want)
                logits = model.plain(prompt, want[:at])[-1]
                forks.append(float(logits.max() - logits[mine[at]]))
    with capsys.disabled():
        print(
            f"\n{precision}, {operators}: noise {noise:.2e}, {len(forks)} of {answers} answers fork,"
            f" at margins {sorted(forks)[-5:]}"
        )
    assert all(margin <= 2 * noise for margin in forks)
    assert len(forks) <= (0.01 * answers if operators == "stock" else 0)
    assert operators == "stock" or noise == 0
