"""A synthetic checkpoint as a GGUF file: the same random weights, quantized piece by piece as they are drawn."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

from export.config import ModelConfig
from export.demo.dialogue import CHAT_TEMPLATE
from export.gguf_file import ARCHITECTURE, gguf_name, paired_by_neighbours
from export.pieces import Kind
from export.random_weights import Weight

BLOCK = 32  # values that are quantized together


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: Sequence[Weight],
    form: str,
    tokenizer: Mapping[str, Any],
    seed: int,
    progress: Callable[[int], object],
) -> None:
    """Matrices in the type that `form` names, vectors in float32; `tokenizer` as tokenizer.json has it.

    `path` appears when it is whole.
    """
    kind = gguf.GGMLQuantizationType[form.removeprefix("gguf-").upper()]
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURE)
    _describe(writer, config)
    _tokens(writer, config, tokenizer)
    for weight in weights:
        own = gguf.GGMLQuantizationType.F32 if len(weight.shape) == 1 else kind
        block, size = gguf.GGML_QUANT_SIZES[own]
        writer.add_tensor_info(
            gguf_name(weight.name), weight.shape, np.dtype(np.float32), weight.size // block * size, own
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for weight in weights:
        writer.write_tensor_data(_stored(weight, config, kind, seed))
        progress(2 * weight.size)
    writer.close()
    part.rename(path)


def _stored(weight: Weight, config: ModelConfig, kind: gguf.GGMLQuantizationType, seed: int) -> np.ndarray:
    """Bytes of one tensor."""
    if len(weight.shape) == 1:
        return np.concatenate(list(weight.pieces(seed)))
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(weight.name.split(".")[-2])
    if heads is not None:  # small enough to be turned as a whole
        whole = np.concatenate(list(weight.pieces(seed))).reshape(weight.shape)
        pieces = iter([paired_by_neighbours(whole, heads)])
    else:
        pieces = weight.pieces(seed)
    # a piece holds whole blocks, since a block divides every width
    return np.concatenate([quantize(piece.reshape(-1, BLOCK), kind).view(np.uint8).ravel() for piece in pieces])


def _describe(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab)


def _tokens(writer: gguf.GGUFWriter, config: ModelConfig, tokenizer: Mapping[str, Any]) -> None:
    """Pieces whose scores are the ranks of the merges that make them."""
    special = {token["id"] for token in tokenizer["added_tokens"]}
    texts = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(tokenizer["model"]["merges"]):
        ranks.setdefault("".join(pair), rank)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(ranks.get(text, len(ranks))) for text in texts])
    writer.add_token_types([_kind(i, text, special) for i, text in enumerate(texts)])
    if config.bos is not None:
        writer.add_bos_token_id(config.bos)
    writer.add_eos_token_id(config.eos[0])
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _kind(token: int, text: str, special: set[int]) -> Kind:
    if token in special:
        return Kind.UNKNOWN if token == 0 else Kind.CONTROL
    if text.startswith("<0x") and len(text) == 6:
        return Kind.BYTE
    return Kind.UNUSED if text.startswith("▁unused") else Kind.NORMAL
