"""Chat templates: the published formats, to the character, and the rule by which a checkpoint gets its template."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from export.__main__ import main
from export.artifact import Source, export
from export.chat import NAMES, choose
from runtime.errors import CheckpointError, ConfigurationError, PromptError
from runtime.manifest import Manifest
from runtime.prompts import Prompts
from tests.checkpoints import CHAT_TEMPLATE, tiny_llama
from tests.fake import fake_manifest, fake_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "How are you?"},
]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# As published: docs/vicuna_weights_version.md of lm-sys/FastChat, llama/generation.py of meta-llama/llama, chatml.md of
# openai/openai-python.
RENDERED = {
    "vicuna": (
        f"<s>{VICUNA} USER: Hello! ASSISTANT: Hi!</s>USER: How are you? ASSISTANT:",
        "<s>Be brief. USER: Hello! ASSISTANT: Hi!</s>USER: How are you? ASSISTANT:",
    ),
    "llama-2": (
        "<s>[INST] Hello! [/INST] Hi! </s><s>[INST] How are you? [/INST]",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello! [/INST] Hi! </s><s>[INST] How are you? [/INST]",
    ),
    "chatml": (
        "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n",
    ),
}


def text(name: str) -> str:
    found = choose(name, None, (), fake_tokenizer(), Path("base")).text
    assert found is not None
    return found


def prompts(name: str) -> Prompts:
    manifest = fake_manifest(chat_template=text(name), special={"bos_token": "<s>", "eos_token": "</s>"})
    return Prompts(manifest, fake_tokenizer())


def test_every_template_is_tested() -> None:
    assert set(RENDERED) == set(NAMES)


@pytest.mark.parametrize("name", RENDERED)
def test_the_published_format(name: str) -> None:
    plain, with_system = RENDERED[name]
    assert prompts(name).render(TURNS) == plain
    assert prompts(name).render([SYSTEM, *TURNS]) == with_system


@pytest.mark.parametrize("name", RENDERED)
def test_transformers_renders_the_same(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template
    given = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    [theirs], _ = render([[SYSTEM, *TURNS]], chat_template=text(name), **given)
    assert prompts(name).render([SYSTEM, *TURNS]) == theirs


@pytest.mark.parametrize("name", ["vicuna", "llama-2"])
@pytest.mark.parametrize("turns", [[*TURNS, TURNS[0]], TURNS[1:], [*TURNS[:2], SYSTEM], [SYSTEM, SYSTEM, *TURNS]])
def test_turns_that_the_format_does_not_have(name: str, turns: list[dict[str, str]]) -> None:
    with pytest.raises(PromptError, match="takes turns: one system message at most"):
        prompts(name).render(turns)


@pytest.mark.parametrize(("name", "begins"), [("vicuna", 1), ("llama-2", 2)])
def test_the_beginning_is_not_doubled(tmp_path: Path, name: str, begins: int) -> None:
    """The template writes <s>, and the tokenizer, which puts one before raw texts, does not put another."""
    base = tiny_llama(tmp_path / "base")
    manifest, _ = export(Source(base, None, "fp32", chat_template=name), tmp_path / "tiny", lambda what: None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tiny" / "tokenizer.json"))
    assert tokenizer.encode("x").ids[0] == 1
    ids = Prompts(manifest, tokenizer).chat(TURNS)
    assert ids[:2].count(1) == 1 and ids.count(1) == begins
    assert ids.count(2) == 1


def bare(directory: Path, **config: Any) -> Path:
    """A checkpoint without a template."""
    tiny_llama(directory, **config)
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return directory


@pytest.mark.parametrize(
    ("folder", "config", "name", "because"),
    [
        ("vicuna-7b-v1.3", {}, "vicuna", "called vicuna-7b-v1.3"),
        ("Vicuna", {}, "vicuna", "called Vicuna"),
        ("mine", {"_name_or_path": "lmsys/vicuna-13b-v1.5"}, "vicuna", "called lmsys/vicuna-13b-v1.5"),
        ("models--lmsys--vicuna-7b-v1.1/snapshots/0123", {}, "vicuna", "called models--lmsys--vicuna-7b-v1.1"),
        ("Llama-2-7b-chat-hf", {}, "llama-2", "called Llama-2-7b-chat-hf"),
        ("Llama-2-7b-hf", {}, None, "--chat-template chatml|llama-2|vicuna|FILE"),
        ("vicuna-7b-delta-v0", {}, None, "raw prompts only"),
        ("base", {}, None, "raw prompts only"),
    ],
)
def test_a_template_by_name(
    tmp_path: Path,
    folder: str,
    config: dict[str, str],
    name: str | None,
    because: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = bare(tmp_path / folder, **config)
    assert main([str(base), "--precision", "fp32", "--out", str(tmp_path / "tiny")]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("chat template: ")]
    assert because in line
    assert Manifest.read(tmp_path / "tiny").chat_template == (None if name is None else text(name))


def test_what_is_asked_for_wins_then_the_checkpoints_own(tmp_path: Path) -> None:
    base, file = tiny_llama(tmp_path / "vicuna"), tmp_path / "mine.jinja"
    file.write_text("{{ messages[0]['content'] }}!")
    notes: list[str] = []
    for number, (asked, right) in enumerate(
        [(None, CHAT_TEMPLATE), ("chatml", text("chatml")), (str(file), file.read_text())]
    ):
        out = tmp_path / str(number)
        export(Source(base, None, "fp32", chat_template=asked), out, lambda what: None, notes.append)
        assert Manifest.read(out).chat_template == right
    rules = ("the checkpoint's own", "chatml, as asked for", f"{file}, as asked for")
    assert [note for note in notes if "template" in note] == [f"chat template: {rule}" for rule in rules]


def test_chatml_by_its_tokens_ends_at_the_end_of_a_turn(tmp_path: Path) -> None:
    base = bare(tmp_path / "base")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(base / "tokenizer.json"))
    notes: list[str] = []
    manifest, _ = export(Source(base, None, "fp32"), tmp_path / "tiny", lambda what: None, notes.append)
    assert notes[0] == "chat template: chatml, since the tokenizer has <|im_start|> and <|im_end|>"
    assert manifest.chat_template == text("chatml")
    assert manifest.eos == (2, tokenizer.token_to_id("<|im_end|>"))


def test_templates_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "broken.jinja").write_text("\n{% if %}")
    with pytest.raises(
        ConfigurationError, match="--chat-template nonsense is neither one of chatml, llama-2, vicuna nor"
    ):
        choose("nonsense", None, (), fake_tokenizer(), tmp_path)
    with pytest.raises(CheckpointError, match="broken.jinja does not compile, line 2"):
        choose(str(tmp_path / "broken.jinja"), None, (), fake_tokenizer(), tmp_path)
    with pytest.raises(
        CheckpointError, match="the chat template of .* does not compile, line 1.*--chat-template gives"
    ):
        choose(None, "{% endif %}", (), fake_tokenizer(), tmp_path)
