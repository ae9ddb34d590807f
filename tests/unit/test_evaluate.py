"""`python -m export.evaluate`: its figures against plain numpy on the same text."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from export.artifact import Source, export
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.evaluate import main
from export.heads import MedusaHeads
from export.reference import Reference, chain, log_softmax
from export.text import windows
from runtime.errors import ArtifactError, ConfigurationError
from runtime.manifest import Manifest
from tests.checkpoints import medusa_heads, tiny_llama

TEXT = "Returns the path joined of its parts, with exactly one slash after each of them but for the last. " * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    base, heads = tiny_llama(folder / "base"), medusa_heads(folder / "heads")
    for name in ("fp32", "int8"):
        export(Source(base, heads, name), folder / name, lambda what: None)
    export(Source(base, None, "int8"), folder / "plain", lambda what: None)
    export(
        Source(tiny_llama(folder / "other", num_hidden_layers=1), None, "fp32"), folder / "strange", lambda what: None
    )
    export(Source(base, None, "int8"), folder / "alone" / "int8", lambda what: None)
    (folder / "alone" / "strange").symlink_to(folder / "strange")
    (folder / "text.txt").write_text(TEXT)
    (folder / "chat.jsonl").write_text(json.dumps({"prompt": "<s>What is it?", "text": " " + TEXT[:60]}) + "\n\n")
    return folder


def figures(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main([*map(str, arguments), "--json"]) == 0
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def by_numpy(folder: Path, text: str) -> tuple[float, list[list[float]]]:
    """Perplexity, and the heads' accuracies for the top 1 to 10, of the whole text in windows of the context."""
    config = ModelConfig.read(folder / "base")
    reference = Reference(config, Checkpoint(folder / "base", config).tensor)
    heads = MedusaHeads.read(folder / "heads", config)
    losses, hits = [], [[[] for _ in range(10)] for _ in range(3)]  # type: ignore[var-annotated]
    for window in windows(folder / text, Tokenizer.from_file(str(folder / "base" / "tokenizer.json")), config.context):
        ids = window.ids
        (hidden,) = reference.hidden_states([chain(ids)])
        logprobs, drafts = log_softmax(reference.logits(hidden)), reference.head_logits(heads, hidden)
        for p in range(max(window.prompt - 1, 0), len(ids) - 1):
            losses.append(-logprobs[p, ids[p + 1]])
            for h in range(3):
                if p + 2 + h < len(ids):
                    rank = int((drafts[p, h] > drafts[p, h, ids[p + 2 + h]]).sum())
                    for k in range(10):
                        hits[h][k].append(rank <= k)
    return float(np.exp(np.mean(losses))), [[float(np.mean(hit)) for hit in head] for head in hits]


@pytest.mark.parametrize("text", ["text.txt", "chat.jsonl"])
def test_figures_are_those_of_numpy(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    perplexity, accuracy = by_numpy(folder, text)
    found = figures(capsys, folder / "fp32", folder / text, "--checkpoint", folder / "base")
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert found["reference_perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert found["divergence"] == pytest.approx(0, abs=1e-6)
    assert found["agreement"] == 1
    assert np.allclose(np.array(found["head_accuracy"]), accuracy, atol=1e-4)


def test_a_rounded_artifact_is_some_way_from_fp32(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numpy = figures(capsys, folder / "int8", folder / "text.txt", "--checkpoint", folder / "base")
    other = figures(capsys, folder / "int8", folder / "text.txt", "--reference", folder / "fp32")
    for name in ("perplexity", "reference_perplexity", "divergence", "agreement"):
        assert other[name] == pytest.approx(numpy[name], rel=1e-3)
    assert 1e-5 < float(str(numpy["divergence"])) < 0.05
    assert 0.7 < float(str(numpy["agreement"])) < 1


def test_the_reference_is_the_fp32_artifact_beside_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "int8"), str(folder / "text.txt"), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"fp32 reference: {folder / 'fp32'}\n"
    assert json.loads(captured.out) == figures(
        capsys, folder / "int8", folder / "text.txt", "--reference", folder / "fp32"
    )


def test_fp32_is_not_compared_with_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "fp32"), str(folder / "text.txt"), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{folder / 'fp32'} is fp32 itself: not compared with fp32\n"
    found = json.loads(captured.out)
    assert found["divergence"] is found["agreement"] is found["reference_perplexity"] is None


def test_several_possible_references_are_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = folder / "many"
    many.mkdir()
    for name, of in (("a", "fp32"), ("b", "fp32"), ("int8", "int8")):
        (many / name).symlink_to(folder / of)
    assert main([str(many / "int8"), str(folder / "text.txt")]) == ConfigurationError.exit_code
    assert "several fp32 artifacts (a, b)" in capsys.readouterr().err


def test_a_tokenizer_that_does_not_load(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "plain", folder / "broken")
    size = (folder / "broken" / "tokenizer.json").stat().st_size
    (folder / "broken" / "tokenizer.json").write_text(" " * size)
    assert main([str(folder / "broken"), str(folder / "text.txt")]) == ArtifactError.exit_code
    assert "tokenizer.json does not load" in capsys.readouterr().err


def test_write_puts_the_accuracies_into_the_manifest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, folder / "int8", folder / "text.txt")
    assert Manifest.read(folder / "int8").head_accuracy is None
    figures(capsys, folder / "int8", folder / "text.txt", "--write")
    written = Manifest.read(folder / "int8", verify=True).head_accuracy
    assert written is not None and [list(row) for row in written] == found["head_accuracy"]


def test_it_prints_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "fp32"), str(folder / "chat.jsonl"), "--reference", str(folder / "fp32")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = " ".join(line.split()[0] for line in lines)
    assert first == "83 perplexity perplexity KL top-1 head head head"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "text.txt"], ArtifactError.exit_code, "is not an artifact"),
        (["fp32", "nowhere.txt"], ConfigurationError.exit_code, "nowhere.txt cannot be read"),
        (["fp32", "empty.txt"], ConfigurationError.exit_code, "holds no text of two tokens"),
        (["fp32", "bad.jsonl"], ConfigurationError.exit_code, "bad.jsonl, line 2 is not JSON"),
        (["fp32", "wrong.jsonl"], ConfigurationError.exit_code, 'wrong.jsonl, line 1: expected {"text": ...}'),
        (["plain", "text.txt", "--write"], ConfigurationError.exit_code, "has no heads"),
        (
            ["fp32", "text.txt", "--reference", "int8"],
            ConfigurationError.exit_code,
            "int8 is int8: expected an fp32 artifact",
        ),
        (["int8", "text.txt", "--reference", "strange"], ConfigurationError.exit_code, "has layers 1, the artifact 2"),
        (["alone/int8", "text.txt"], ConfigurationError.exit_code, "give --checkpoint or --reference"),
        (["fp32", "text.txt", "--checkpoint", "other"], ConfigurationError.exit_code, "has layers 1, the artifact 2"),
    ],
)
def test_errors(
    folder: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "bad.jsonl").write_text('{"text": "good"}\n{"text": ')
    (folder / "wrong.jsonl").write_text('{"texts": "good"}\n')
    assert main([a if a.startswith("--") else str(folder / a) for a in arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export.evaluate: ") and message in line
