"""An export of vicuna-7b's size that is killed leaves the artifact that was there, whole, and no more than one other.

Takes about ten minutes, and the disk of one artifact beside the checkpoint's.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from export.artifact import Source, export
from runtime.engine import Engine
from runtime.manifest import Manifest
from runtime.params import EngineConfig, SamplingParams
from runtime.sessions import CACHE
from tests.conftest import CHECKPOINT as DEMO
from tests.conftest import HEADS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

WRITING = "layer"  # what it says of each
CHECKING = "self-test"
MOMENTS: tuple[tuple[str, float], ...] = (  # after it first says so: how many seconds at most
    (WRITING, 60.0), (WRITING, 150.0), (CHECKING, 30.0),
)  # fmt: skip


def answer(out: Path) -> list[int]:
    engine = Engine.from_artifact(str(out), EngineConfig(rows=1))
    [sequence] = engine.generate([[1, 5, 9]], SamplingParams(max_tokens=8, ignore_eos=True))
    return sequence.tokens


def names(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {CACHE})


@pytest.fixture
def out(checkpoint: Path) -> Iterator[Path]:
    """A name beside the checkpoint: there the disk is large enough."""
    folder = checkpoint.parent / "killed"
    folder.mkdir()
    yield folder / "model"
    subprocess.run(["rm", "-r", folder], check=True)


def test_the_artifact_before_stays_usable(checkpoint: Path, out: Path) -> None:
    """Killed while it writes, and while it checks what is written whole: not one byte of the name's changes."""
    demo = Source(DEMO, HEADS)
    export(demo, out)
    before, said = os.readlink(out), answer(out)
    random = np.random.default_rng(0)
    for phase, latest in MOMENTS:
        moment = random.uniform(0, latest)
        arguments = [sys.executable, "-m", "export", checkpoint, "--precision", "int4", "--out", out]
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr is not None
            heard = next((line for line in running.stderr if phase in line), None)
            assert heard is not None, f"it ended before it said {phase}"
            time.sleep(moment)
            running.send_signal(signal.SIGKILL)
        assert running.returncode == -signal.SIGKILL
        left = set(names(out.parent)) - {out.name, before}
        assert len(left) == 1, "what it wrote, and nothing of the one killed before it"
        written = sum(path.stat().st_size for path in (out.parent / left.pop()).iterdir())
        print(f"killed {moment:.0f} s after {heard.strip()!r}, {written / 1e9:.2f} GB written")
        assert written > 0 and os.readlink(out) == before
        Manifest.read(out, verify=True)
        assert answer(out) == said
    export(demo, out)
    assert names(out.parent) == sorted([out.name, os.readlink(out)])
    assert answer(out) == said
