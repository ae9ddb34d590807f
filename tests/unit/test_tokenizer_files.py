"""A checkpoint's tokenizer files: what reaches the artifact, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from export.config import ModelConfig
from export.tokenizer import TokenizerFiles, shortfall
from runtime.errors import CheckpointError
from tests.checkpoints import CHAT_TEMPLATE, tiny_llama


def read(directory: Path) -> TokenizerFiles:
    return TokenizerFiles.read(directory, ModelConfig.read(directory))


def settings(directory: Path, **values: Any) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps(values))
    return directory


def test_the_file_is_kept_byte_for_byte(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    found = read(tmp_path)
    assert found.text.encode() == (tmp_path / "tokenizer.json").read_bytes()
    assert found.chat_template == CHAT_TEMPLATE
    assert found.special == {"bos_token": "<s>", "eos_token": "</s>"}


def test_special_tokens_follow_from_the_config_where_no_file_names_them(tmp_path: Path) -> None:
    (tiny_llama(tmp_path) / "tokenizer_config.json").unlink()
    assert read(tmp_path).special == {"bos_token": "<s>", "eos_token": "</s>"}
    assert read(tmp_path).chat_template is None
    assert read(settings(tiny_llama(tmp_path, bos_token_id=None), eos_token="</s>")).special == {"eos_token": "</s>"}


def test_a_tokenizer_that_is_smaller_than_the_model_is_said(tmp_path: Path) -> None:
    config = ModelConfig.read(tiny_llama(tmp_path))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (shortfall(tokenizer, config) or "").startswith("the tokenizer has 259 tokens, the model 300:")
    assert shortfall(tokenizer, replace(config, vocab=259)) is None


def test_chat_templates(tmp_path: Path) -> None:
    settings(
        tiny_llama(tmp_path),
        chat_template=[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}],
    )
    assert read(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("j")
    assert read(tmp_path).chat_template == "j"


def test_a_tokenizer_that_cuts_prompts_is_told_not_to(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_llama(tmp_path) / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prompt = "a long prompt"
    assert Tokenizer.from_str(read(tmp_path).text).encode(prompt).ids == tokenizer.encode(prompt).ids


def add_token(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([f"new-{i}" for i in range(42)])
    tokenizer.save(str(directory / "tokenizer.json"))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer.json": (
        lambda d: (d / "tokenizer.json").unlink(),
        "tokenizer.json is missing, and tokenizer.model too",
    ),
    "no JSON": (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer.json does not load"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer.json does not load"),
    "no text": (lambda d: (d / "tokenizer.json").write_bytes(b"\xff"), "tokenizer.json is not UTF-8"),
    "more tokens than the model": (add_token, "'new-41' has id 300, the model's vocabulary ends at 299"),
    "a special token it does not have": (
        lambda d: settings(d, bos_token="<bos>"),
        "bos_token is '<bos>', expected a token",
    ),
    "a special token that is a number": (lambda d: settings(d, bos_token=1), "bos_token is 1"),
    "a template that is none": (lambda d: settings(d, chat_template=3), "chat_template is a int, expected a string"),
    "broken settings": (lambda d: (d / "tokenizer_config.json").write_text("["), "tokenizer_config.json is not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    damage, message = BAD[name]
    damage(tiny_llama(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
