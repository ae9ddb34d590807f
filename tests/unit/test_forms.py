"""One checkpoint in every form that people have on disk: the artifact is the same, byte for byte."""

import re
from pathlib import Path

import numpy as np
import pytest

from export.artifact import Source, export
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.tensors import open_pickle
from tests.checkpoints import medusa_heads, save_pickle, tiny_llama


def silent(what: str) -> None:
    pass


def artifact(checkpoint: Path, out: Path, precision: str, heads: Path | None = None) -> dict[str, bytes]:
    """The files of an export under the name `tiny`."""
    export(Source(checkpoint, heads, precision), out / "tiny", silent)
    return {path.name: path.read_bytes() for path in (out / "tiny").iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 2])
def test_pickles_give_the_artifact_of_safetensors(tmp_path: Path, dtype: str, shards: int) -> None:
    heads = medusa_heads(tmp_path / "heads")
    safe = artifact(tiny_llama(tmp_path / "safe", dtype=dtype), tmp_path / "a", "int8", heads)
    base = tiny_llama(tmp_path / "pickled", dtype=dtype, shards=shards, pickled=True)
    assert artifact(base, tmp_path / "b", "int8", heads) == safe


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    """Many repositories hold both: the pickles need torch and say the same."""
    base = tiny_llama(tmp_path, seed=1, pickled=True)
    tiny_llama(tmp_path, seed=0)
    config = ModelConfig.read(base)
    other = tiny_llama(tmp_path / "other", seed=0)
    name = "model.norm.weight"
    assert np.array_equal(Checkpoint(base, config).tensor(name), Checkpoint(other, config).tensor(name))


def test_a_pickle_is_mapped_and_not_loaded(tmp_path: Path) -> None:
    """Opening 10 GB of shards must not take 10 GB of memory."""
    values = {str(i): np.ones((1024, 4096), np.float32) for i in range(6)}
    save_pickle(values, tmp_path / "pytorch_model.bin")
    open_pickle(tmp_path / "pytorch_model.bin")  # what torch itself takes at the first time
    before = _anonymous_bytes()
    found = open_pickle(tmp_path / "pytorch_model.bin")
    assert all(float(tensor.load().sum()) == 1024 * 4096 for tensor in found.values())
    assert _anonymous_bytes() - before < 24 << 20, "of 96 MiB in the file"


def _anonymous_bytes() -> int:
    [kilobytes] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024
