"""Grammars that an answer's text has to follow: compiled once, then one matcher for each sequence.

llguidance does the work. It is given the bytes that `text.py` shows for each token, so what a grammar allows is what
the client reads. Special tokens have no text: they are allowed where a grammar names them, end tokens where the text
may end.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

from runtime.errors import ParameterError
from runtime.params import StructuredOutputs
from runtime.text import Pieces

# Between the parts of JSON: nothing, a space, or a new line and its indentation. Whitespace without end would be valid,
# and models run into it. A schema's own "x-guidance" may ask for another.
WHITESPACE: Any = {"whitespace_pattern": r"\x20|\n\x20{0,32}"}
KEPT = 64  # compiled grammars, the ones used last
LIMITS = LLParserLimits(verbose_errors=False)  # a message is for the client: what is wrong, without the parser's state


class Grammars:
    """One artifact's compiled grammars; may be used from any thread."""

    def __init__(self, tokenizer: Tokenizer, pieces: Pieces, vocab: int, eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._vocab = vocab
        self._eos = list(eos)
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None  # by the first grammar: a large vocabulary takes a second
        self._compiled: OrderedDict[StructuredOutputs, LLMatcher] = OrderedDict()

    def matcher(self, outputs: StructuredOutputs) -> "Matcher":
        """A matcher at the beginning of a text. Raises ParameterError."""
        return Matcher(self.compile(outputs).deep_copy(), self._vocab, self._eos)

    def compile(self, outputs: StructuredOutputs) -> LLMatcher:
        """The compiled grammar, which may take a second unless it is known. Raises ParameterError."""
        with self._lock:
            if (known := self._compiled.get(outputs)) is not None:
                self._compiled.move_to_end(outputs)
                return known
            if self._made is None:
                self._made = LLTokenizer(
                    _Vocabulary(self._tokenizer, self._pieces, self._vocab, self._eos), self._vocab, self._eos
                )
        try:
            source = _source(outputs)
        except ValueError as error:  # options in a schema
            raise ParameterError(f"structured_outputs.{outputs.kind} cannot be followed: {error}") from None
        compiled = LLMatcher(self._made, source, log_level=0, limits=LIMITS)  # lets go of the GIL
        if compiled.is_error():
            raise ParameterError(f"structured_outputs.{outputs.kind} cannot be followed: {_reason(compiled)}")
        try:
            Matcher(compiled, self._vocab, self._eos).allowed()
        except ParameterError:
            raise ParameterError(f"structured_outputs.{outputs.kind} cannot be followed: no text is such") from None
        with self._lock:
            self._compiled[outputs] = compiled
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return compiled


class Matcher:
    """Where one text stands in its grammar; it only goes forward."""

    def __init__(self, matcher: LLMatcher, vocab: int, eos: list[int]) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._eos = eos
        self._pushed = 0

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped() and self._matcher.is_accepting())

    def allowed(self) -> np.ndarray:
        """bool [vocab]: the tokens that may follow, end tokens where the text may end. Raises ParameterError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._vocab, bitorder="little").view(bool)
        if not self._matcher.is_accepting():
            mask[self._eos] = False  # a grammar may name a special token, and this one would end the text too early
            if not mask.any():
                raise self._ended("it asks for an end token within the text")
        return mask

    def valid(self, tokens: list[int]) -> int:
        """How many of `tokens`, one after the other, the text could go on with; none where it cannot go on at all."""
        return int(self._matcher.validate_tokens(tokens))

    def forced(self) -> list[int]:
        """The tokens of what the text has to go on with, mostly none; the model may spell it in others."""
        return list(self._matcher.compute_ff_tokens())

    def push(self, token: int) -> None:
        """Goes on with an allowed token. Raises ParameterError."""
        self._matcher.consume_token(token)
        self._check()
        self._pushed += 1

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self._ended(_reason(self._matcher))

    def _ended(self, reason: str) -> ParameterError:
        """A grammar that compiles may still lead nowhere, or to more than the limits allow: its author's to mend."""
        return ParameterError(
            f"structured_outputs cannot be followed after {self._pushed} tokens: {reason}. Ask for fewer tokens, or for"
            " a grammar that leaves fewer ways to read a text"
        )


class _Vocabulary(TokenizerWrapper):
    """What llguidance asks of a tokenizer: the bytes of each token, and the tokens of a text that a grammar forces."""

    def __init__(self, tokenizer: Tokenizer, pieces: Pieces, vocab: int, eos: list[int]) -> None:
        self.is_tokenizer_wrapper = True
        self.eos_token_id, self.bos_token_id = eos[0], None
        special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.special_token_ids = [i for i in special if i < vocab]
        self.tokens = [special[i].encode() if i in special else pieces[i] for i in range(vocab)]
        self._tokenizer = tokenizer
        self._pieces = pieces

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are those of `text`; Llama's would begin with a space if it stood alone."""
        for before in ("", "\n"):
            ids: list[int] = self._tokenizer.encode(before + text, add_special_tokens=False).ids
            rest = len(text.encode())
            for at in range(len(ids), -1, -1):
                if rest == 0 and b"".join(self._pieces[i] for i in ids[at:]) == text.encode():
                    return ids[at:]
                rest -= len(self._pieces[ids[at - 1]])
        return self._greedy(text.encode())

    @cached_property
    def _known(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {piece: i for i, piece in enumerate(self.tokens) if piece and i not in special}

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token at each place, as far as there are any: llguidance takes the beginning of a forced text."""
        known, ids, at = self._known, [], 0
        longest = max(map(len, known))
        while at < len(text):
            size = next((n for n in range(longest, 0, -1) if text[at : at + n] in known), 0)
            if not size:
                break
            ids.append(known[text[at : at + size]])
            at += size
        return ids


def _source(outputs: StructuredOutputs) -> str:
    """The grammar as llguidance reads it."""
    if outputs.json is not None:
        schema = json.loads(outputs.json)
        if isinstance(schema, bool):  # anything, and nothing: options need an object
            schema = {} if schema else {"enum": []}
        if not isinstance(schema.get("x-guidance", {}), dict):
            raise ValueError("x-guidance has to be an object of options")
        return str(LLMatcher.grammar_from_json_schema(schema, WHITESPACE))
    if outputs.json_object:
        return str(LLMatcher.grammar_from_json_schema({"type": "object"}, WHITESPACE))
    if outputs.regex is not None:
        return str(LLMatcher.grammar_from_regex(outputs.regex))
    if outputs.choice is not None:  # a string of llguidance's Lark is a string of JSON; one terminal takes thousands
        return str(LLMatcher.grammar_from_lark("start: TEXT\nTEXT: " + " | ".join(map(json.dumps, outputs.choice))))
    assert outputs.grammar is not None
    return str(LLMatcher.grammar_from_lark(outputs.grammar))


def _reason(matcher: LLMatcher) -> str:
    """What is wrong, without the state of the parser."""
    return str(matcher.get_error()).partition("\n<")[0].strip()
