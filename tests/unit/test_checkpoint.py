"""Checkpoints: every tensor is there, fits, is finite and is used, or an error names it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.checkpoint import Checkpoint, expected_shapes
from export.config import ModelConfig
from runtime.errors import CheckpointError, TensorError
from tests.checkpoints import tiny_llama, write_tensors

Q = "model.layers.1.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
Tensors = dict[str, np.ndarray]


def opened(directory: Path) -> Checkpoint:
    return Checkpoint(directory, ModelConfig.read(directory))


def read_all(directory: Path) -> Tensors:
    checkpoint = opened(directory)
    found = {name: checkpoint.tensor(name) for name in expected_shapes(checkpoint.config)}
    checkpoint.finish()
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("pickled", [False, True])
def test_types_and_shards(tmp_path: Path, dtype: str, shards: int, pickled: bool) -> None:
    written = load_file(tiny_llama(tmp_path / "plain") / "model.safetensors")
    found = read_all(tiny_llama(tmp_path / "other", dtype=dtype, shards=shards, pickled=pickled))
    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    assert found.keys() == written.keys()
    for name, values in found.items():
        assert values.dtype == np.float32
        assert np.array_equal(values, written[name].astype(kind).astype(np.float32))


def test_biases_are_expected_where_the_config_says_so(tmp_path: Path) -> None:
    found = read_all(tiny_llama(tmp_path, attention_bias=True, mlp_bias=True))
    assert found["model.layers.0.self_attn.k_proj.bias"].shape == (32,)
    assert found["model.layers.0.mlp.gate_proj.bias"].shape == (96,)


def test_what_follows_from_the_config_may_be_there(tmp_path: Path) -> None:
    """transformers before 4.32 wrote the rotary frequencies into every layer."""
    change(
        tiny_llama(tmp_path),
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}),
    )
    read_all(tmp_path)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    checkpoint = opened(tiny_llama(tmp_path, tie_word_embeddings=True))
    assert np.array_equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor(EMBEDDING))


def test_a_tied_head_may_be_stored_if_it_is_equal(tmp_path: Path) -> None:
    tiny_llama(tmp_path, tie_word_embeddings=True)
    change(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING]}))
    read_all(tmp_path)
    change(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}))
    with pytest.raises(TensorError, match="lm_head.weight differs from model.embed_tokens.weight"):
        opened(tmp_path)


def test_a_tensor_that_is_not_used_fails_the_end(tmp_path: Path) -> None:
    checkpoint = opened(tiny_llama(tmp_path))
    for name in expected_shapes(checkpoint.config):
        if name != Q:
            checkpoint.tensor(name)
    with pytest.raises(TensorError, match=f"{Q} was not used"):
        checkpoint.finish()


def change(directory: Path, edit: Callable[[Tensors], object]) -> Path:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    write_tensors(directory, tensors)
    return directory


def poisoned(tensors: Tensors, value: float) -> None:
    tensors[Q][3, 5] = value


BAD_TENSORS: dict[str, tuple[Callable[[Tensors], object], list[str]]] = {
    "missing": (lambda t: t.pop(Q), [f"{Q} is missing", "expected shape [64, 64]"]),
    "unused": (lambda t: t.update(extra=np.ones(3, np.float32)), ["extra has no use"]),
    "of another layer": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[Q]}),
        ["model.layers.2.mlp.up_proj"],
    ),
    "misshapen": (lambda t: t.update({Q: t[Q][:32].copy()}), [f"{Q} has shape [32, 64]", "expected [64, 64]"]),
    "transposed": (lambda t: t.update({Q: t[Q].reshape(32, 128)}), [f"{Q} has shape [32, 128]", "expected [64, 64]"]),
    "of another vocabulary": (lambda t: t.update({EMBEDDING: t[EMBEDDING][:299].copy()}), ["[299, 64]", "[300, 64]"]),
    "whole numbers": (lambda t: t.update({Q: t[Q].astype(np.int8)}), [f"{Q} is of type I8", "F16, BF16, F32"]),
    "NaN": (lambda t: poisoned(t, np.nan), [f"{Q} has 1 values that are not finite, the first nan at [3, 5]"]),
    "infinite": (lambda t: poisoned(t, -np.inf), [f"{Q} has 1 values that are not finite, the first -inf at [3, 5]"]),
    "a bias too many": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}),
        ["q_proj.bias"],
    ),
    "a head beside tied embeddings": (lambda t: t.pop("lm_head.weight"), ["lm_head.weight is missing"]),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors(tmp_path: Path, name: str) -> None:
    edit, messages = BAD_TENSORS[name]
    change(tiny_llama(tmp_path), edit)
    with pytest.raises(TensorError) as caught:
        read_all(tmp_path)
    for message in messages:
        assert message in str(caught.value)
    assert str(tmp_path / "model.safetensors") in str(caught.value)


def truncated(directory: Path) -> None:
    path = max(path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin"))
    path.write_bytes(path.read_bytes()[:-7])


def reindex(edit: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    """Damage to the index's weight_map."""

    def damage(directory: Path) -> None:
        [path] = directory.glob("*.index.json")
        index = json.loads(path.read_text())
        edit(index["weight_map"])
        path.write_text(json.dumps(index))

    return damage


