"""One checkpoint in every form that people have on disk: the artifact is the same, byte for byte."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from export.__main__ import main
from export.artifact import Source, export
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.tensors import open_pickle
from runtime.manifest import Manifest
from runtime.prompts import Prompts
from tests.checkpoints import TYPES, medusa_heads, medusa_tensors, save_pickle, tiny_llama
from tests.unit.test_pieces import theirs, train


def silent(what: str) -> None:
    pass


def artifact(checkpoint: Path, out: Path, precision: str, heads: Path | None = None) -> dict[str, bytes]:
    """The files of an export under the name `tiny`."""
    export(Source(checkpoint, heads, precision, self_test=False), out / "tiny", silent)
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


def test_vicuna_as_it_is_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pickled shards, tokenizer.model, no chat template; five bfloat16 heads whose config.json says two."""
    base = tiny_llama(tmp_path / "vicuna-7b-v1.3", pickled=True, shards=2, dtype="float16", vocab_size=700)
    (base / "tokenizer.json").unlink()
    train(base)
    settings = {"add_bos_token": True, "add_eos_token": False, "bos_token": {"content": "<s>"},
                "eos_token": {"content": "</s>"}, "tokenizer_class": "LlamaTokenizer"}  # fmt: skip
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    heads = tmp_path / "medusa-vicuna-7b-v1.3"
    heads.mkdir()
    tensors = medusa_tensors("v1", count=5, vocab=700)
    save_pickle({name: value.astype(TYPES["bfloat16"]) for name, value in tensors.items()}, heads / "medusa_lm_head.pt")
    (heads / "config.json").write_text(json.dumps({"medusa_num_heads": 2, "medusa_num_layers": 1}))
    out = tmp_path / "artifacts" / "vicuna"
    assert main([str(base), "--heads", str(heads), "--precision", "int4", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "vicuna, since the checkpoint is called vicuna-7b-v1.3" in said
    assert "says medusa_num_heads 2, medusa_lm_head.pt holds 5 heads: all of them are used" in said
    manifest = Manifest.read(out)
    assert manifest.medusa_heads == 5
    prompts = Prompts(manifest, Tokenizer.from_file(str(out / "tokenizer.json")))
    turns = [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello!"), ("user", "Grüße 🙂"))]
    before, after = prompts.render(turns).removeprefix("<s>").split("</s>")
    pieces = theirs(base)
    assert prompts.chat(turns) == [1, *pieces.encode(before), 2, *pieces.encode(after)]


def _anonymous_bytes() -> int:
    [kilobytes] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024
