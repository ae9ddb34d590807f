"""Text to evaluate on: a plain text file, or a .jsonl file with {"text": ...} and perhaps {"prompt": ...} a line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are computed together; the first `prompt` of them are read but not predicted."""

    ids: list[int]
    prompt: int

    @property
    def predicted(self) -> range:
        """The positions whose next token counts."""
        return range(max(self.prompt - 1, 0), len(self.ids) - 1)


def windows(path: Path, tokenizer: Tokenizer, size: int) -> list[Window]:
    """Every document in pieces of at most `size` tokens. A text behind a prompt gets no special tokens of its own."""
    found = []
    for prompt, text in _documents(path):
        before = tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else []
        ids = before + tokenizer.encode(text, add_special_tokens=not prompt).ids
        for start in range(0, len(ids), size):
            window = Window(ids[start : start + size], max(len(before) - start, 0))
            if len(window.predicted) > 0:
                found.append(window)
    if not found:
        raise ConfigurationError(f"{path} holds no text of two tokens or more")
    return found


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of prompt, or "", and text."""
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    if path.suffix != ".jsonl":
        yield "", content
        return
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{path}, line {number} is not JSON: {error}") from None
        prompt, text = (entry.get("prompt", ""), entry.get("text")) if isinstance(entry, dict) else ("", None)
        if not isinstance(prompt, str) or not isinstance(text, str):
            raise ConfigurationError(
                f'{path}, line {number}: expected {{"text": ...}}, with a "prompt" where there is one'
            )
        yield prompt, text
