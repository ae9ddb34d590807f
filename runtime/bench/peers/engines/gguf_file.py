"""A GGUF file of a Hugging Face Llama checkpoint, written with the `gguf` package.

Matrices are quantized by `gguf.quants`, all of them alike; vectors stay float32. Rows of q_proj and k_proj are put into
the order of llama.cpp's rotary form, in which the two halves of a head alternate.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes  # noqa: F401 (numpy's bfloat16, which safetensors looks up by name)
import numpy as np
from safetensors import safe_open

TYPES = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INSIDE = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def write_gguf(checkpoint: Path, out: Path, precision: str) -> None:
    """`precision` is a key of TYPES. Raises KeyError for a tensor that a plain Llama does not have."""
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(out, "llama", use_temp_file=True)
    _describe(writer, config, FILE_TYPES[precision])
    _tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text("utf-8")), config)
    heads = config["num_attention_heads"]
    for name, values in _tensors(checkpoint):
        if name.endswith("q_proj.weight"):
            values = _interleave(values, heads)
        elif name.endswith("k_proj.weight"):
            values = _interleave(values, config.get("num_key_value_heads") or heads)
        if values.ndim == 1:
            writer.add_tensor(_name(name), values)
        else:
            kind = TYPES[precision]
            writer.add_tensor(_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any], kind: Any) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if config.get("rope_scaling") is not None or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("rope_scaling and biases are not written here: compare a checkpoint without them")
    rope = config.get("rope_parameters") or {}
    writer.add_name("checkpoint")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    head_dim = config.get("head_dim") or hidden // heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(kind)


def _tokenizer(writer: Any, raw: dict[str, Any], config: dict[str, Any]) -> None:
    """As llama.cpp wants it to load a model; prompts come as token ids."""
    special = {token["id"]: token["content"] for token in raw["added_tokens"]}
    pieces = {i: piece for piece, i in raw["model"]["vocab"].items()} | special
    tokens, kinds = [], []
    for i in range(config["vocab_size"]):
        piece = pieces.get(i, f"<unused{i}>")
        byte = piece.startswith("<0x") and len(piece) == 6
        control = gguf.TokenType.UNKNOWN if piece == "<unk>" else gguf.TokenType.CONTROL
        normal = gguf.TokenType.NORMAL if i in pieces else gguf.TokenType.UNUSED
        tokens.append(piece.encode())
        kinds.append(control if i in special else gguf.TokenType.BYTE if byte else normal)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types(kinds)
    end = config["eos_token_id"]
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end)


def _tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the checkpoint as float32, one at a time."""
    index = checkpoint / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    for file in files:
        with safe_open(checkpoint / file, framework="numpy") as stored:
            for name in stored.keys():
                if not name.endswith("rotary_emb.inv_freq"):
                    yield name, stored.get_tensor(name).astype(np.float32)


def _name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{INSIDE[rest]}"


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
