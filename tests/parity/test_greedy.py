"""Greedy answers to demo questions: transformers' own in fp32, plain decoding's in int8 and int4.

With stock operators, where a tree's accepted path has gaps, attention adds in another order and a logit may differ by
rounding. An answer of a quantized model may therefore fork from plain decoding's, but only where plain decoding was
undecided: where its two best logits are no further apart than twice the largest difference ever seen on this artifact,
the noise. With native operators there is no noise and no fork.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.params import SamplingParams
from tests.conftest import CHECKPOINT
from tests.parity.paths import Model, random_tree
from tests.parity.questions import MAX_TOKENS, answer, engine_of, prompts

SPECULATION = ("off", 4, 16, 63)
ROWS = (1, 3, 8)
CASES = [("stock", rows, speculation) for rows in ROWS for speculation in SPECULATION] + [
    pytest.param("native", rows, speculation, marks=() if (rows, speculation) == (8, 16) else pytest.mark.slow)
    for rows in ROWS
    for speculation in SPECULATION
]


@pytest.fixture(scope="module")
def transformers_answers() -> list[list[int]]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    answers = []
    for ids in prompts():
        text = model.generate(torch.tensor([ids]), max_new_tokens=MAX_TOKENS, do_sample=False)
        answers.append(text[0, len(ids) :].tolist())
    return answers


@pytest.mark.parametrize(("operators", "rows", "speculation"), CASES, indirect=["operators"])
def test_fp32_is_transformers_generate(
    demo_artifact: Callable[[str], Path],
    transformers_answers: list[list[int]],
    speculation: int | str,
    rows: int,
    operators: str,
) -> None:
    params = [SamplingParams(max_tokens=MAX_TOKENS, speculation=speculation)] * len(transformers_answers)
    got = answer(engine_of(demo_artifact("fp32"), rows, operators), prompts(), params, seed=rows)
    assert got == transformers_answers


def noise_of(model: Model, trees: int = 500) -> float:
    """The largest difference of a logit between a path inside a random tree and the same path run plainly."""
    rng = np.random.default_rng(0)
    vocab = model.session.manifest.vocab
    largest = 0.0
    for prompt in prompts(trees // 10, seed=1):
        path = rng.integers(3, vocab, 5).tolist()
        want = model.plain(prompt, path)[1:]
        for _ in range(10):
            model.prefill([prompt])
            tree, slots = random_tree(rng, path, int(rng.integers(6, 64)), vocab, False)
            [got] = model.run([(len(prompt), tree)])
            largest = max(largest, float(np.abs(got[slots] - want).max()))
    return largest


@pytest.mark.parametrize(
    ("operators", "precision"),
    [("stock", "int8"), ("stock", "int4"), pytest.param("native", "int8", marks=pytest.mark.slow), ("native", "int4")],
    indirect=["operators"],
)
def test_quantized_answers_fork_only_where_plain_is_undecided(
    demo_artifact: Callable[[str], Path], precision: str, operators: str, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = demo_artifact(precision)
    model = Model.load(artifact, operators=operators)
    noise = noise_of(model)
    asked = prompts()
    plain = answer(
        engine_of(artifact, 1, operators), asked, [SamplingParams(MAX_TOKENS, speculation="off")] * len(asked)
    )
    forks, answers = [], 0
    for rows in (1, 8):
        for speculation in SPECULATION[1:]:
            params = [SamplingParams(MAX_TOKENS, speculation=speculation)] * len(asked)
            got = answer(engine_of(artifact, rows, operators), asked, params, seed=rows)
            answers += len(got)
            for prompt, mine, want in zip(asked, got, plain, strict=True):
                if mine != want:
                    at = next(i for i, (a, b) in enumerate(zip(mine, want, strict=False)) if a != b)
                    second, first = np.sort(model.plain(prompt, want[:at])[-1])[-2:]
                    forks.append(float(first - second))
    with capsys.disabled():
        print(
            f"\n{precision}, {operators}: noise {noise:.2e}, {len(forks)} of {answers} answers fork,"
            f" at margins {sorted(forks)[-5:]}"
        )
    assert all(margin <= 2 * noise for margin in forks)
    assert len(forks) <= (0.01 * answers if operators == "stock" else 0)
    assert operators == "stock" or noise == 0
