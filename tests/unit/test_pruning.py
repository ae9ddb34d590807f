"""What a grammar refuses is not drafted: by its own word in place of it, and in whole engine runs."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from runtime import speculation
from runtime.acceptance import Acceptance
from runtime.engine import Engine
from runtime.errors import ParameterError
from runtime.forest import ABSENT, NEVER, Candidates
from runtime.grammar import Matcher
from runtime.params import EngineConfig, SamplingParams, StructuredOutputs
from runtime.pruning import prune, refused_first
from runtime.session import Draft
from runtime.tree import PUBLISHED_ACCURACY, Tree, Universe
from tests.fake import FakeSession, fake_cost, fake_manifest
from tests.random_params import json_tokenizer, random_outputs

TOP_K = 10
UNIVERSE = Universe(PUBLISHED_ACCURACY, TOP_K)


def random_draft(rng: np.random.Generator, rows: int) -> Draft:
    tokens = np.argsort(rng.random((rows, 5, 50)), axis=-1)[..., :TOP_K]
    logprobs = np.sort(np.log(rng.dirichlet([0.3] * TOP_K, (rows, 5))), axis=-1)[..., ::-1].astype(np.float32)
    return Draft(tokens, np.ascontiguousarray(logprobs))


def bigrams(rng: np.random.Generator, share: float) -> Callable[[list[int]], int]:
    """A language in which that share of all pairs of neighbours is allowed; a text begins after token 0."""
    allowed = rng.random((51, 51)) < share

    def valid(tokens: list[int]) -> int:
        for n, pair in enumerate(zip([50, *tokens], tokens, strict=False)):
            if not allowed[pair]:
                return n
        return len(tokens)

    return valid


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("most", [2, 16, 64])
def test_the_best_of_what_is_allowed_is_drafted(share: float, most: int) -> None:
    """Exactly the tree that comes of all refused paths having been left out in the first place."""
    rng = np.random.default_rng(most)
    for _ in range(20):
        draft, valid = random_draft(rng, 2), bigrams(rng, share)
        candidates = Candidates(UNIVERSE, Acceptance(5))
        candidates.begin([7, 8], [0, 1], draft, None)
        prune(candidates, 0, UNIVERSE, draft.tokens[0], most, NEVER, valid)
        got = candidates.build(candidates.best([most, most], NEVER)).trees

        every = Candidates(UNIVERSE, Acceptance(5))
        every.begin([7, 8], [0, 1], draft, None)
        for slot, path in enumerate(UNIVERSE.paths):
            tokens = [int(draft.tokens[0, head, rank]) for head, rank in enumerate(path)]
            if valid(tokens) < len(tokens):
                every.refuse(0, slot)
        want = every.build(every.best([most, most], NEVER)).trees
        assert [tree.tokens for tree in got] == [tree.tokens for tree in want]
        assert [tree.parents for tree in got] == [tree.parents for tree in want]
        assert len(got[1].tokens) == most, "the other row has no grammar"
        assert len(got[0].tokens) == (1 if share == 0 else most if share == 1 else len(got[0].tokens))


def test_no_more_paths_are_asked_about_than_are_wanted() -> None:
    rng, asked = np.random.default_rng(0), 0

    def counted(tokens: list[int]) -> int:
        nonlocal asked
        asked += 1
        return len(tokens)

    candidates = Candidates(UNIVERSE, Acceptance(5))
    draft = random_draft(rng, 1)
    candidates.begin([7], [0], draft, None)
    prune(candidates, 0, UNIVERSE, draft.tokens[0], 16, NEVER, counted)
    assert 0 < asked < 16


def test_what_is_left_becomes_likelier() -> None:
    """The first head's chances are of what may follow, and other rows' stay as they are."""
    draft = random_draft(np.random.default_rng(3), 2)
    known = []
    for refused in (None, np.array([[rank == 0 for rank in range(TOP_K)], [False] * TOP_K])):
        candidates = Candidates(UNIVERSE, Acceptance(5))
        candidates.begin([7, 8], [0, 1], draft, None, refused)
        known.append(candidates._chance[:, :TOP_K].copy())
    before, after = known
    assert after[0, 0] == np.float32(ABSENT) and np.array_equal(before[1], after[1])
    left = 1 - np.exp(before[0, 0])
    assert np.exp(after[0, 1:]) == pytest.approx(np.minimum(np.exp(before[0, 1:]) / left, 0.999), rel=1e-3)


def test_first_tokens() -> None:
    assert refused_first(np.array([3, 4, 5]), lambda tokens: int(tokens == [4])) == [True, False, True]


class Watched:
    """Sees every tree that an engine drafts, and asks the sequence's own grammar about each of its paths."""

    def __init__(self, engine: Engine) -> None:
        self.refused = self.nodes = self.trees = 0
        self._draft = engine._speculator.draft
        engine._speculator.draft = self.draft  # type: ignore[method-assign]

    def draft(self, plan: Any) -> list[Tree | None]:
        trees = self._draft(plan)
        for s, tree in zip(plan.sequences, trees, strict=True):
            if tree is None or s.choice is None or s.choice.matcher is None:
                continue
            self.trees += 1
            for node in range(1, len(tree.tokens)):
                path = [tree.tokens[i] for i in np.flatnonzero(tree.ancestors[node])[1:]]
                self.nodes += 1
                self.refused += s.choice.matcher.valid(path) < len(path)
        return trees


