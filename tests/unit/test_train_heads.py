"""Head training against a tiny random Llama: targets, resumption, layout."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from export import train_heads as module  # noqa: E402
from export.text import Window  # noqa: E402
from export.train_heads import Options, positions, targets, train_heads  # noqa: E402
from runtime.errors import ConfigurationError  # noqa: E402

OPTIONS = Options(heads=3, epochs=60, batch=64, lr=3e-3, warmup=2, held_out=0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of random weights with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("checkpoint")
    words = ["<unk>", *"abcdefghijklmnop"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Twenty documents that all say the alphabet from some letter on, behind a prompt."""
    letters = "a b c d e f g h i j k l m n o p".split()
    file = tmp_path / "text.jsonl"
    lines = [{"prompt": " ".join(letters[at : at + 2]), "text": " ".join(letters[at + 2 :])} for at in range(10)] * 2
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_head_learns_the_token_at_offset_two_plus_its_number() -> None:
    """The base predicts offset 1; of a prompt, the last position alone is learnt from."""
    window = Window(ids=[10, 11, 12, 13, 14], prompt=2)
    assert list(positions(window)) == [1, 2]
    assert targets(window, 3).tolist() == [[13, 14, -100], [14, -100, -100]]


def test_heads_learn_a_text_the_base_never_saw(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads.safetensors"
    measured = train_heads(checkpoint, text, out, OPTIONS)
    assert measured["accuracy"]["trained"][0][0] > 0.9
    assert json.loads(out.with_suffix(".json").read_text()) == measured
    tensors = load_file(out)
    assert {name: value.shape for name, value in tensors.items() if name.startswith("2.")} == {
        "2.0.linear.weight": (32, 32),
        "2.0.linear.bias": (32,),
        "2.1.weight": (32, 32),
    }
    assert len(tensors) == 9
    assert not out.with_name(out.name + ".work").exists()


def test_interrupted_training_ends_in_the_same_heads(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of an epoch, between two saves."""
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    train_heads(checkpoint, text, whole, OPTIONS)
    monkeypatch.setattr(module, "SAVE_EVERY", 7)
    calls = 0

    def scale(step: int, total: int, warmup: int, original=module.scale) -> float:  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 24:
            raise KeyboardInterrupt
        return original(step, total, warmup)

    monkeypatch.setattr(module, "scale", scale)
    with pytest.raises(KeyboardInterrupt):
        train_heads(checkpoint, text, broken, OPTIONS)
    assert not broken.exists()
    train_heads(checkpoint, text, broken, OPTIONS)
    first, second = load_file(whole), load_file(broken)
    assert all((first[name] == second[name]).all() for name in first)


def test_document_without_text_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"text": "a b c"}\n{"words": "a b c"}\n')
    with pytest.raises(ConfigurationError, match="line 2"):
        train_heads(checkpoint, file, tmp_path / "heads.safetensors", OPTIONS)
