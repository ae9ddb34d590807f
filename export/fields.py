"""A JSON object's fields, read with their types checked, and what is known of those in a Llama config.json.

Each field is honoured, known to change nothing, or refused by name; an unknown one is refused too.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from runtime.errors import CheckpointError, ConfigError

HONOURED = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "max_sequence_length", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id",
    "sliding_window", "layer_types",
})  # fmt: skip

# Fields that would change the result: the only values that are honoured, the first being the one to ask for.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"], ["MedusaModelLlama"], ["MedusaLlamaForCausalLM"], None),
    "hidden_act": ("silu", "swish"),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "auto_map": (None,),
    "per_layer_config": (None, {}),
    "pruned_heads": ({}, None),
    "chunk_size_feed_forward": (0, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
    "cross_attention_hidden_size": (None,),
}

# Fields that change nothing here, by the reason.
IRRELEVANT: Mapping[str, str] = {
    name: reason
    for reason, names in {
        "training only": "initializer_range attention_dropout gradient_checkpointing use_bfloat16",
        "each tensor says its own type": "dtype torch_dtype",
        "the cache is the artifact's own": "use_cache",
        "what transformers returns, not what it computes": "output_attentions output_hidden_states return_dict "
        "torchscript tie_last_hidden_states is_decoder _attn_implementation _attn_implementation_autoset "
        "attn_implementation _flash_attn_2_enabled keys_to_ignore_at_inference",
        "a note on where the files come from": "_name_or_path name_or_path _commit_hash transformers_version "
        "unsloth_version unsloth_fixed is_llama_config transformers.js_config base_model_name_or_path version",
        "for classifiers": "id2label label2id num_labels problem_type finetuning_task task_specific_params",
        "the tokenizer's files say it": "tokenizer_class prefix",
        "sequences are never padded": "pad_token_id sep_token_id decoder_start_token_id",
        "heads are counted from their tensors": "medusa_num_heads medusa_num_layers",
        "each request brings its own sampling": "max_length min_length do_sample early_stopping num_beams temperature "
        "top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
        "bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id "
        "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
        "begin_suppress_tokens num_beam_groups diversity_penalty",
        "of TensorFlow": "tf_legacy_loss",
    }.items()
    for name in names.split()
}


class Fields:
    """One object of a JSON file; errors name the file, the field (after `prefix`), what it is and what it has to be."""

    def __init__(self, path: Path, raw: Mapping[str, Any], prefix: str = "") -> None:
        self.path, self.raw, self.prefix = path, raw, prefix

    def refuse(self, name: str, right: str) -> NoReturn:
        found = json.dumps(self.raw[name]) if name in self.raw else "missing"
        raise ConfigError(f"{self.path}: {self.prefix}{name} is {found}, it has to be {right}")

    def refuse_unknown(self) -> None:
        """Raises ConfigError for a field of config.json that is neither honoured nor known to change nothing."""
        for name, value in self.raw.items():
            if name in FIXED:
                if not any(
                    value == right and isinstance(value, bool) == isinstance(right, bool) for right in FIXED[name]
                ):
                    self.refuse(name, f"{json.dumps(FIXED[name][0])}: nothing else is honoured")
            elif name not in HONOURED and name not in IRRELEVANT:
                raise ConfigError(
                    f"{self.path}: {name} is an unknown field ({json.dumps(value)}), so what it changes cannot be "
                    "honoured; delete it if it changes nothing"
                )

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(name, "a whole number of at least 1")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            self.refuse(name, "a number above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.raw.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "true or false")
        return bool(value)

    def inner(self, name: str) -> "Fields":
        """The object in a field."""
        value = self.raw.get(name)
        if not isinstance(value, dict):
            self.refuse(name, "an object or null")
        return Fields(self.path, value, f"{self.prefix}{name}.")

    def token_ids(self, name: str, vocab: int) -> tuple[int, ...]:
        """A token id, a list of them, or null for none."""
        value = self.raw.get(name)
        ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
        if any(not isinstance(t, int) or isinstance(t, bool) or not 0 <= t < vocab for t in ids):
            self.refuse(name, f"null or token ids below vocab_size, which is {vocab}")
        return ids


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} is missing: a checkpoint is a Hugging Face directory with config.json, tensors and a tokenizer"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a {type(raw).__name__}, not an object")
    return raw
