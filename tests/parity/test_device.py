"""The padded form on the tests' provider against its float32 on the CPU: what a GPU machine checks (`make gpu-check`).

On the CPU provider this compares its float16 products with float32; int4's are compared with int4's own on the CPU.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.params import SamplingParams
from runtime.tree import lone
from tests import provider
from tests.parity.paths import ROWS, Model, random_tree
from tests.parity.promises import difference, first_fork, share_of
from tests.parity.questions import answer, engine_of, prompts

REFERENCE = {"padded-fp32": "padded-fp32", "padded-fp16": "padded-fp32", "padded-int4": "padded-int4"}
LENGTHS = (1, 2, 5, 17, 64, 40, 101, 300)
ANSWERS = 4


@pytest.fixture(
    scope="module", params=["padded-fp32", "padded-fp16", pytest.param("padded-int4", marks=pytest.mark.slow)]
)
def precision(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if provider.chosen == "cpu" and REFERENCE[chosen] == chosen:
        pytest.skip("the same artifact on the same provider")
    return chosen


@pytest.fixture(scope="module")
def reference(demo_artifact: Callable[[str], Path], precision: str) -> Model:
    return Model.load(demo_artifact(REFERENCE[precision]), on="cpu")


@pytest.fixture(scope="module")
def model(demo_artifact: Callable[[str], Path], precision: str) -> Model:
    return Model.load(demo_artifact(precision))


def test_logits_of_prompts_trees_and_what_was_committed(model: Model, reference: Model, precision: str) -> None:
    rng = np.random.default_rng(0)
    vocab = model.session.manifest.vocab
    texts = [rng.integers(3, vocab, n).tolist() for n in LENGTHS]
    trees = [
        random_tree(rng, rng.integers(3, vocab, 4).tolist(), n, vocab, False) for n in (2 * ROWS, *[9] * (ROWS - 1))
    ]
    steps = []
    for each in (model, reference):
        found = each.prefill(texts)
        found += each.run([(n, tree) for n, (tree, _) in zip(LENGTHS, trees, strict=False) if tree.tokens])
        for row, (n, (_, slots)) in enumerate(zip(LENGTHS, trees, strict=True)):
            each.session.commit(row, n, slots, row)
        found += each.run([(n + 4, lone(5)) for n in LENGTHS])
        steps.append(found)
    for got, want in zip(*steps, strict=True):
        assert difference(got, want) <= share_of(precision)


def test_a_shape_that_was_run_before_gives_what_it_gave(model: Model) -> None:
    """On CUDA the first run of a shape is captured, and later ones are that graph again."""
    rng = np.random.default_rng(1)
    texts = [rng.integers(3, model.session.manifest.vocab, 40).tolist() for _ in range(ROWS)]
    model.prefill(texts)
    first = model.run([(40, [5, 6, 7])] * ROWS)
    model.run([(40, [5] * 20)] * 3)
    for _ in range(2):
        again = model.run([(40, [5, 6, 7])] * ROWS)
        assert all(np.array_equal(a, b) for a, b in zip(again, first, strict=True))
    other = model.run([(40, [8, 9, 7])] * ROWS)
    assert not np.array_equal(other[0], first[0]), "the inputs of a captured graph are read anew"


@pytest.mark.parametrize("speculation", ["off", 16])
def test_greedy_answers_fork_only_where_the_model_is_undecided(
    demo_artifact: Callable[[str], Path], reference: Model, precision: str, speculation: int | str
) -> None:
    asked = prompts(ANSWERS, seed=11)
    params = [SamplingParams(32, speculation=speculation)] * ANSWERS
    want = answer(engine_of(demo_artifact(REFERENCE[precision]), 8, on="cpu"), asked, params)
    got = answer(engine_of(demo_artifact(precision), 8), asked, params)
    for prompt, mine, text in zip(asked, got, want, strict=True):
        if mine != text:
            at = first_fork(mine, text)
            logits = reference.plain(prompt, text[:at])[-1]
            assert logits.max() - logits[mine[at]] <= 2 * share_of(precision) * np.abs(logits).max(), f"forks at {at}"


def test_the_provider_is_the_one_asked_for(model: Model) -> None:
    names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
    assert model.session.provider == names[provider.chosen]
