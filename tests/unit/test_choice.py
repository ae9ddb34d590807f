"""Constraints at the nodes that verification visits: no tree changes what is said, and all of it keeps to them."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from runtime.engine import Engine
from runtime.errors import ParameterError
from runtime.params import EngineConfig, SamplingParams, StructuredOutputs
from runtime.sampling import draw, typical
from runtime.sequence import Sequence as Answered
from tests.fake import EOS, VOCAB, FakeSession, fake_cost, fake_manifest, plain, scores
from tests.random_params import json_tokenizer, random_params

RATE = 0.03
SPECULATION = (4, 16, "auto")


class KnowingSession(FakeSession):
    """Its heads know most answers in advance: trees are accepted far although a grammar overrules the model."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], rows: int = 4) -> None:
        super().__init__(fake_manifest(context=256, capacity=320), rows, RATE, luck=0.85)
        self._answers = answers

    def right(self, context: Sequence[int]) -> int:
        answer = self._answers.get(tuple(context[:4]), [])
        at = len(context) - 4
        return answer[at] if 0 <= at < len(answer) else super().right(context)


def engine_of(answers: dict[tuple[int, ...], list[int]] | None = None) -> Engine:
    config = EngineConfig(rows=4, chunk=8, queue=100_000, kv_memory=1 << 26)
    return Engine(KnowingSession(answers or {}), json_tokenizer(), config, fake_cost())


def run(
    engine: Engine,
    asked: Sequence[tuple[list[int], SamplingParams]],
    change: Callable[[SamplingParams], SamplingParams],
) -> list[Answered]:
    """Answers to all, in a batch in which others come and go; what a step gives adds up to the answer."""
    sequences = [engine.add(prompt, change(params)) for prompt, params in asked]
    logprobs: dict[int, list[Any]] = {s.id: [] for s in sequences}
    while engine.has_work:
        for output in engine.step():
            assert len(output.logprobs) == (len(output.tokens) if output.sequence.params.logprobs is not None else 0)
            logprobs[output.sequence.id] += output.logprobs
        engine.check_integrity()
    for s in sequences:
        if s.choice is not None:
            assert logprobs[s.id] == s.choice.logprobs[: len(logprobs[s.id])]
    return sequences


def speculating(speculation: int | str) -> Callable[[SamplingParams], SamplingParams]:
    return lambda params: replace(params, speculation=speculation)


