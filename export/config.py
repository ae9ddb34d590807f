"""A Llama checkpoint's config.json as the numbers that decide its result.

Spellings of transformers 4 (rope_theta, rope_scaling, torch_dtype) and 5 (rope_parameters, dtype) are both read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from export.fields import Fields, read_object
from runtime.errors import ConfigError

FILE = "config.json"
GENERATION_FILE = "generation_config.json"
ROPE_THETA = 10000.0  # where config.json does not say
HEAD_DIM_STEP = 16  # GroupQueryAttention with rotary positions takes no other


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched: three fields are llama3's, `factors` [head_dim / 2] a GGUF file's."""

    kind: Literal["linear", "llama3", "factors"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context: int = 0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The architecture of one Llama checkpoint; `context` in tokens."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool  # lm_head is the embedding
    attention_bias: bool
    mlp_bias: bool
    bos: int | None
    eos: tuple[int, ...]  # any of them ends an answer

    @classmethod
    def read(cls, directory: Path, context: int | None = None) -> "ModelConfig":
        """Reads config.json, and generation_config.json's end tokens where it names any, as transformers does.

        `context` asks for another than the default. Raises ConfigError for a field that is missing, wrong or not
        honoured, CheckpointError for a broken file.
        """
        fields = Fields(directory / FILE, read_object(directory / FILE))
        if "model_type" not in fields.raw:
            fields.refuse("model_type", '"llama"')
        path = directory / GENERATION_FILE
        generation = Fields(path, read_object(path)) if path.is_file() else None
        return cls.of(fields, context, generation)

    @classmethod
    def of(cls, fields: Fields, context: int | None, generation: Fields | None = None) -> "ModelConfig":
        """As `read`, from what stands in the two files."""
        fields.refuse_unknown()
        heads, hidden = fields.whole("num_attention_heads"), fields.whole("hidden_size")
        kv_heads = fields.whole("num_key_value_heads", heads)
        if heads % kv_heads:
            fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
        if fields.raw.get("head_dim") is None and hidden % heads:
            fields.refuse(
                "num_attention_heads", f"a divisor of hidden_size, which is {hidden}, where head_dim is not given"
            )
        head_dim = fields.whole("head_dim", hidden // heads)
        if head_dim % HEAD_DIM_STEP:
            given = "" if "head_dim" in fields.raw else f"; hidden_size and num_attention_heads make it {head_dim}"
            fields.refuse("head_dim", f"a multiple of {HEAD_DIM_STEP}, as ONNX Runtime's attention takes it{given}")
        vocab = fields.whole("vocab_size")
        theta, scaling = _rope(fields)
        own = fields.token_ids("eos_token_id", vocab)
        bos = fields.token_ids("bos_token_id", vocab)
        if len(bos) > 1:
            fields.refuse("bos_token_id", "null or one token id")
        return cls(
            layers=fields.whole("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=fields.whole("intermediate_size"),
            vocab=vocab,
            context=_context(fields, scaling, context),
            norm_eps=fields.positive("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            tied=fields.flag("tie_word_embeddings"),
            attention_bias=fields.flag("attention_bias"),
            mlp_bias=fields.flag("mlp_bias"),
            bos=bos[0] if bos else None,
            eos=(() if generation is None else generation.token_ids("eos_token_id", vocab)) or own,
        )


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Rotary angle a position, float64 [head_dim / 2]; float32 values, as models are trained with."""
    # theta ** (-2i / head_dim): Su et al., RoFormer, 2021
    frequency = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        frequency = frequency / scaling.factor
    elif scaling is not None and scaling.kind == "factors":
        frequency = frequency / np.array(scaling.factors)
    elif scaling is not None:
        # Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between interpolated.
        turns = scaling.original_context * frequency / (2 * math.pi)
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        frequency = kept * frequency + (1 - kept) * frequency / scaling.factor
    return frequency.astype(np.float32).astype(np.float64)


_ROPE_FIELDS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
}


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, from rope_theta and rope_scaling or from rope_parameters."""
    outer = fields.positive("rope_theta", ROPE_THETA)
    given = [fields.inner(name) for name in ("rope_parameters", "rope_scaling") if fields.raw.get(name) is not None]
    if not given:
        return outer, None
    if len(given) == 2 and given[0].raw != given[1].raw:
        fields.refuse("rope_scaling", "the same as rope_parameters where both are given")
    rope = given[0]
    spelling = "type" if "rope_type" not in rope.raw and "type" in rope.raw else "rope_type"
    kind = rope.raw.get(spelling, "default")
    if not isinstance(kind, str) or kind not in _ROPE_FIELDS or rope.raw.get("type", kind) != kind:
        rope.refuse(spelling, f"one of {', '.join(_ROPE_FIELDS)}, and no other in type")
    for name in rope.raw.keys() - _ROPE_FIELDS[kind] - {"rope_type", "type", "rope_theta"}:
        if name != "partial_rotary_factor" or rope.raw[name] not in (None, 1):
            rope.refuse(name, f"absent, since it is not honoured with {kind} positions")
    theta = rope.positive("rope_theta", outer)
    if fields.raw.get("rope_theta") is not None and theta != outer:
        rope.refuse("rope_theta", f"the same as rope_theta outside, which is {outer}")
    if kind == "default":
        return theta, None
    factor = rope.positive("factor")
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if high <= low:
        rope.refuse("high_freq_factor", f"above low_freq_factor, which is {low}")
    return theta, RopeScaling("llama3", factor, low, high, rope.whole("original_max_position_embeddings"))


def _context(fields: Fields, scaling: RopeScaling | None, asked: int | None) -> int:
    """The context to export: max_position_embeddings, or what max_sequence_length or the caller says.

    With linear scaling, max_position_embeddings often stays that of the unscaled model (vicuna-7b-v1.5-16k: 4096 with
    factor 4); the two others may then go up to its product with the factor.
    """
    own = fields.whole("max_position_embeddings")
    limit = max(own, int(own * scaling.factor)) if scaling is not None and scaling.kind == "linear" else own
    context = fields.whole("max_sequence_length", own)
    if context > limit:
        fields.refuse("max_sequence_length", f"at most {limit}, the positions that the other fields allow")
    if asked is not None:
        if not 1 <= asked <= limit:
            raise ConfigError(f"{fields.path}: a context of {asked} was asked for, the checkpoint allows 1 to {limit}")
        context = asked
    layer_types = fields.raw.get("layer_types")
    if layer_types is not None and (not isinstance(layer_types, list) or set(layer_types) - {"full_attention"}):
        fields.refuse("layer_types", "full_attention in every layer")
    if fields.raw.get("sliding_window") is not None and fields.whole("sliding_window") < context:
        fields.refuse("sliding_window", f"null or at least the context, which is {context}: export a smaller context")
    return context
