"""From a request's texts to a prompt's token ids: the chat template, and the tokenizer.

Templates are rendered as Hugging Face's `apply_chat_template` does: jinja2, sandboxed and immutable, blocks trimmed,
with `raise_exception`, `strftime_now`, `tojson` and the special tokens by name.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from runtime.errors import ArtifactError, PromptError
from runtime.manifest import Manifest
from runtime.text import Pieces


class Prompts:
    """One artifact's chat template and tokenizer; may be used from any thread."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        """Raises ArtifactError for a chat template that does not compile."""
        self._name = manifest.name
        self._special = dict(manifest.special)
        self._tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        self._vocab = manifest.vocab
        try:
            text = manifest.chat_template
            self._template = None if text is None else environment().from_string(text)
            if self._template is not None:  # jinja2's own is a chain of mappings, copied name by name each time
                self._template.globals = dict(self._template.globals)
        except TemplateSyntaxError as error:
            raise ArtifactError(
                f"the chat template of {manifest.name} does not compile, line {error.lineno}: {error}"
            ) from None

    def raw(self, text: str) -> list[int]:
        """`text` as it is, with the special tokens that the tokenizer itself puts around a text."""
        return self._encode(text, special=True)

    def question(self, text: str) -> list[int]:
        """`text` as one user message; raises PromptError."""
        return self.chat([{"role": "user", "content": text}])

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """`messages` through the chat template, which writes its special tokens itself; raises PromptError."""
        return self._encode(self.render(messages), special=False)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        if self._template is None:
            raise PromptError(
                f"{self._name} has no chat template, so it takes no messages: send a prompt with raw: true, or export "
                "the model with --chat-template"
            )
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise PromptError(f"the chat template of {self._name} refuses these messages: {error}") from None

    def plain(self, text: str) -> list[int]:
        """`text` without any special token around it."""
        return self._encode(text, special=False)

    def text(self, tokens: Sequence[int]) -> str:
        """What `tokens` say, special ones by their names. Raises PromptError."""
        for token in tokens:
            if not 0 <= token < self._vocab:
                raise PromptError(f"tokens has {token}: the vocabulary is 0 to {self._vocab - 1}")
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def token(self, token: int) -> tuple[str, bytes | None]:
        """A token by itself: as text, and the bytes it adds to one; a special token has a name and no bytes."""
        if piece := self._pieces[token]:
            return piece.decode("utf-8", "replace"), piece
        return self._tokenizer.id_to_token(token) or "", None

    def _encode(self, text: str, special: bool) -> list[int]:
        # encode_batch_fast lets go of the GIL, encode does not: a long prompt must not hold up the engine.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        return ids


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training; here its body is just text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """In which every chat template is compiled and rendered."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)  # jinja2's own escapes HTML


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
