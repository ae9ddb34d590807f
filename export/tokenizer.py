"""A checkpoint's tokenizer: the file goes into the artifact, chat template and special tokens into its manifest.

A `tokenizer.model` of sentencepiece without a tokenizer.json beside it is converted.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from export.config import ModelConfig
from export.fields import read_object
from export.pieces import Usage, check_against_sentencepiece, read_model, to_tokenizer
from runtime.errors import CheckpointError

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
SENTENCEPIECE = "tokenizer.model"
ADDED = "added_tokens.json"
SPECIAL = "special_tokens_map.json"


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files say: `text` of tokenizer.json, and the strings that a chat template is rendered with."""

    text: str
    chat_template: str | None
    special: dict[str, str]  # bos_token and eos_token, where the checkpoint has them

    @classmethod
    def read(cls, directory: Path, config: ModelConfig) -> "TokenizerFiles":
        """Raises CheckpointError where a file is missing or broken, or a token lies outside the model's vocabulary."""
        path = directory / SETTINGS
        settings = read_object(path) if path.is_file() else {}
        text = converted(directory, settings) if needs_sentencepiece(directory) else _text(directory)
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the package raises bare Exception
            raise CheckpointError(f"{directory / FILE} does not load: {error}") from None
        last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if last >= config.vocab:
            raise CheckpointError(
                f"{directory / FILE}: {tokenizer.id_to_token(last)!r} has id {last}, the model's vocabulary ends at "
                f"{config.vocab - 1}: expected the tokenizer that the model was trained with"
            )
        special = _special(path, settings, tokenizer, config)
        return cls(_without_limits(text), _chat_template(directory, settings), special)


def shortfall(tokenizer: Tokenizer, config: ModelConfig) -> str | None:
    """What to tell people of a tokenizer that is smaller than the model: padded up, or another model's."""
    known = tokenizer.get_vocab_size(with_added_tokens=True)
    if known == config.vocab:
        return None
    return f"the tokenizer has {known} tokens, the model {config.vocab}: right only if the others were never trained"


def needs_sentencepiece(directory: Path) -> bool:
    """Whether the directory's tokenizer has to be converted."""
    return (directory / SENTENCEPIECE).is_file() and not (directory / FILE).is_file()


def converted(directory: Path, settings: dict[str, Any]) -> str:
    """The tokenizer.json of a tokenizer.model, which gives sentencepiece's own tokens; raises CheckpointError."""
    pieces = read_model(directory / SENTENCEPIECE)
    usage = _usage(directory, settings)
    if settings.get("add_prefix_space") is False:  # which the model itself does not know
        return to_tokenizer(replace(pieces, prefix=False), usage).to_str(pretty=True)
    tokenizer = to_tokenizer(pieces, usage)
    check_against_sentencepiece(tokenizer, pieces)
    return tokenizer.to_str(pretty=True)


def _usage(directory: Path, settings: dict[str, Any]) -> Usage:
    """What tokenizer_config.json, added_tokens.json and special_tokens_map.json say of a tokenizer.model."""
    path = directory / SPECIAL
    named = read_object(path) if path.is_file() else {}
    named |= {name: value for name, value in settings.items() if name.endswith(("_token", "_special_tokens"))}
    ends: list[str | None] = []
    for name, default, usual in (("bos", True, "<s>"), ("eos", False, "</s>")):
        wanted = settings.get(f"add_{name}_token", default)
        if not isinstance(wanted, bool):
            raise CheckpointError(f"{directory / SETTINGS}: add_{name}_token is {wanted!r}, expected true or false")
        ends.append((_content(named.get(f"{name}_token")) or usual) if wanted else None)
    legacy = settings.get("legacy")  # absent from files that are older than the choice
    if legacy not in (None, True, False) or settings.get("sp_model_kwargs"):
        raise CheckpointError(f"{directory / SETTINGS}: expected legacy true or false, and no sp_model_kwargs")
    return Usage(ends[0], ends[1], legacy is not False, _added(directory, settings, named))


def _added(directory: Path, settings: dict[str, Any], named: dict[str, Any]) -> dict[int, AddedToken]:
    """Tokens beside those of the vocabulary, by id: as tokenizer_config.json describes them, else added_tokens.json."""
    special = {_content(value) for value in named.values() if not isinstance(value, list)}
    special |= {_content(value) for value in named.get("additional_special_tokens") or []}
    path = directory / ADDED
    found: dict[int, AddedToken] = {}
    try:
        for content, i in (read_object(path) if path.is_file() else {}).items():
            found[int(i)] = AddedToken(content, normalized=False, special=content in special)
        path = directory / SETTINGS
        for i, entry in (settings.get("added_tokens_decoder") or {}).items():
            flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word", "special")}
            found[int(i)] = AddedToken(entry["content"], normalized=False, **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected added tokens with their ids and contents, found {error!r}") from None
    return found


def _content(value: Any) -> str | None:
    """A token as transformers writes it: a string, or (transformers 4) an object."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _text(directory: Path) -> str:
    path = directory / FILE
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, and {SENTENCEPIECE} too: expected one of them") from None


def _without_limits(text: str) -> str:
    """tokenizer.json as it is, unless it cuts or pads what it encodes: a prompt must not change without notice."""
    raw = json.loads(text)
    if raw.get("truncation") is None and raw.get("padding") is None:
        return text
    return json.dumps(raw | {"truncation": None, "padding": None}, ensure_ascii=False, indent=2)


def _special(path: Path, settings: dict[str, Any], tokenizer: Tokenizer, config: ModelConfig) -> dict[str, str]:
    """From tokenizer_config.json, else by the ids of config.json."""
    found = {}
    for name, token_id in (("bos_token", config.bos), ("eos_token", config.eos[0] if config.eos else None)):
        value = settings.get(name)
        token = value.get("content") if isinstance(value, dict) else value  # transformers 4 writes objects
        if token is None and token_id is not None:
            token = tokenizer.id_to_token(token_id)
        if token is None:
            continue
        if not isinstance(token, str) or tokenizer.token_to_id(token) is None:
            raise CheckpointError(f"{path}: {name} is {token!r}, expected a token of {FILE}")
        found[name] = token
    return found


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's: a string, or a list with one named default."""
    if (directory / TEMPLATE).is_file():
        return (directory / TEMPLATE).read_text("utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{directory / SETTINGS}: chat_template is a {type(template).__name__}, expected a string"
        )
    return template
