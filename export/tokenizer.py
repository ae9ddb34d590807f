"""A checkpoint's tokenizer: the file goes into the artifact, chat template and special tokens into its manifest."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.config import ModelConfig
from export.fields import read_object
from runtime.errors import CheckpointError

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files say: `text` of tokenizer.json, and the strings that a chat template is rendered with."""

    text: str
    chat_template: str | None
    special: dict[str, str]  # bos_token and eos_token, where the checkpoint has them

    @classmethod
    def read(cls, directory: Path, config: ModelConfig) -> "TokenizerFiles":
        """Raises CheckpointError where a file is missing or broken, or a token lies outside the model's vocabulary."""
        text = _text(directory)
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
        path = directory / SETTINGS
        settings = read_object(path) if path.is_file() else {}
        special = _special(path, settings, tokenizer, config)
        return cls(_without_limits(text), _chat_template(directory, settings), special)


def _text(directory: Path) -> str:
    path = directory / FILE
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(
            f'{path} is missing: make it with python -c "from transformers import AutoTokenizer as T; '
            f"T.from_pretrained('{directory}').save_pretrained('{directory}')\" (needs pip install 'gorgon[export]')"
        ) from None


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
