"""Tiny random checkpoints and heads for tests, written with numpy alone."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
TYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def tiny_llama(
    directory: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    pickled: bool = False,
    heads: str | None = None,
    **overrides: Any,
) -> Path:
    """A checkpoint; an override of None deletes the field of config.json. `heads`: their layout, among the tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in (CONFIG | overrides).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    tensors = random_tensors(config, seed)
    if heads is not None:
        tensors |= {f"medusa_head.{name}": value for name, value in medusa_tensors(heads).items()}
    tensors = {name: value.astype(TYPES[dtype]) for name, value in tensors.items()}
    write_tensors(directory, tensors, shards, pickled)
    write_tokenizer(directory)
    return directory


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Weights that give logits of a scale of several units, so that every part of the model tells."""
    random = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    query = config["num_attention_heads"] * head_dim
    key = config.get("num_key_value_heads", config["num_attention_heads"]) * head_dim

    def weight(*shape: int) -> np.ndarray:
        return random.normal(0, 1.5 / np.sqrt(shape[-1]), shape).astype(np.float32)

    def vector(size: int, mean: float) -> np.ndarray:
        return random.normal(mean, 0.2, size).astype(np.float32)

    tensors = {"model.embed_tokens.weight": random.normal(0, 1, (config["vocab_size"], hidden)).astype(np.float32)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{norm}.weight"] = vector(hidden, 1.0)
        for name, rows, columns, bias in (
            ("self_attn.q_proj", query, hidden, "attention_bias"),
            ("self_attn.k_proj", key, hidden, "attention_bias"),
            ("self_attn.v_proj", key, hidden, "attention_bias"),
            ("self_attn.o_proj", hidden, query, "attention_bias"),
            ("mlp.gate_proj", inner, hidden, "mlp_bias"),
            ("mlp.up_proj", inner, hidden, "mlp_bias"),
            ("mlp.down_proj", hidden, inner, "mlp_bias"),
        ):
            tensors[f"{layer}.{name}.weight"] = weight(rows, columns)
            if config.get(bias):
                tensors[f"{layer}.{name}.bias"] = vector(rows, 0.0)
    tensors["model.norm.weight"] = vector(hidden, 1.0)
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = weight(config["vocab_size"], hidden)
    return tensors


def write_tensors(directory: Path, tensors: dict[str, np.ndarray], shards: int = 1, pickled: bool = False) -> None:
    """One model.safetensors, or that many shards and their index; the same as pickles."""
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    save = save_pickle if pickled else save_file
    if shards == 1:
        save(tensors, directory / f"{stem}.{suffix}")
        return
    places: dict[str, str] = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05}-of-{shards:05}.{suffix}"
        part = {name: tensors[name] for name in list(tensors)[shard::shards]}
        save(part, directory / file)
        places |= dict.fromkeys(part, file)
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def save_pickle(tensors: dict[str, np.ndarray], path: Path) -> None:
    """As torch.save does; bfloat16 goes through its bits, since numpy's own torch does not know."""
    import torch

    kind = ml_dtypes.bfloat16
    torch.save(
        {
            name: torch.from_numpy(v.view(np.int16)).view(torch.bfloat16) if v.dtype == kind else torch.from_numpy(v)
            for name, v in tensors.items()
        },
        path,
    )


def write_tokenizer(directory: Path) -> None:
    """Bytes and three special tokens: 259 entries."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def medusa_tensors(
    layout: str, *, count: int = 3, layers: int = 1, hidden: int = 64, vocab: int = 300
) -> dict[str, np.ndarray]:
    """Heads in the layout "v1", "v2", "vllm" or "vllm-shared"; equal numbers give equal heads in all that have them."""
    random = np.random.default_rng(1)
    tensors = {}
    for h in range(count):
        for i in range(layers):
            name = f"{h}.{i}.linear" if layout in ("v1", "v2") else f"blocks.{h}.layers.{i}"
            tensors[f"{name}.weight"] = random.normal(0, 0.3, (hidden, hidden)).astype(np.float32)
            tensors[f"{name}.bias"] = random.normal(0, 0.3, hidden).astype(np.float32)
        lm = random.normal(0, 0.2, (vocab, hidden)).astype(np.float32)
        if layout != "v2":
            name = {"v1": f"{h}.{layers}.weight", "vllm": f"lm_heads.{h}.weight"}.get(layout, "lm_head.weight")
            tensors.setdefault(name, lm)
    return tensors


def medusa_heads(directory: Path, layout: str = "v1", **shape: int) -> Path:
    """A directory of heads in safetensors, under the layout's usual name."""
    directory.mkdir(parents=True, exist_ok=True)
    name = "medusa_lm_head.safetensors" if layout in ("v1", "v2") else "model.safetensors"
    save_file(medusa_tensors(layout, **shape), directory / name)
    return directory
