"""A checkpoint of vicuna-7b's true shape, made once; it stays for the next run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(".size")
CHECKPOINT = FOLDER / "vicuna-7b"
DISK = 30e9


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    if not (CHECKPOINT / "config.json").exists():
        FOLDER.mkdir(exist_ok=True)
        if (free := shutil.disk_usage(FOLDER).free) < DISK:
            pytest.skip(f"{free / 1e9:.0f} GB of disk are free, {DISK / 1e9:.0f} are needed")
        half = FOLDER / "unfinished"
        shutil.rmtree(half, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "export.synthetic", "vicuna-7b", "--out", half], check=True)
        half.rename(CHECKPOINT)
    return CHECKPOINT
