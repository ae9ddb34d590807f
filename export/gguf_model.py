"""A GGUF file as a model: its metadata give the config, the tokenizer and the chat template."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.byte_level import NAMES, byte_level_tokenizer
from export.checkpoint import Checkpoint
from export.config import ModelConfig, RopeScaling
from export.fields import Fields
from export.gguf_file import ROPE_FACTORS, GgufFile
from export.pieces import Kind, Pieces, Usage, to_tokenizer
from export.tensors import Stored, read
from export.tokenizer import TokenizerFiles
from runtime.errors import CheckpointError, TensorError

_GIVEN: Mapping[str, str] = {  # what config.json calls them
    "llama.context_length": "max_position_embeddings",
    "llama.embedding_length": "hidden_size",
    "llama.block_count": "num_hidden_layers",
    "llama.feed_forward_length": "intermediate_size",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL: Mapping[str, str] = {
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.rope.freq_base": "rope_theta",
    "tokenizer.ggml.bos_token_id": "bos_token_id",
}
_HEAD_DIMS = ("llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count")
_SCALING = ("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear")
_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
# Fields that would change the result: the only values that are honoured.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "llama.attention.causal": (True,),
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.tensor_data_layout": ("Meta AI original pth",),
    "tokenizer.ggml.model": ("llama", "gpt2"),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
    "tokenizer.ggml.precompiled_charsmap": ([],),
}
# They say what the model was made from, or repeat what the tensors say.
_IRRELEVANT = ("llama.vocab_size", "llama.rope.scaling.finetuned", "llama.rope.scaling.original_context_length")


def open_gguf(path: Path, context: int | None) -> tuple[ModelConfig, TokenizerFiles, Checkpoint, tuple[str, ...]]:
    """Config, tokenizer, tensors and names of a Llama model; raises ConfigError, CheckpointError or TensorError."""
    file = GgufFile.open(path)
    metadata = file.metadata
    config = _config(file, context)
    tensors = file.by_hugging_face_names(config.heads, config.kv_heads)
    checkpoint = Checkpoint(path, config, tensors)
    called = (metadata.raw.get(key) for key in ("general.name", "general.basename"))
    names = (path.stem, *(str(name) for name in called if name is not None))
    return config, _tokenizer(metadata, config), checkpoint, names


def _config(file: GgufFile, context: int | None) -> ModelConfig:
    """What config.json would say."""
    metadata, given = file.metadata, file.metadata.raw
    _refuse_unknown(metadata)
    if "tokenizer.ggml.model" not in given:
        metadata.refuse("tokenizer.ggml.model", "there: a model without a tokenizer cannot be served")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise TensorError(f"{file.path}: token_embd.weight is missing")
    raw: dict[str, Any] = {"model_type": "llama", "vocab_size": embedding.shape[0]}
    for key, name in _GIVEN.items():
        if key not in given:
            metadata.refuse(key, "there")
        raw[name] = given[key]
    raw |= {name: given[key] for key, name in _OPTIONAL.items() if key in given}
    head_dims = {key: given[key] for key in _HEAD_DIMS if key in given}
    if len(set(head_dims.values())) > 1:
        metadata.refuse(next(iter(head_dims)), f"the same as the others of {', '.join(head_dims)}")
    if head_dims:
        raw["head_dim"] = next(iter(head_dims.values()))
    kind = given.get(_SCALING[0], "linear")  # as llama.cpp has it
    if kind not in ("none", "linear"):
        metadata.refuse(_SCALING[0], 'none or "linear": nothing else is honoured')
    factor = given.get(_SCALING[1], given.get(_SCALING[2]))
    if kind == "linear" and factor:
        raw["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    raw["eos_token_id"] = [given[key] for key in _ENDS if key in given]
    raw["tie_word_embeddings"] = "output.weight" not in file.tensors
    raw["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    raw["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    config = ModelConfig.of(Fields(file.path, raw, "as a config.json, "), context)
    factors = file.tensors.get(ROPE_FACTORS)
    return config if factors is None else _with_factors(config, factors)


def _refuse_unknown(metadata: Fields) -> None:
    known = {*_GIVEN, *_OPTIONAL, *_HEAD_DIMS, *_SCALING, *_IRRELEVANT}
    for key, value in metadata.raw.items():
        if key in _FIXED:
            if value not in _FIXED[key]:
                right = " or ".join(map(repr, _FIXED[key]))
                metadata.refuse(key, f"{right}: nothing else is honoured")
        elif key.startswith("llama.") and key not in known:
            metadata.refuse(key, "absent: it is unknown, so what it changes cannot be honoured")


def _with_factors(config: ModelConfig, factors: Stored) -> ModelConfig:
    """Llama 3.1's scaling, which a GGUF file holds as a divisor of each frequency."""
    if factors.shape != (config.head_dim // 2,):
        raise TensorError(
            f"{factors.file}: {ROPE_FACTORS} has shape {list(factors.shape)}, expected [{config.head_dim // 2}]"
        )
    if config.rope_scaling is not None:
        raise CheckpointError(f"{factors.file}: expected either {ROPE_FACTORS} or {_SCALING[1]}, not both")
    values = tuple(float(value) for value in read(ROPE_FACTORS, factors))
    return replace(config, rope_scaling=RopeScaling("factors", 1.0, factors=values))


def _tokenizer(metadata: Fields, config: ModelConfig) -> TokenizerFiles:
    """Sentencepiece's BPE, with a space before each text between special tokens, as llama.cpp has it; or Llama 3's."""
    texts, kinds = _list(metadata, "tokens", config), _kinds(metadata, config)
    special = {"bos_token": config.bos, "eos_token": config.eos[0] if config.eos else None}
    named = {name: texts[token] for name, token in special.items() if token is not None}
    around = {}
    for name, default in (("bos", True), ("eos", False)):
        wanted = metadata.raw.get(f"tokenizer.ggml.add_{name}_token", default)
        if wanted and f"{name}_token" not in named:
            metadata.refuse(f"tokenizer.ggml.{name}_token_id", f"there, since {name.upper()} goes around every text")
        around[name] = named[f"{name}_token"] if wanted else None
    if metadata.raw["tokenizer.ggml.model"] == "gpt2":
        if metadata.raw.get("tokenizer.ggml.pre") not in NAMES:
            metadata.refuse("tokenizer.ggml.pre", f"one of {', '.join(NAMES)}: no other way to cut texts is honoured")
        merges = metadata.raw.get("tokenizer.ggml.merges") or []
        tokenizer = byte_level_tokenizer(metadata.path, texts, kinds, merges, around)
    else:
        prefix = bool(metadata.raw.get("tokenizer.ggml.add_space_prefix", True))
        scores = _list(metadata, "scores", config)
        pieces = Pieces(metadata.path, tuple(texts), tuple(scores), kinds, prefix)
        tokenizer = to_tokenizer(pieces, Usage(around["bos"], around["eos"], True, {}))
    template = metadata.raw.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        metadata.refuse("tokenizer.chat_template", "a string")
    return TokenizerFiles(tokenizer.to_str(pretty=True), template, named)


def _list(metadata: Fields, name: str, config: ModelConfig) -> list[Any]:
    """One entry for each token."""
    values = metadata.raw.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or len(values) != config.vocab:
        found = f"has {len(values)} entries" if isinstance(values, list) else "is missing"
        raise CheckpointError(
            f"{metadata.path}: tokenizer.ggml.{name} {found}, the rows of token_embd.weight make it {config.vocab}"
        )
    return values


def _kinds(metadata: Fields, config: ModelConfig) -> tuple[Kind, ...]:
    values = _list(metadata, "token_type", config)
    if wrong := set(values) - set(Kind):
        raise CheckpointError(f"{metadata.path}: tokenizer.ggml.token_type has {min(wrong)}, expected 1 to {max(Kind)}")
    return tuple(map(Kind, values))
