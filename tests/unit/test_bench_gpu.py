"""The benchmark of GPUs, run on the CPU provider: that it measures what it says, and says why where it cannot."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.bench import gpu
from runtime.bench.__main__ import main
from runtime.manifest import Manifest
from runtime.tree import Universe, accuracy_of
from tests.conftest import CHECKPOINT

ROOT = Path(__file__).parents[2]
SMALL = ["--provider", "cpu", "--sequences", "1,2", "--nodes", "1,4", "--context", "20", "--repeat", "2"]


def test_steps_and_their_floor(
    demo_artifact: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu, "copied_a_second", lambda device: 1e9)
    artifact, out = demo_artifact("padded-fp32"), tmp_path / "figures.json"
    peer = ["--peer", str(tmp_path / "nowhere"), "--peer-config", str(CHECKPOINT / "config.json")]
    assert main(["gpu", "--artifact", str(artifact), *SMALL, *peer, "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "not run: [Errno 2]" in told, "a peer that cannot run is named, with the reason"
    figures, m = json.loads(out.read_text()), Manifest.read(artifact)
    assert [(s["sequences"], s["nodes"]) for s in figures["steps"]] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    weights = m.files["decoder.onnx.data"]["size"] - m.vocab * m.hidden * 4
    best = np.sort(Universe(accuracy_of(m), m.draft_top_k).chance[1:])[::-1]
    for s in figures["steps"]:
        assert s["floor"] == pytest.approx((weights + s["sequences"] * (20 + s["nodes"]) * m.kv_bytes) / 1e9)
        assert 0 < s["run"] and 0 < s["step"]
        assert s["tokens_per_step"] == pytest.approx(1 + best[: s["nodes"] - 1].sum())
        step = gpu.Step(**s)
        assert step.tokens_per_second == pytest.approx(s["sequences"] * s["tokens_per_step"] / s["step"])
        assert f"{step.tokens_per_second:.0f}" in told


@pytest.mark.slow
def test_the_peer_runs_beside_it(
    demo_artifact: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The same sequences, context and type, by transformers; on a CPU it is traced whole, and not compiled."""
    monkeypatch.setattr(gpu, "copied_a_second", lambda device: 1e9)
    out, config = tmp_path / "figures.json", str(CHECKPOINT / "config.json")
    peer = ["--peer", sys.executable, "--peer-config", config, "--json", str(out)]
    assert main(["gpu", "--artifact", str(demo_artifact("padded-fp32")), *SMALL, *peer]) == 0
    found = json.loads(out.read_text())["peer"]
    assert found["seconds"].keys() == {"1", "2"} and min(found["seconds"].values()) > 0
    assert found["versions"].keys() == {"torch", "transformers"}
    told = capsys.readouterr().out
    assert f"{2 / found['seconds']['2']:.0f}" in told and "not run" not in told


def test_the_peer_says_that_there_is_no_gpu(demo_artifact: Callable[[str], Path]) -> None:
    manifest = Manifest.read(demo_artifact("padded-fp32"))
    asked = {"peer": sys.executable, "peer_config": "x", "sequences": [1], "context": 1, "repeat": 1}
    options = argparse.Namespace(**asked, provider="cuda")
    assert gpu.peer_seconds(options, manifest) == {"error": "torch sees no GPU"}


def test_the_memorys_speed_is_measured() -> None:
    assert 1e8 < gpu.copied_a_second("cpu", 1 << 22) < 1e13


def test_what_is_measured_unless_asked_otherwise() -> None:
    """By `make gpu-bench`, which gives no others: every number of sequences by every size of a tree."""
    top = argparse.ArgumentParser()
    options = gpu.add_parser(top.add_subparsers()).parse_args(["--artifact", "x"])
    assert (options.sequences, options.nodes) == ([1, 4, 16, 64], [1, 8, 16, 32, 64]) and options.provider == "cuda"
    recipe = (ROOT / "Makefile").read_text().partition("\ngpu-bench:")[2].partition("\n\n")[0]
    assert "export.synthetic vicuna-7b" in recipe and "--precision fp16" in recipe and "--peer $(GPU_PY)" in recipe
    assert "--sequences" not in recipe and "--nodes" not in recipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ready"], "no CUDAExecutionProvider: install onnxruntime-gpu"),
        (["--ready", "--provider", "tensorrt"], "tensorrt-cu13"),
        (["--artifact", "nowhere"], "no CUDAExecutionProvider"),
        (["--artifact", "nowhere", "--provider", "cpu"], "nowhere is not an artifact"),
    ],
)
def test_what_is_missing_is_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", *arguments]) in (2, 3)
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_provider_that_is_there_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--ready", "--provider", "cpu"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("precision", "arguments", "words"),
    [
        ("fp32", [], "has the ragged form: export it with --form padded"),
        ("padded-fp32", ["--context", "1000"], "has a context of 1024"),
        ("padded-fp32", ["--nodes", "65"], "at most 64 nodes"),
        ("padded-fp32", ["--peer", "python"], "--peer and --peer-config go together"),
    ],
)
def test_what_cannot_be_measured(
    demo_artifact: Callable[[str], Path], precision: str, arguments: list[str], words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["gpu", "--artifact", str(demo_artifact(precision)), *SMALL, *arguments]) == 2
    assert words in capsys.readouterr().err