def engine_of(luck: float = 0.85, kind: type[FakeSession] = FakeSession) -> Engine:
    session = kind(fake_manifest(context=256, capacity=320), 4, 0.03, luck=luck)
    config = EngineConfig(rows=4, chunk=8, queue=100_000, kv_memory=1 << 26)
    return Engine(session, json_tokenizer(), config, fake_cost())


@contextmanager
def blindly() -> Iterator[None]:
    """Candidates as the heads have them."""
    nothing: Callable[..., None] = lambda *arguments: None  # noqa: E731
    with patch.object(speculation, "prune", nothing), patch.object(speculation, "_refused", nothing):
        yield


@pytest.mark.parametrize("asked", [4, 16, 64, "auto"])
def test_no_tree_holds_what_its_grammar_refuses(asked: int | str) -> None:
    rng, engine = random.Random(1), engine_of()
    watched = Watched(engine)
    for i in range(120):
        outputs = random_outputs(rng) if i % 4 else None
        options: dict[str, Any] = {"temperature": rng.choice([0.0, 1.0]), "seed": i, "structured_outputs": outputs}
        try:
            engine.add([5, 6, 7, 3 + i % 90], SamplingParams(rng.choice([5, 40]), speculation=asked, **options))
        except ParameterError:
            continue
    while engine.has_work:
        engine.step()
    engine.check_integrity()
    assert watched.refused == 0 and watched.trees > 200 and watched.nodes > 100
    with blindly():  # and this test can fail
        blind = engine_of()
        watched = Watched(blind)
        options = {"structured_outputs": StructuredOutputs(json_object=True), "speculation": 16}
        blind.generate([[5, 6, 7, i] for i in range(3, 13)], SamplingParams(40, **options))
    assert watched.refused > 0


def test_text_that_a_grammar_forces_is_drafted() -> None:
    """No head knows it, and no prompt has it: `thethethethe` takes four tokens after the first."""
    outputs = StructuredOutputs(regex="a(the){12}")
    params = SamplingParams(60, speculation=16, structured_outputs=outputs)
    forced = engine_of(luck=0.0).generate([[5, 6, 7, 8]], params)[0]
    assert forced.text == "a" + "the" * 12
    with patch.object(Matcher, "forced", lambda self: []):
        plain = engine_of(luck=0.0).generate([[5, 6, 7, 8]], params)[0]
    assert plain.tokens == forced.tokens and forced.steps < plain.steps


class Knowing(FakeSession):
    """Its heads have the right token among those they propose, seldom first."""

    answers: dict[tuple[int, ...], list[int]]

    def right(self, context: Sequence[int]) -> int:
        answer, at = self.answers.get(tuple(context[:4]), []), len(context) - 4
        return answer[at] if 0 <= at < len(answer) else super().right(context)


def test_a_pruned_tree_accepts_more() -> None:
    """Its few nodes are those that can be right."""
    schema = {"type": "array", "items": {"enum": ["the", 12, True, "ab"]}, "minItems": 20, "maxItems": 40}
    outputs = StructuredOutputs(json=json.dumps(schema))
    params = SamplingParams(80, structured_outputs=outputs, speculation=4, temperature=1.0, seed=1)
    prompts = [[5, 6, 7, i] for i in range(3, 11)]
    known = {tuple(s.prompt): s.tokens for s in engine_of().generate(prompts, params)}
    steps = []
    with patch.object(Matcher, "forced", lambda self: []):
        for seen in (nullcontext, blindly):
            engine = engine_of(luck=0.2, kind=Knowing)
            engine.session.answers = known  # type: ignore[attr-defined]
            with seen():
                steps.append(sum(s.steps for s in engine.generate(prompts, params)))
    assert steps[0] < 0.8 * steps[1]
