"""A synthetic checkpoint as a GGUF file: the same random weights, quantized piece by piece as they are drawn.

K-quants are for llama.cpp to make: theirs are random blocks, whose values spread as the weights do.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from export.config import ModelConfig
from export.demo.dialogue import CHAT_TEMPLATE
from export.gguf_file import ARCHITECTURE, gguf_name, paired_by_neighbours
from export.random_weights import Weight
from export.synthetic_pieces import pieces_of
from runtime.errors import ConfigurationError

BLOCK = 32  # values that are quantized together, but for the K-quants
# Of the K-quants: where a block's float16 scale lies, and that of what is taken away, with which its mean is 0.
SCALES: Mapping[str, tuple[int, int | None, float]] = {
    "Q2_K": (80, 82, 1.5), "Q3_K": (108, None, 0.0), "Q4_K": (0, 2, 7.5), "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
}  # fmt: skip


def check_widths(weights: Sequence[Weight], form: str) -> None:
    """Raises ConfigurationError where blocks of `form` do not divide a matrix."""
    kind = _kind(form)
    for weight in weights:
        if len(weight.shape) > 1 and weight.shape[-1] % (block := gguf.GGML_QUANT_SIZES[kind][0]):
            raise ConfigurationError(
                f"{kind.name} holds {block} values a block, which do not divide {weight.name}'s width of"
                f" {weight.shape[-1]}: choose a form of smaller blocks"
            )


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
    kind = _kind(form)
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
    if kind.name in SCALES:
        return _random_blocks(weight, kind, seed)
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(weight.name.split(".")[-2])
    if heads is not None:  # small enough to be turned as a whole
        whole = np.concatenate(list(weight.pieces(seed))).reshape(weight.shape)
        pieces = iter([paired_by_neighbours(whole, heads)])
    else:
        pieces = weight.pieces(seed)
    # a piece holds whole blocks, since a block divides every width
    return np.concatenate([quantize(piece.reshape(-1, BLOCK), kind).view(np.uint8).ravel() for piece in pieces])


def _random_blocks(weight: Weight, kind: gguf.GGMLQuantizationType, seed: int) -> np.ndarray:
    """Bytes of every content, but for the scales, which give the values the weight's deviation."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    place, other, share = SCALES[kind.name]
    random = np.random.default_rng([seed, zlib.crc32(weight.name.encode())])
    raw = random.integers(0, 256, (weight.size // block, size), np.uint8)

    def scale(blocks: np.ndarray, factor: float) -> None:
        for at, value in ((place, factor), (other, share * factor)):
            if at is not None:
                blocks[:, at : at + 2] = np.array(value, np.float16).reshape(1).view(np.uint8)

    sample = raw[:1024].copy()
    scale(sample, 1.0)
    scale(raw, weight.std / float(dequantize(sample, kind).std()))
    return raw.ravel()


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
    texts, scores, kinds = zip(*pieces_of(tokenizer), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    if config.bos is not None:
        writer.add_bos_token_id(config.bos)
    writer.add_eos_token_id(config.eos[0])
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _kind(form: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[form.removeprefix("gguf-").upper()]
