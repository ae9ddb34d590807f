"""Grammars on tokenizers as they are: bytes that are no characters, spaces that decoding takes away, special tokens."""

import random
import threading
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from runtime import grammar
from runtime.engine import Engine
from runtime.errors import ParameterError
from runtime.grammar import Grammars, Matcher
from runtime.params import EngineConfig, SamplingParams, StructuredOutputs
from runtime.text import Pieces, TextStream
from tests.fake import fake_cost, fake_manifest
from tests.service.serving import ScriptSession
from tests.unit.test_text import TOKENIZERS

TEXTS = ['{"naïve": [1, 2.5]}', " leading space", "日本 😀!", "a fox\n\tand a dog", '"']


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def grammars_of(tokenizer: Tokenizer, extra: int = 3) -> Grammars:
    """With a vocabulary larger than the tokenizer's, as padded models have it."""
    vocab = tokenizer.get_vocab_size() + extra
    return Grammars(tokenizer, Pieces(tokenizer), vocab, [tokenizer.token_to_id("</s>")])


def walk(tokenizer: Tokenizer, matcher: Matcher, seed: int) -> str:
    """A random text of the grammar, as a client reads it."""
    rng, end = random.Random(seed), tokenizer.token_to_id("</s>")
    stream, text = TextStream(Pieces(tokenizer), bare=False), ""
    for _ in range(500):
        if matcher.complete:
            break
        allowed = np.flatnonzero(matcher.allowed()).tolist()
        assert max(allowed) < tokenizer.get_vocab_size(), "a token that has no text"
        token = rng.choice(allowed)
        if token == end:
            break
        matcher.push(token)
        text += stream.push(token)[0]
    return text + stream.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_a_choice_is_said_word_for_word(tokenizer: Tokenizer, text: str) -> None:
    """Also where llguidance forces the tokens of a text that has only one way to go on."""
    grammars = grammars_of(tokenizer)
    for seed in range(5):
        assert walk(tokenizer, grammars.matcher(StructuredOutputs(choice=(text,))), seed) == text
        two = (text, text + "?")
        assert walk(tokenizer, grammars.matcher(StructuredOutputs(choice=two)), seed) in two


def test_a_special_token_has_no_text(tokenizer: Tokenizer) -> None:
    """It is never allowed for its name, and where a grammar asks for it, it adds nothing."""
    grammars = grammars_of(tokenizer)
    name = StructuredOutputs(choice=("</s>",))
    assert walk(tokenizer, grammars.matcher(name), 0) == "</s>"
    matcher = grammars.matcher(StructuredOutputs(grammar='start: "a" <s> "b"'))
    assert walk(tokenizer, matcher, 0) == "ab"


def test_what_the_grammar_does_not_allow_is_an_error(tokenizer: Tokenizer) -> None:
    matcher = grammars_of(tokenizer).matcher(StructuredOutputs(regex="abc"))
    with pytest.raises(ParameterError, match="cannot be followed after 0 tokens"):
        matcher.push(tokenizer.token_to_id("</s>"))
        matcher.allowed()


def test_each_matcher_stands_for_itself(tokenizer: Tokenizer) -> None:
    grammars, outputs = grammars_of(tokenizer), StructuredOutputs(regex="[abc]{5}")
    first, second = grammars.matcher(outputs), grammars.matcher(outputs)
    before = second.allowed()
    first.push(int(np.flatnonzero(first.allowed())[0]))
    assert np.array_equal(second.allowed(), before)


def test_a_grammar_is_compiled_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    make = grammar.LLMatcher

    class Counting:
        grammar_from_regex = staticmethod(make.grammar_from_regex)

        def __new__(cls, tokenizer: Any, source: str, **options: Any) -> Any:
            compiled.append(source)
            return make(tokenizer, source, **options)

    monkeypatch.setattr(grammar, "LLMatcher", Counting)
    monkeypatch.setattr(grammar, "KEPT", 2)
    grammars = grammars_of(tokenizer)
    for regex in ("a", "b", "a", "c", "a", "b"):  # the last one was forgotten
        grammars.matcher(StructuredOutputs(regex=regex))
    assert len(compiled) == 4


def test_threads_may_compile_together(tokenizer: Tokenizer) -> None:
    grammars = grammars_of(tokenizer)
    texts: dict[int, str] = {}

    def work(i: int) -> None:
        texts[i] = walk(tokenizer, grammars.matcher(StructuredOutputs(choice=(f"text {i % 4}",))), i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: f"text {i % 4}" for i in range(16)}


@pytest.mark.parametrize(
    "outputs",
    [
        {"regex": "(a"}, {"regex": "(?=a)b"}, {"json": '{"type": "odd"}'}, {"json": '{"$ref": "#/nothing"}'},
        {"json": "false"}, {"grammar": ""}, {"grammar": "start: nothing"}, {"grammar": 'start: <no_such_token> "a"'},
        {"json": '{"x-guidance": 5}'}, {"json": '{"x-guidance": {"whitespace_pattern": "("}, "type": "object"}'},
        {"json": '{"allOf": [{"type": "object"}, {"type": "string"}]}'},
    ],
)  # fmt: skip
def test_what_does_not_compile_says_why(outputs: dict[str, str]) -> None:
    grammars = grammars_of(TOKENIZERS["llama"]())
    [name] = outputs
    with pytest.raises(ParameterError, match=rf"^structured_outputs.{name} cannot be followed: \w+") as error:
        grammars.compile(StructuredOutputs(**outputs))
    assert "<" not in str(error.value).replace("<no_such_token>", ""), "the parser's state is not for clients"


def test_an_answer_keeps_the_space_that_its_grammar_begins_with(tokenizer: Tokenizer) -> None:
    """Llama's decoder takes a text's first space away: here it belongs to the text."""
    manifest = fake_manifest(vocab=tokenizer.get_vocab_size(), eos=(tokenizer.token_to_id("</s>"),))
    engine = Engine(ScriptSession(manifest, [5]), tokenizer, EngineConfig(rows=1), fake_cost())
    asked = SamplingParams(structured_outputs=StructuredOutputs(choice=(" leading",)))
    [s] = engine.generate([[5, 6]], asked)
    assert (s.text, s.finish_reason) == (" leading", "stop")
