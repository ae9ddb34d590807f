"""Which chat template an artifact gets, and by which rule: the one asked for, the checkpoint's own, or one built in.

A model that is asked in another format than it was trained with answers worse and nobody sees why. So a model that no
rule fits gets none: it answers raw prompts only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateSyntaxError
from tokenizers import Tokenizer

from runtime.errors import CheckpointError, ConfigurationError
from runtime.prompts import environment

FOLDER = Path(__file__).parent / "templates"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja")))
# What a checkpoint has to be called for a template of ours. The first vicuna, v0, had another one.
_CALLED = {"vicuna": re.compile(r"vicuna(?!.*v0)", re.I), "llama-2": re.compile(r"llama[-_ ]?2.*chat", re.I)}
_CHATML = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template's text, None for none, and the rule that chose it, for people to read."""

    text: str | None
    rule: str


def choose(asked: str | None, own: str | None, names: Sequence[str], tokenizer: Tokenizer, where: Path) -> ChatTemplate:
    """The template `asked` for (a name of ours, or a file), else the checkpoint's `own`, else by its `names` or tokens.

    Raises ConfigurationError for one that is not there, CheckpointError for one that does not compile.
    """
    if asked is not None:
        return _asked(asked)
    if own is not None:
        _compile(own, f"the chat template of {where}")
        return ChatTemplate(own, "the checkpoint's own")
    for name, pattern in _CALLED.items():
        if called := next((given for given in names if pattern.search(given)), None):
            return ChatTemplate(_built_in(name), f"{name}, since the checkpoint is called {called}")
    if all(tokenizer.token_to_id(token) is not None for token in _CHATML):
        return ChatTemplate(_built_in("chatml"), f"chatml, since the tokenizer has {' and '.join(_CHATML)}")
    return ChatTemplate(
        None,
        "none, and no known name or token tells which: the artifact answers raw prompts only; "
        f"--chat-template {'|'.join(NAMES)}|FILE gives it one",
    )


def end_tokens(template: str | None, tokenizer: Tokenizer, eos: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens that end an answer: with ChatML, the end of a turn too."""
    turn = tokenizer.token_to_id(_CHATML[1])
    return eos + (turn,) if template == _built_in("chatml") and turn is not None and turn not in eos else eos


def _asked(asked: str) -> ChatTemplate:
    if asked in NAMES:
        return ChatTemplate(_built_in(asked), f"{asked}, as asked for")
    try:
        text = Path(asked).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--chat-template {asked} is neither one of {', '.join(NAMES)} nor a readable file: {error}"
        ) from None
    _compile(text, asked)
    return ChatTemplate(text, f"{asked}, as asked for")


def _built_in(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text("utf-8")


def _compile(text: str, where: str) -> None:
    try:
        environment().from_string(text)
    except TemplateSyntaxError as error:
        raise CheckpointError(
            f"{where} does not compile, line {error.lineno}: {error}; --chat-template gives another"
        ) from None