def elsewhere(places: dict[str, str]) -> None:
    places[Q] = next(file for file in places.values() if file != places[Q])


def index_text(text: str) -> Callable[[Path], object]:
    return lambda directory: next(directory.glob("*.index.json")).write_text(text)


Damage = Callable[[Path], object]
BAD_FILES: dict[str, tuple[int, Damage, str]] = {
    "truncated": (1, truncated, "{cut_file}"),
    "empty": (1, lambda d: [p.write_bytes(b"") for p in d.glob("*model.*")], "{file} is damaged"),
    "a web page": (1, lambda d: [p.write_text("<html>" * 50) for p in d.glob("*model.*")], "{file} is damaged"),
    "nothing there": (1, lambda d: [p.unlink() for p in d.glob("*model.*")], "expected one of model.safetensors, "),
    "a truncated shard": (2, truncated, "{cut_shard}"),
    "a shard gone": (
        2,
        lambda d: [p.unlink() for p in d.glob("*model-00002*")],
        "{shard} is missing; by {stem}.{suffix}.index.json it holds model.layers.0.input_layernorm.weight and 9 more",
    ),
    "the index names another shard": (2, reindex(elsewhere), f"{Q} is in {{stem}}-0000"),
    "the index forgets a tensor": (2, reindex(lambda p: p.pop(Q)), "the index says nothing of it"),
    "the index invents a tensor": (2, reindex(lambda p: p.update(ghost=p[Q])), "ghost is not in {stem}-0000"),
    "no index but an object": (2, index_text("{}"), "weight_map has to be"),
    "no JSON": (2, index_text("{"), "is not JSON"),
    "a path in the index": (2, index_text('{"weight_map": {"a": "../b.bin"}}'), "names of files beside it"),
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, pickled: bool) -> None:
    shards, damage, message = BAD_FILES[name]
    damage(tiny_llama(tmp_path, shards=shards, pickled=pickled))
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path)
    names = {"file": f"{stem}.{suffix}", "shard": f"{stem}-00002-of-00002.{suffix}"}
    for name, file in dict(names).items():  # a pickle's table of contents is at its end: it cannot say what is missing
        names[f"cut_{name}"] = (
            f"{file} ends before its list of contents" if pickled else f"{file}: model.norm.weight ends at byte "
        )
    assert message.format(stem=stem, suffix=suffix, **names) in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    """Names and shapes are checked in seconds, before an hour of export; values when they are read."""
    checkpoint = opened(change(tiny_llama(tmp_path), lambda t: poisoned(t, np.nan)))
    checkpoint.tensor(EMBEDDING)
    with pytest.raises(TensorError, match="not finite"):
        checkpoint.tensor(Q)


def test_half_of_float16_infinity(tmp_path: Path) -> None:
    """A weight that overflowed when it was saved as float16."""
    tiny_llama(tmp_path)
    tensors = {name: value.astype(np.float16) for name, value in load_file(tmp_path / "model.safetensors").items()}
    tensors["model.norm.weight"][0] = np.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        TensorError, match="model.norm.weight has 1 values that are not finite, the first inf at \\[0\\]"
    ):
        read_all(tmp_path)
