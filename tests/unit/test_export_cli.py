"""`python -m export` as it is called: exit codes, and one line on standard error that says what would be right."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.__main__ import main, parser
from export.artifact import Source
from runtime.errors import ArtifactError, CheckpointError, ConfigError, TensorError
from runtime.manifest import Manifest
from tests.checkpoints import medusa_heads, tiny_llama


def test_a_whole_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, heads, out = tiny_llama(tmp_path / "base"), medusa_heads(tmp_path / "heads"), tmp_path / "tiny"
    assert main([str(base), "--heads", str(heads), "--precision", "int4", "--context", "64", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    for said in ("layer 2 of 2", "self-test: largest error of the logits", "the tokenizer has 259 tokens"):
        assert said in captured.err
    assert "Traceback" not in captured.err
    manifest = Manifest.read(out)
    assert (manifest.precision, manifest.context, manifest.medusa_heads) == ("int4", 64, 3)


def test_heads_in_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are found, others may be asked for, and none too."""
    base, out = tiny_llama(tmp_path / "base", heads="v2", medusa_num_heads=2), tmp_path / "tiny"
    other = str(medusa_heads(tmp_path / "other", count=1))
    for options, count, lines in (
        ([], 3, ["3 Medusa heads found in ", "says medusa_num_heads 2, model.safetensors holds 3 heads"]),
        (["--heads", other], 1, []),
        (["--plain"], 0, []),
    ):
        assert main([str(base), *options, "--out", str(out)]) == 0
        printed = capsys.readouterr().err
        assert Manifest.read(out).medusa_heads == count
        assert all(line in printed for line in lines) and ("found in" in printed) == bool(lines)
    with pytest.raises(SystemExit, match="2"):
        main([str(base), "--plain", "--heads", other, "--out", str(out)])
    assert "not allowed with" in capsys.readouterr().err


def test_one_default_an_option() -> None:
    options = parser().parse_args(["base", "--out", "tiny"])
    source = Source(Path("base"))
    for name in ("heads", "precision", "context", "chat_template", "plain"):
        assert getattr(options, name) == getattr(source, name)


BAD: dict[str, tuple[Callable[[Path], list[str]], int, str]] = {
    "no checkpoint": (lambda d: [str(d / "nowhere")], CheckpointError.exit_code, "config.json is missing"),
    "a field": (lambda d: [str(tiny_llama(d / "b", hidden_act="gelu"))], ConfigError.exit_code, "hidden_act"),
    "a context": (lambda d: [str(tiny_llama(d / "b")), "--context", "129"], ConfigError.exit_code, "allows 1 to 128"),
    "no heads": (
        lambda d: [str(tiny_llama(d / "b")), "--heads", str(d / "none")],
        CheckpointError.exit_code,
        "none does not exist",
    ),
    "heads of another model": (
        lambda d: [str(tiny_llama(d / "b")), "--heads", str(medusa_heads(d / "h", vocab=301))],
        TensorError.exit_code,
        "expected [300, 64]",
    ),
    "a name that is taken": (lambda d: [str(tiny_llama(d / "tiny"))], ArtifactError.exit_code, "tiny exists"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, message = BAD[name]
    assert main([*arguments(tmp_path), "--out", str(tmp_path / "tiny")]) == code
    *before, line = capsys.readouterr().err.splitlines()
    assert all(other.startswith(("chat template: ", "the tokenizer has ")) for other in before)
    assert line.startswith("export: ") and message in line


@pytest.mark.parametrize("arguments", [[], ["base"], ["base", "--out", "o", "--precision", "fp8"], ["base", "--out"]])
def test_options_that_cannot_work(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_a_full_disk_leaves_the_artifact_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = tiny_llama(tmp_path / "base"), tmp_path / "artifacts" / "tiny"
    assert main([str(base), "--out", str(out)]) == 0
    before = sorted(path.name for path in out.parent.iterdir())
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, most))  # of a file: the next write past it is refused
    try:
        assert main([str(base), "--out", str(out)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert f"export: [Errno 27] File too large; {out} is what it was before" in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == before
    Manifest.read(out, verify=True)


def test_an_interrupt_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*rest: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.artifact.export", interrupt)
    assert main([str(tmp_path), "--out", str(tmp_path / "tiny")]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    """Exporting safetensors takes what serving takes."""
    base, heads = tiny_llama(tmp_path / "base"), medusa_heads(tmp_path / "heads")
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'sentencepiece', 'gguf'));"
        "from export.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [str(base), "--heads", str(heads), "--out", str(tmp_path / "tiny")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
