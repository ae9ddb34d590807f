"""GGUF files for tests, as llama.cpp's converter lays them out; tensors may be given as raw blocks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from tests.checkpoints import CONFIG, random_tensors

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
Kind = gguf.GGMLQuantizationType


def gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    part, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{PARTS[part]}.{suffix}"


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k, as its convert_hf_to_gguf.py has it."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def random_blocks(kind: Kind, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Blocks of every possible content, of a tensor of this shape, but for their float16 scales, which are small."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (shape[0] * shape[1] // block, size), np.uint8)
    places = {
        Kind.Q4_0: (0,), Kind.Q5_0: (0,), Kind.Q8_0: (0,), Kind.Q4_1: (0, 2), Kind.Q5_1: (0, 2), Kind.Q2_K: (80, 82),
        Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,),
    }  # fmt: skip
    for place in places[kind]:
        scale = random.normal(0, 1.5 / block**0.5 / 16, len(raw)).astype(np.float16)
        raw[:, place : place + 2] = scale[:, None].view(np.uint8)
    return raw.reshape(shape[0], -1)


class Gguf:
    """One file in the making: metadata and tensors may be changed before it is written."""

    def __init__(
        self, overrides: Mapping[str, Any] = {}, kind: Kind = Kind.F32, others: Mapping[str, Kind] = {}
    ) -> None:
        """A random tiny Llama, every matrix of `kind` but those that `others` has by their Hugging Face names.

        Where `tie_word_embeddings` is set there is no output.weight.
        """
        self.config = CONFIG | {"vocab_size": 320} | dict(overrides)
        random = np.random.default_rng(7)
        heads = {"q_proj": self.config["num_attention_heads"], "k_proj": self.config["num_key_value_heads"]}
        self.tensors: dict[str, tuple[np.ndarray, Kind]] = {}  # as stored
        self.values: dict[str, np.ndarray] = {}  # what they stand for, by their Hugging Face names
        for name, values in random_tensors(self.config, 0).items():
            count = next((count for part, count in heads.items() if f".{part}." in name), None)
            own = Kind.F32 if values.ndim == 1 else others.get(name, kind)
            if own in (Kind.F32, Kind.F16, Kind.BF16):
                rows = values if count is None else permuted(values, count)
                stored = quantize(rows, own)
            else:
                stored = random_blocks(own, values.shape, random)
            self.tensors[gguf_name(name)] = stored, own
            plain = dequantize(stored, own).reshape(values.shape)
            if count is not None:  # back to Hugging Face's order: the inverse of `permuted`
                plain = plain.reshape(count, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
            self.values[name] = plain
        self.metadata: dict[str, Any] = self._metadata()
        self.tokens = self._tokens()

    def _metadata(self) -> dict[str, Any]:
        config = self.config
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return {
            "llama.context_length": config["max_position_embeddings"],
            "llama.embedding_length": config["hidden_size"],
            "llama.block_count": config["num_hidden_layers"],
            "llama.feed_forward_length": config["intermediate_size"],
            "llama.attention.head_count": config["num_attention_heads"],
            "llama.attention.head_count_kv": config["num_key_value_heads"],
            "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "llama.rope.dimension_count": head_dim,
            "llama.vocab_size": config["vocab_size"],
            "general.name": "Tiny",
            "general.file_type": 0,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
        }

    def _tokens(self) -> list[tuple[str, float, int]]:
        """Text, score and kind: special tokens, bytes, and a few pieces."""
        tokens = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
        tokens += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
        pieces = ["▁a", "in", "▁t", "er", "he", "▁the", "▁▁", *"▁abcdefghijklmnopqrstuvwxyz0123456789"]
        tokens += [(piece, -float(rank), 1) for rank, piece in enumerate(pieces)]
        return tokens + [(f"[PAD{i}]", -1000.0, 5) for i in range(len(tokens), self.config["vocab_size"])]

    def write(self, path: Path, architecture: str = "llama") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, architecture)
        adders: dict[type, Callable[[str, Any], None]] = {
            int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool,
            list: writer.add_array,
        }  # fmt: skip
        for key, value in self.metadata.items():
            adders[type(value)](key, value)
        writer.add_token_list([text for text, _, _ in self.tokens])
        writer.add_token_scores([score for _, score, _ in self.tokens])
        writer.add_token_types([kind for _, _, kind in self.tokens])
        for name, (stored, kind) in self.tensors.items():
            writer.add_tensor(name, stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