def requests(seed: int, count: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of four tokens, no two alike, and what is asked; schemas that no text satisfies are left out."""
    rng, grammars = random.Random(seed), engine_of().grammars
    asked: dict[tuple[int, ...], SamplingParams] = {}
    while len(asked) < count:
        params = random_params(rng)
        try:
            if params.structured_outputs is not None:
                grammars.matcher(params.structured_outputs)
        except ParameterError:
            continue
        asked[tuple(rng.randrange(3, VOCAB) for _ in range(4))] = params
    return [(list(prompt), params) for prompt, params in asked.items()]


def what_came(sequence: Answered) -> tuple[Any, ...]:
    probabilities = sequence.choice.logprobs[: len(sequence.tokens)] if sequence.choice is not None else []
    return sequence.tokens, sequence.text, sequence.finish_reason, sequence.error, probabilities


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 30))])
def test_speculation_changes_nothing(seed: int) -> None:
    asked = requests(seed, 250)
    alone = run(engine_of(), asked, speculating("off"))
    assert Counter(s.finish_reason for s in alone)["stop"] > 50
    assert not [s.error for s in alone if s.error]
    for s in alone:
        keeps(s)
    answers = {tuple(s.prompt): s.tokens for s in alone}
    for speculation in SPECULATION:
        engine = engine_of(answers)
        together = run(engine, asked, speculating(speculation))
        for s, want in zip(together, alone, strict=True):
            assert what_came(s) == what_came(want), (s.params, speculation)
        least = {4: 1.4, 16: 1.8, "auto": 1.0}[speculation]  # auto may find that this busy machine gains nothing
        assert engine.stats()["tokens_per_step"] >= least, "hardly a tree was accepted"


def keeps(s: Answered) -> None:
    """What a request asked for holds of its answer."""
    params, outputs = s.params, s.params.structured_outputs
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else [EOS])}
    complete = s.choice is not None and s.choice.complete is not None
    if not complete:
        assert outputs is not None or not ends & set(s.tokens[: params.min_tokens])
        assert s.finish_reason == "length" or len(s.tokens) >= params.min_tokens
    assert len(s.tokens) <= params.max_tokens
    if outputs is None or s.finish_reason != "stop":
        return
    if params.stop or s.tokens[-1] in params.stop_token_ids:
        return  # the request itself may have cut it short
    assert valid(s.text, outputs), (s.text, outputs)


def valid(text: str, outputs: StructuredOutputs) -> bool:
    if outputs.choice is not None:
        return text in outputs.choice
    if outputs.regex is not None:
        return re.fullmatch(outputs.regex, text) is not None
    if outputs.grammar is not None:
        if "W" in outputs.grammar:
            return re.fullmatch("([a-z]{1,4}, )*[a-z]{1,4}", text) is not None
        while text[:1] + text[-1:] in ("[]", "ab"):
            text = text[1:-1]
        return re.fullmatch("[0-9]", text) is not None
    try:
        value = json.loads(text, parse_float=lambda number: max(-1e300, min(float(number), 1e300)))
    except ValueError:
        return False
    schema = {"type": "object"} if outputs.json is None else json.loads(outputs.json)
    return bool(jsonschema_rs.is_valid(schema, value))


def test_whitespace_has_an_end() -> None:
    """A model that would go on with it for ever gets on with the answer."""
    space, line = (json_tokenizer().token_to_id(c) for c in " \n")
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
    outputs = StructuredOutputs(json=json.dumps(schema))
    asked = SamplingParams(200, logit_bias={space: 100, line: 50}, structured_outputs=outputs)
    for i in range(20):
        [s] = engine_of().generate([[5, 6, 7, 3 + i]], asked)
        assert s.finish_reason == "stop" and jsonschema_rs.is_valid(schema, json.loads(s.text))


@pytest.mark.parametrize("length", range(1, 30))
def test_an_answer_cut_by_its_length_can_be_completed(length: int) -> None:
    """What came so far is the beginning of a longer answer to the same question."""
    schema = {"type": "array", "items": {"enum": ["the", 12, True]}, "minItems": 3, "maxItems": 6}
    outputs = StructuredOutputs(json=json.dumps(schema))
    options: dict[str, Any] = {"temperature": 1.0, "seed": 4, "structured_outputs": outputs, "speculation": 16}
    [whole] = engine_of().generate([[5, 6, 7, 8]], SamplingParams(max_tokens=200, **options))
    assert whole.finish_reason == "stop" and jsonschema_rs.is_valid(schema, json.loads(whole.text))
    [cut] = engine_of().generate([[5, 6, 7, 8]], SamplingParams(max_tokens=length, **options))
    assert cut.tokens == whole.tokens[:length]
    assert (cut.finish_reason == "stop") == (len(whole.tokens) <= length)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "asked",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -0.7, "presence_penalty": 1.0},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.4},
        {"logit_bias": {7: 100, 9: -100, 11: 2.5}},
        {"min_tokens": 25},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": {3: 9.0}, "frequency_penalty": 0.1},
    ],
)
def test_penalties_and_biases_are_what_they_say(asked: dict[str, Any], temperature: float) -> None:
    """Against their definition, token by token."""
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=3, speculation=16, **asked)
    differ = False
    for prompt in [[5, 6, 7, i] for i in range(3, 13)]:
        [sequence] = engine_of().generate([prompt], params)
        assert sequence.tokens == plain(prompt, 40, RATE, by_definition(prompt, params))
        [without] = engine_of().generate([prompt], SamplingParams(max_tokens=40, temperature=temperature, seed=3))
        differ |= without.tokens != sequence.tokens
    assert differ


def by_definition(prompt: list[int], params: SamplingParams) -> Callable[[np.ndarray, int], int]:
    given: list[int] = []

    def choose(logits: np.ndarray, t: int) -> int:
        row = logits.tolist()
        for token in range(VOCAB):
            value = np.float32(row[token]) + np.float32(params.logit_bias.get(token, 0))
            if token in prompt or token in given:
                penalty = np.float32(params.repetition_penalty)
                value = value / penalty if value > 0 else value * penalty
            value -= np.float32(params.frequency_penalty) * np.float32(given.count(token))
            value -= np.float32(params.presence_penalty) * np.float32(token in given)
            row[token] = value
        if t < params.min_tokens:
            row[EOS] = -np.inf
        given.append(draw(np.array(row, np.float32), SamplingParams(temperature=params.temperature), 3, 0, t))
        return given[-1]

    return choose


def test_log_probabilities_are_the_models_own() -> None:
    """Whatever the token was chosen by."""
    options: dict[str, Any] = {"temperature": 0.5, "logit_bias": {9: 5.0}, "presence_penalty": 1.0, "top_k": 10}
    for count in (0, 1, 5, 20):
        params = SamplingParams(max_tokens=20, seed=1, ignore_eos=True, logprobs=count, **options)
        [s] = engine_of().generate([[5, 6, 7, 8]], params)
        assert s.choice is not None and len(s.choice.logprobs) >= len(s.tokens) == 20
        for t, (token, entry) in enumerate(zip(s.tokens, s.choice.logprobs, strict=False)):
            logits = scores([*s.prompt, *s.tokens[:t]], RATE).astype(np.float64)
            want = logits - np.log(np.exp(logits).sum())
            assert entry.token == token and entry.logprob == pytest.approx(want[token], abs=1e-9)
            assert [i for i, _ in entry.top] == np.argsort(-want, kind="stable")[:count].tolist()
            assert [p for _, p in entry.top] == pytest.approx(want[[i for i, _ in entry.top]].tolist(), abs=1e-9)


def test_a_complete_output_ends_without_another_token() -> None:
    for outputs in (StructuredOutputs(choice=("the",)), StructuredOutputs(regex="th[e]")):
        for max_tokens in (3, 9):
            params = SamplingParams(max_tokens, structured_outputs=outputs, min_tokens=3, speculation=8)
            [s] = engine_of().generate([[5, 6, 7, 8]], params)
            assert (s.text, s.finish_reason) == ("the", "stop") and EOS not in s.tokens


def test_an_end_token_only_where_the_text_may_end() -> None:
    outputs = StructuredOutputs(regex="(ab){4}c*")
    params = SamplingParams(40, logit_bias={EOS: 100}, structured_outputs=outputs)
    [s] = engine_of().generate([[5, 6, 7, 8]], params)
    assert (s.text, s.tokens[-1], s.finish_reason) == ("ab" * 4, EOS, "stop")
    params = SamplingParams(40, logit_bias={EOS: 100}, structured_outputs=outputs, min_tokens=20)
    [s] = engine_of().generate([[5, 6, 7, 8]], params)
    assert len(s.tokens) == 21 and s.finish_reason == "stop" and re.fullmatch("(ab){4}c+", s.text)


def test_stop_strings_after_the_least_length_and_in_the_text() -> None:
    engine = engine_of()
    options: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "speculation": 8}
    [whole] = engine.generate([[5, 6, 7, 8]], SamplingParams(**options))
    pieces = [engine.tokenizer.decode([token]) for token in whole.tokens]
    early, late = pieces[1], "".join(pieces[30:32])
    assert late not in "".join(pieces[:29])
    [cut] = engine.generate([[5, 6, 7, 8]], SamplingParams(stop=(late,), **options))
    assert cut.text == whole.text[: whole.text.index(late)] and cut.finish_reason == "stop"
    [cut] = engine.generate([[5, 6, 7, 8]], SamplingParams(stop=(late,), include_stop_str_in_output=True, **options))
    assert cut.text == whole.text[: whole.text.index(late) + len(late)]
    [cut] = engine.generate([[5, 6, 7, 8]], SamplingParams(stop=(early,), min_tokens=2, **options))
    assert len(cut.tokens) > 2 and cut.text.startswith("".join(pieces[:2]))
    [cut] = engine.generate([[5, 6, 7, 8]], SamplingParams(stop=(late,), min_tokens=31, **options))
    assert len(cut.tokens) > 32, "part of it lies in the least length"


@pytest.mark.parametrize(
    ("probabilities", "drafted", "asked", "token"),
    [
        ([0.85, 0.1, 0.05], (1, 2), {}, 1),  # the least is 0.09: 0.3 e^-H would be 0.18
        ([0.85, 0.1, 0.05], (2, 1), {}, 1),  # the most probable, wherever it stands
        ([0.87, 0.08, 0.05], (1, 2), {}, None),
        ([0.05] * 20, (7,), {}, 7),  # the least is 0.3 e^-H = 0.015
        ([0.98 / 50] * 50 + [0.012, 0.008], (50,), {}, 50),  # here 0.0059
        ([0.98 / 50] * 50 + [0.015, 0.005], (51,), {}, None),
        ([0.85, 0.1, 0.05], (), {}, None),
        ([0.85, 0.1, 0.05], (1,), {"top_k": 1}, None),  # a token that sampling leaves out is never taken
        ([0.92, 0.05, 0.03], (1,), {}, None),
        ([0.92, 0.05, 0.03], (1,), {"temperature": 2.0}, 1),  # of the tempered distribution: 0.17
    ],
)
def test_typical_acceptance_by_its_definition(
    probabilities: list[float], drafted: tuple[int, ...], asked: dict[str, Any], token: int | None
) -> None:
    """The likeliest child with p > min(0.09, 0.3 e^-H)."""
    params = SamplingParams(**{"temperature": 1.0, **asked}, typical_acceptance=True)
    assert typical(np.log(probabilities), params, drafted) == token


def test_typical_acceptance_takes_what_is_drafted_and_probable() -> None:
    """Hot samples accept more drafts than exact draws do, but none that a bias forbids; greedy ones are the same."""
    prompts = [[5, 6, 7, i] for i in range(3, 20)]
    options: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "speculation": 16, "seed": 1}
    known = engine_of().generate(prompts, SamplingParams(**options))
    answers = {tuple(s.prompt): s.tokens for s in known}
    gained = {}
    for accepted in (False, True):
        engine = engine_of(answers)
        engine.generate(prompts, SamplingParams(temperature=1.5, typical_acceptance=accepted, **options))
        gained[accepted] = engine.stats()["tokens_per_step"]
        greedy = engine_of(answers).generate(prompts, SamplingParams(typical_acceptance=accepted, **options))
        assert [s.tokens for s in greedy] == [s.tokens for s in known]
    assert gained[True] > 1.2 * gained[False]
    often = Counter(token for s in known for token in s.tokens).most_common(1)[0][0]
    hot = SamplingParams(temperature=1.5, typical_acceptance=True, logit_bias={often: -100}, **options)
    assert not [s for s in engine_of(answers).generate(prompts, hot) if often in s.tokens]


def test_what_is_plain_takes_the_plain_path() -> None:
    """No state for sequences that ask for none of it."""
    engine = engine_of()
    for params in (SamplingParams(), SamplingParams(temperature=1.0, top_k=3, stop=("a",), stop_token_ids=(5,))):
        assert engine.add([5, 6], params).choice is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"structured_outputs": StructuredOutputs(json='{"type": "strange"}')}, "structured_outputs.json .*strange"),
        ({"structured_outputs": StructuredOutputs(json='{"not": {}}')}, "structured_outputs.json .*not"),
        ({"structured_outputs": StructuredOutputs(regex="(a")}, "(?s)structured_outputs.regex .*unclosed group"),
        ({"structured_outputs": StructuredOutputs(regex="[^\\s\\S]")}, "structured_outputs.regex .*no text is such"),
        ({"structured_outputs": StructuredOutputs(grammar="start: B")}, "structured_outputs.grammar .*unknown name"),
        ({"structured_outputs": StructuredOutputs(grammar='start: </s> "a"')}, "grammar .*no text is such"),
        ({"structured_outputs": StructuredOutputs(regex="a"), "ignore_eos": True}, "ignore_eos is true"),
        ({"logit_bias": {VOCAB: 1}}, "logit_bias has 97"),
        ({"min_tokens": 6}, "min_tokens is 6: it has to be at most max_tokens, 5"),
    ],
)
def test_what_cannot_be_followed_is_refused(options: dict[str, Any], words: str) -> None:
    engine = engine_of()
    with pytest.raises(ParameterError, match=words):
        engine.add([5], SamplingParams(max_tokens=5, **options))
    assert not engine.has_work


def test_a_model_without_an_end_token_takes_no_grammar() -> None:
    engine = Engine(FakeSession(fake_manifest(eos=())), json_tokenizer(), EngineConfig(), fake_cost())
    with pytest.raises(ParameterError, match="an end token"):
        engine.add([5], SamplingParams(structured_outputs=StructuredOutputs(regex="a")))
