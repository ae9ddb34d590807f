"""What a request is checked for before it may wait, and what it reserves: no state, no session."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.errors import ContextError, MemoryBudgetError, ParameterError, PromptError
from runtime.manifest import Manifest
from runtime.params import MAX_NODES, EngineConfig, SamplingParams

AUTO_NODES = 32  # of the largest tree that `speculation: "auto"` may come to: it sets memory aside for them


@dataclass(frozen=True, slots=True)
class Admission:
    """`nodes` of the largest tree, the root included (1: plain decoding); `limit` tokens to emit; `reserved` bytes of
    keys and values."""

    nodes: int
    limit: int
    reserved: int


def admit(prompt: Sequence[int], params: SamplingParams, manifest: Manifest, config: EngineConfig) -> Admission:
    """Raises PromptError, ContextError, ParameterError or MemoryBudgetError for what can never be served."""
    _check_prompt(prompt, manifest, config)
    for name in ("stop_token_ids", "logit_bias"):
        if unknown := [token for token in getattr(params, name) if token >= manifest.vocab]:
            raise ParameterError(f"{name} has {unknown[0]}: the vocabulary ends at {manifest.vocab - 1}")
    if params.min_tokens > params.max_tokens:
        raise ParameterError(f"min_tokens is {params.min_tokens}: it has to be at most max_tokens, {params.max_tokens}")
    if params.structured_outputs is not None:
        if params.ignore_eos:
            raise ParameterError("ignore_eos is true: with structured_outputs, their grammar says where the end may be")
        if not manifest.eos:
            raise ParameterError(f"structured_outputs need an end token: {manifest.name} was exported without one")
    nodes = _nodes(params, manifest, config)
    limit = min(params.max_tokens, config.context - len(prompt))
    return Admission(nodes, limit, _reservation(len(prompt), limit, nodes, manifest, config))


def _check_prompt(prompt: Sequence[int], manifest: Manifest, config: EngineConfig) -> None:
    if len(prompt) == 0:
        raise PromptError("the prompt is empty: it has to have at least one token")
    if len(prompt) > config.context:
        raise ContextError(f"the prompt has {len(prompt)} tokens, the context {config.context}")
    for i, token in enumerate(prompt):
        if not isinstance(token, int | np.integer) or not 0 <= token < manifest.vocab:
            raise PromptError(f"token {i} of the prompt is {token!r}: the vocabulary is 0 to {manifest.vocab - 1}")


def _nodes(params: SamplingParams, manifest: Manifest, config: EngineConfig) -> int:
    if params.speculation == "off":
        return 1
    if not manifest.medusa_heads:
        if params.speculation != "auto":
            raise ParameterError(f"speculation is {params.speculation}: {manifest.name} was exported without heads")
        return AUTO_NODES if config.lookup else 1
    return AUTO_NODES if params.speculation == "auto" else int(params.speculation)


def kv_bytes(tokens: int, manifest: Manifest) -> int:
    """Bytes of keys and values that so many tokens of a row take, in whole pages."""
    page = max(1, mmap.PAGESIZE // (manifest.value_bytes * manifest.head_dim))  # tokens of one key-value head in a page
    return -(-tokens // page) * page * manifest.kv_bytes


def longest(manifest: Manifest, config: EngineConfig) -> int:
    """Tokens of prompt and answer that one request may have at most, whatever it drafts."""
    page = kv_bytes(1, manifest)
    fitting = config.kv_memory // page * (page // manifest.kv_bytes) - MAX_NODES
    return max(0, min(config.context, fitting))


def _reservation(prompt: int, limit: int, nodes: int, manifest: Manifest, config: EngineConfig) -> int:
    """Bytes of keys and values a request may come to need."""
    need = kv_bytes(prompt + limit + nodes, manifest)
    if need > config.kv_memory:
        raise MemoryBudgetError(
            f"{prompt} prompt tokens + {limit} to emit + {nodes} tree nodes take {need // manifest.kv_bytes} x"
            f" {manifest.kv_bytes} bytes = {need} of keys and values, the budget is {config.kv_memory}: ask for fewer"
            " tokens"
        )
    return need
