"""An export that is killed at any moment leaves the artifact that was there, whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from runtime.engine import Engine
from runtime.manifest import Manifest
from runtime.params import EngineConfig, SamplingParams
from tests.checkpoints import medusa_heads, tiny_llama

ROOT = Path(__file__).parents[2]
KILLS = 6


def start(base: Path, heads: Path, out: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "export", str(base), "--heads", str(heads), "--out", str(out)]
    return subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)


def answer(out: Path) -> list[int]:
    engine = Engine.from_artifact(str(out), EngineConfig(rows=1))
    [sequence] = engine.generate([[1, 5, 9]], SamplingParams(max_tokens=8, ignore_eos=True))
    return sequence.tokens


def test_the_artifact_before_stays_usable(tmp_path: Path) -> None:
    """The moments lie between the first file and the end; the next export removes what the killed one left."""
    out = tmp_path / "artifacts" / "tiny"
    heads = medusa_heads(tmp_path / "heads")
    old, new = (tiny_llama(tmp_path / str(seed), seed=seed, num_hidden_layers=6) for seed in (0, 1))
    assert start(old, heads, out).wait() == 0
    before, said = os.readlink(out), answer(out)
    with start(new, heads, tmp_path / "elsewhere" / "tiny") as whole:
        while whole.poll() is None and not list(tmp_path.glob("elsewhere/.tiny-*")):
            time.sleep(0.001)
        began = time.monotonic()
    lasts = time.monotonic() - began
    killed = 0
    for moment in np.random.default_rng(0).uniform(0, lasts, KILLS):
        running = start(new, heads, out)
        while running.poll() is None and set(os.listdir(out.parent)) - {".cache"} == {"tiny", before}:
            time.sleep(0.001)
        time.sleep(moment)
        running.send_signal(signal.SIGKILL)
        if running.wait() == -signal.SIGKILL and os.readlink(out) == before:
            killed += 1
            Manifest.read(out, verify=True)
            assert answer(out) == said
        else:  # it was quicker than the one that was measured
            assert start(old, heads, out).wait() == 0
            before = os.readlink(out)
    assert killed > 0 and whole.returncode == 0
    assert start(new, heads, out).wait() == 0
    assert set(os.listdir(out.parent)) == {
        "tiny",
        os.readlink(out),
        *([".cache"] if (out.parent / ".cache").exists() else []),
    }
    assert answer(out) != said
