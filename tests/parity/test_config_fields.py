"""Every honoured field of config.json against transformers: the numpy reference, and the fp32 artifact.

Each field is also shown to matter: the same checkpoint read without it gives other logits.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from export.artifact import Source, export
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.reference import Reference, chain
from runtime.manifest import Manifest
from runtime.params import EngineConfig
from runtime.session import Batch
from runtime.sessions import open_session
from tests import provider
from tests.checkpoints import tiny_llama
from tests.parity.promises import PADDED

LIMIT = {"fp32": 2e-4, "fp16": 0.02}  # of the largest logit
TOKENS = np.random.default_rng(5).integers(0, 300, 120)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@dataclass(frozen=True)
class Field:
    """Overrides of the tiny config, and others with which the same tensors are read without it, if they can be."""

    overrides: dict[str, Any]
    without: dict[str, Any] | None


FIELDS = {
    "nothing": Field({}, None),
    "vocab_size": Field({"vocab_size": 311}, None),
    "hidden_size": Field({"hidden_size": 96, "num_attention_heads": 6}, None),
    "intermediate_size": Field({"intermediate_size": 160}, None),
    "num_hidden_layers": Field({"num_hidden_layers": 3}, None),
    "num_attention_heads": Field(
        {"num_attention_heads": 2, "num_key_value_heads": 1},
        {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "num_key_value_heads, one": Field({"num_key_value_heads": 1}, None),
    "num_key_value_heads, all": Field({"num_key_value_heads": 4}, None),
    "num_key_value_heads, absent": Field({"num_key_value_heads": None}, None),
    "head_dim": Field({"head_dim": 32}, {"head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 4}),
    "rms_norm_eps": Field({"rms_norm_eps": 0.3}, {"rms_norm_eps": 1e-5}),
    "rope_theta": Field({"rope_theta": 500.0}, {"rope_theta": 10000.0}),
    "rope_scaling, linear": Field({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_scaling": None}),
    "rope_scaling, llama3": Field({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, {"rope_scaling": None}),
    "rope_parameters, default": Field(
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {"rope_parameters": None}
    ),
    "rope_parameters, linear": Field(
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5}}, {"rope_parameters": None}
    ),
    "rope_parameters, llama3": Field(
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
        {"rope_parameters": {"rope_theta": 500.0}},
    ),
    "tie_word_embeddings": Field({"tie_word_embeddings": True}, None),
    "attention_bias": Field({"attention_bias": True}, None),
    "mlp_bias": Field({"mlp_bias": True}, None),
    "hidden_act": Field({"hidden_act": "swish"}, None),
    "sliding_window": Field({"sliding_window": 128}, None),
    "max_position_embeddings": Field({"max_position_embeddings": 120}, None),
    "float16": Field({"dtype": "float16"}, None),
    "bfloat16": Field({"dtype": "bfloat16"}, None),
    "shards": Field({"shards": 2}, None),
    "pickled": Field({"pickled": True, "dtype": "bfloat16"}, None),
    "pickled shards": Field({"pickled": True, "shards": 2}, None),
}  # fmt: skip


def by_transformers(checkpoint: Path, tokens: np.ndarray) -> np.ndarray:
    loaded: Any = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    assert not any(info.values()), info  # the test's own checkpoint is whole
    with torch.no_grad():
        logits: np.ndarray = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    return logits


def by_reference(checkpoint: Path, tokens: np.ndarray) -> np.ndarray:
    config = ModelConfig.read(checkpoint)
    reference = Reference(config, Checkpoint(checkpoint, config).tensor)
    return reference.logits(reference.hidden_states([chain(tokens.tolist())])[0])


def by_artifact(checkpoint: Path, out: Path, tokens: np.ndarray, precision: str) -> np.ndarray:
    form, _, kind = precision.rpartition("-")
    export(Source(checkpoint, None, kind, form or "ragged"), out, lambda what: None)
    config = EngineConfig(rows=1, threads=1, provider=provider.chosen if form else "cpu")
    session = open_session(out, Manifest.read(out), config, lambda what: None)
    n = np.arange(len(tokens))
    tree = np.tri(len(tokens), dtype=bool)[None]
    return session.run(Batch(tokens, n, np.array([0]), np.array([len(tokens)]), tree, n)).logits


def error(found: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(found - want).max() / np.abs(want).max())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, np.ndarray]]:
    """A field's checkpoint, and transformers' logits of it: made once."""
    root = tmp_path_factory.mktemp("fields")

    @cache
    def make(name: str) -> tuple[Path, np.ndarray]:
        checkpoint = tiny_llama(root / str(list(FIELDS).index(name)), **FIELDS[name].overrides)
        return checkpoint, by_transformers(checkpoint, TOKENS)

    return make


@pytest.mark.parametrize("name", FIELDS)
def test_the_reference(checkpoints: Callable[[str], tuple[Path, np.ndarray]], tmp_path: Path, name: str) -> None:
    checkpoint, want = checkpoints(name)
    assert error(by_reference(checkpoint, TOKENS), want) < LIMIT["fp32"] / 10
    if (without := FIELDS[name].without) is not None:
        shutil.copytree(checkpoint, tmp_path / "base")
        config = json.loads((checkpoint / "config.json").read_text()) | without
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
        assert error(by_reference(tmp_path / "base", TOKENS), want) > LIMIT["fp32"] * 10


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("precision", ["fp32", *PADDED])
def test_artifacts(
    checkpoints: Callable[[str], tuple[Path, np.ndarray]], tmp_path: Path, name: str, precision: str
) -> None:
    checkpoint, want = checkpoints(name)
    found = by_artifact(checkpoint, tmp_path / "tiny", TOKENS, precision)
    assert error(found, want) < LIMIT[precision.removeprefix("padded-")]


def test_a_long_context_keeps_its_precision(tmp_path: Path) -> None:
    """Angles grow with the position: at 2,000 tokens float32 products of position and frequency are 1e-4 off."""
    checkpoint = tiny_llama(tmp_path / "base", max_position_embeddings=2048, rope_theta=100.0, num_hidden_layers=1)
    tokens = np.random.default_rng(0).integers(0, 300, 2000)
    want = by_transformers(checkpoint, tokens)
    assert error(by_reference(checkpoint, tokens), want) < LIMIT["fp32"]
