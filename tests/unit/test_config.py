"""config.json: what is honoured is read, what changes nothing is let through, all else is refused by its name."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.config import ModelConfig, RopeScaling, inverse_frequencies
from export.fields import FIXED, HONOURED, IRRELEVANT
from runtime.errors import CheckpointError, ConfigError
from tests.checkpoints import CONFIG


def read(directory: Path, context: int | None = None, /, **overrides: Any) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(CONFIG | overrides))
    return ModelConfig.read(directory, context)


COMMON = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "initializer_range": 0.02}
# As published, or as transformers writes them.
REAL: dict[str, dict[str, Any]] = {
    "vicuna-7b-v1.3": COMMON | {
        "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 11008,
        "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": 0,
        "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.28.1",
        "use_cache": True, "vocab_size": 32000,
    },
    "vicuna-7b-v1.5-16k": COMMON | {
        "_name_or_path": "vicuna-7b-v1.5-16k", "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096,
        "intermediate_size": 11008, "max_sequence_length": 16384, "max_position_embeddings": 4096,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 0,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 4.0, "type": "linear"},
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": True,
        "vocab_size": 32000,
    },
    "Llama-2-7b-chat-hf": COMMON | {
        "_name_or_path": "meta-llama/Llama-2-7b-chat-hf", "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.32.0.dev0",
        "use_cache": True, "vocab_size": 32000,
    },
    "TinyLlama-1.1B-Chat-v1.0": COMMON | {
        "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048, "intermediate_size": 5632,
        "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.35.0", "use_cache": True,
        "vocab_size": 32000,
    },
    "Llama-3.2-1B-Instruct": COMMON | {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "head_dim": 64,
        "eos_token_id": [128001, 128008, 128009], "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
    },
    "SmolLM2-135M": COMMON | {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576,
        "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True,
        "vocab_size": 49152,
    },
    "transformers 5": COMMON | {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": 2,
        "head_dim": 128, "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 2048,
        "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pad_token_id": None, "pretraining_tp": 1, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}, "tie_word_embeddings": False,
        "transformers_version": "5.23.0", "use_cache": True, "vocab_size": 32000,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_published_configs_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL[name]))
    config = ModelConfig.read(tmp_path)
    assert config.hidden == REAL[name]["hidden_size"]
    assert config.tied == REAL[name]["tie_word_embeddings"]


def test_linear_scaling_stretches_the_context(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL["vicuna-7b-v1.5-16k"]))
    assert ModelConfig.read(tmp_path).context == 16384
    assert ModelConfig.read(tmp_path, 1024).context == 1024
    plain = read(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert plain.context == 128  # some configs count the factor in already: more is for the caller to ask
    assert read(tmp_path, 256, rope_scaling={"type": "linear", "factor": 2.0}).context == 256


def test_llama3_fields(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL["Llama-3.2-1B-Instruct"]))
    config = ModelConfig.read(tmp_path)
    assert config.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    assert (config.rope_theta, config.context, config.bos) == (500000.0, 131072, 128000)
    assert config.eos == (128001, 128008, 128009)


def test_both_spellings_of_rotary_fields_agree(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    four = read(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    five = read(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert four == five


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    config = read(tmp_path, num_key_value_heads=None, head_dim=None, attention_bias=None, tie_word_embeddings=None)
    assert (config.kv_heads, config.head_dim, config.rope_theta) == (4, 16, 10000.0)
    assert (config.attention_bias, config.mlp_bias, config.tied) == (False, False, False)


def test_generation_config_says_what_ends_an_answer(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6], "temperature": 0.6}')
    assert read(tmp_path).eos == (5, 6)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert read(tmp_path).eos == (2,)
    assert read(tmp_path, eos_token_id=None).eos == ()


def test_frequencies(tmp_path: Path) -> None:
    """Wavelengths beyond the original context are stretched by the factor, short ones are kept (Llama 3.1)."""
    plain = inverse_frequencies(read(tmp_path, head_dim=64))
    assert plain[0] == 1.0 and plain[16] == pytest.approx(0.01)
    linear = inverse_frequencies(read(tmp_path, head_dim=64, rope_scaling={"type": "linear", "factor": 4.0}))
    assert np.allclose(linear, plain / 4)
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1000}
    llama3 = inverse_frequencies(read(tmp_path, head_dim=64, rope_scaling={"rope_type": "llama3", **scaling}))
    wavelength = 2 * math.pi / plain
    assert np.array_equal(llama3[wavelength < 250], plain[wavelength < 250])
    assert np.allclose(llama3[wavelength > 1000], plain[wavelength > 1000] / 8)
    between = (wavelength > 250) & (wavelength < 1000)
    assert between.any() and np.all((llama3[between] < plain[between]) & (llama3[between] > plain[between] / 8))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mistral"}, 'model_type is "mistral"'),
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    ({"hidden_act": "gelu"}, 'hidden_act is "gelu", it has to be "silu"'),
    ({"pretraining_tp": 2}, "pretraining_tp is 2"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_interleaved": True}, "rope_interleaved is true"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"auto_map": {"AutoModelForCausalLM": "m.M"}}, "auto_map"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    ({"chunk_size_feed_forward": 64}, "chunk_size_feed_forward"),
    ({"sliding_window": 64}, "sliding_window is 64, it has to be null or at least the context, which is 128"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"attention_multiplier": 0.5}, "attention_multiplier is an unknown field"),
    ({"logit_softcapping": 30}, "logit_softcapping is an unknown field"),
    ({"vocab_size": None}, "vocab_size is null, it has to be a whole number"),
    ({"hidden_size": "64"}, 'hidden_size is "64"'),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_hidden_layers": True}, "num_hidden_layers is true"),
    ({"num_attention_heads": 6}, "num_attention_heads is 6, it has to be a divisor of hidden_size"),
    ({"num_key_value_heads": 3}, "num_key_value_heads is 3, it has to be a divisor of num_attention_heads"),
    ({"head_dim": 24}, "head_dim is 24, it has to be a multiple of 16"),
    ({"num_attention_heads": 8}, "head_dim is missing, it has to be a multiple of 16"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"attention_bias": 1}, "attention_bias is 1"),
    ({"bos_token_id": [1, 2]}, "bos_token_id"),
    ({"eos_token_id": 300}, "eos_token_id is 300, it has to be null or token ids below vocab_size, which is 300"),
    ({"eos_token_id": [2, -1]}, "eos_token_id"),
    ({"rope_theta": -1}, "rope_theta is -1"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_scaling.type is "dynamic"'),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'rope_scaling.rope_type is "yarn"'),
    ({"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, 'rope_scaling.rope_type is ["linear"]'),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor is 0"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 2.0}}, "rope_scaling.attention_factor"),
    ({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}}, "rope_type"),
    ({"rope_scaling": "linear"}, "rope_scaling"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 64}}, "high_freq_factor"),
    ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, "rope_parameters.rope_theta is 5.0"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters.full_attention"),
    ({"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ({"max_position_embeddings": None}, "max_position_embeddings"),
    ({"max_sequence_length": 256}, "max_sequence_length is 256, it has to be at most 128"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused_by_name(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **overrides)
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_smaller_context_is_honoured_and_a_larger_one_refused(tmp_path: Path) -> None:
    assert read(tmp_path, 64).context == 64
    assert read(tmp_path, 64, sliding_window=64).context == 64
    for context in (0, -1, 129):
        with pytest.raises(ConfigError, match="allows 1 to 128"):
            read(tmp_path, context)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": ', b"\xff\xfe"])
def test_broken_files(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match="config.json"):
        ModelConfig.read(tmp_path)


def test_a_missing_directory_is_told_what_a_checkpoint_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a checkpoint is a Hugging Face directory"):
        ModelConfig.read(tmp_path / "nowhere")


def test_no_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "model_type"}))
    with pytest.raises(ConfigError, match="model_type is missing"):
        ModelConfig.read(tmp_path)


def test_every_field_has_one_meaning() -> None:
    assert not HONOURED & FIXED.keys() and not HONOURED & IRRELEVANT.keys() and not FIXED.keys() & IRRELEVANT.keys()


@pytest.mark.parametrize("name", sorted(IRRELEVANT))
def test_irrelevant_fields_change_nothing(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, **{name: 0.7}) == read(tmp_path)
