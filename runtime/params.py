"""What a request and an engine can be asked for, each option with its one default, and its range."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from runtime.errors import ConfigurationError, ParameterError

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")
MAX_NODES = 64  # the largest tree, its root included; the cache keeps this much room past the context
MAX_STOPS = 16
MAX_CHUNK = 1024
CHUNKS = {"ragged": 256, "padded": 64}  # unless configured; docs/decisions/0006-adaptive-speculation.md
MAX_LOGPROBS = 20
MAX_PRIORITY = 1000
OPERATORS = ("auto", "native", "stock")
MAX_BIAS = 100  # logits; past any difference that a model makes


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """What an answer's text has to be; exactly one of these, by the names that vLLM gives them."""

    json: str | None = None  # a JSON schema, as JSON text
    json_object: bool = False  # any JSON object
    regex: str | None = None  # that matches the whole text
    choice: tuple[str, ...] | None = None  # one of them, word for word
    grammar: str | None = None  # context-free, in llguidance's Lark syntax

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(f.name for f in fields(self))
            raise ParameterError(f"structured_outputs has {', '.join(given) or 'nothing'}: give exactly one of {names}")
        [name] = given
        value = getattr(self, name)
        if name == "json_object":
            good, right = value is True, "true"
        elif name == "choice":
            good = isinstance(value, tuple | list) and all(isinstance(s, str) and s for s in value) and len(value) > 0
            right = "strings, at least one and none of them empty"
        else:
            good, right = isinstance(value, str), "a string"
        if not good:
            raise ParameterError(f"structured_outputs.{name} is {value!r}: it has to be {right}")
        if name == "choice":
            object.__setattr__(self, name, tuple(value))
        if name == "json":
            _check_schema(value)

    @property
    def kind(self) -> str:
        """The name of the one that is given."""
        return next(f.name for f in fields(self) if getattr(self, f.name) not in (None, False))


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"structured_outputs.json is no JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise ParameterError(f"structured_outputs.json is a {type(schema).__name__}: a JSON schema is an object")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled, and when it ends.

    The distribution of a token is softmax(logits / temperature), then cut to the `top_k` most probable (0: all), to
    the smallest set whose probability reaches `top_p`, and to those at least `min_p` times as probable as the best.
    `temperature` 0 takes the most probable token. A `seed` makes a sampled answer repeatable, in any batch and with
    any `speculation`: "off", "auto", or the number of tree nodes (2 to 64, the root included).

    Before that, `logit_bias` is added to the logits, then tokens that were there already lose by the penalties: by
    `presence_penalty` once and by `frequency_penalty` for each time in the answer; a logit of a token in prompt or
    answer is divided by `repetition_penalty` if positive, and multiplied if not. Then `structured_outputs` leave only
    tokens that its grammar can go on with: no end token before the text is complete, and none other after it.

    `min_tokens` come before any end: no end token, no stop token, and no stop string in their text. A complete
    structured output ends all the same. `logprobs` gives for each token its logarithmic probability and those of so
    many most probable ones, as the model has them: softmax(logits), before all that is said above.

    `typical_acceptance` changes the distribution: at each node of a draft tree it takes the most probable child whose
    probability p exceeds min(0.09, 0.3 e^-H), with H the entropy in nats (Cai et al. 2024, Medusa, section 2.3.1), and
    draws only where there is none. The text then depends on speculation.

    `priority` says who is let in first of those that wait: the lowest number, of equal ones who came first. It changes
    no text, and never ends or pauses a sequence that runs; who waits longest is let in now and then all the same.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    speculation: int | str = "auto"
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None
    typical_acceptance: bool = False
    priority: int = 0

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list):
                raise ParameterError(f"{name} is {value!r}: it has to be a tuple or a list")
            object.__setattr__(self, name, tuple(value))
        if not isinstance(self.logit_bias, Mapping):
            raise ParameterError(f"logit_bias is {self.logit_bias!r}: it has to be a mapping of token ids to numbers")
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        for name, (default, good, right) in _RULES.items():
            value = getattr(self, name)
            if value is not default and not good(value):  # most are as they were, and a request has to be quick
                raise ParameterError(f"{name} is {value!r}: it has to be {right}")


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _number(x: Any) -> bool:
    return _whole(x) or (isinstance(x, float) and math.isfinite(x))


def _truth(x: Any) -> bool:
    return isinstance(x, bool)


def _penalty(x: Any) -> bool:
    return _number(x) and -2 <= x <= 2


def _rules() -> dict[str, tuple[Any, Callable[[Any], bool], str]]:
    """Of each parameter its default, what is right, and that in words."""
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "max_tokens": (lambda x: _whole(x) and x >= 1, "a whole number of at least 1"),
        "temperature": (lambda x: _number(x) and 0 <= x <= 100, "a number from 0 to 100"),
        "top_k": (lambda x: _whole(x) and x >= 0, "a whole number, 0 for no limit"),
        "top_p": (lambda x: _number(x) and 0 < x <= 1, "a number above 0 and at most 1"),
        "min_p": (lambda x: _number(x) and 0 <= x <= 1, "a number from 0 to 1"),
        "seed": (lambda x: x is None or (_whole(x) and 0 <= x < 2**64), "a whole number below 2**64"),
        "stop": (lambda x: len(x) <= MAX_STOPS and all(isinstance(s, str) and s for s in x),
                 f"at most {MAX_STOPS} strings, none of them empty"),
        "stop_token_ids": (lambda x: all(_whole(t) and t >= 0 for t in x), "token ids, from 0"),
        "include_stop_str_in_output": (_truth, "true or false"),
        "ignore_eos": (_truth, "true or false"),
        "typical_acceptance": (_truth, "true or false"),
        "min_tokens": (lambda x: _whole(x) and x >= 0, "a whole number, 0 for none"),
        "presence_penalty": (_penalty, "a number from -2 to 2"),
        "frequency_penalty": (_penalty, "a number from -2 to 2"),
        "repetition_penalty": (lambda x: _number(x) and 0.01 <= x <= 10, "a number from 0.01 to 10"),
        "logit_bias": (lambda x: all(_whole(t) and t >= 0 and _number(b) and abs(b) <= MAX_BIAS for t, b in x.items()),
                       f"token ids, from 0, each with a number from -{MAX_BIAS} to {MAX_BIAS}"),
        "priority": (lambda x: _whole(x) and abs(x) <= MAX_PRIORITY,
                     f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"),
        "logprobs": (lambda x: x is None or (_whole(x) and 0 <= x <= MAX_LOGPROBS),
                     f"a whole number from 0 to {MAX_LOGPROBS}"),
        "structured_outputs": (lambda x: x is None or isinstance(x, StructuredOutputs), "StructuredOutputs"),
        "speculation": (lambda x: x in ("off", "auto") or (_whole(x) and 2 <= x <= MAX_NODES),
                        f'"off", "auto" or a number of nodes from 2 to {MAX_NODES}'),
    }  # fmt: skip
    defaults = {field.name: field.default for field in fields(SamplingParams)}
    return {name: (defaults[name], good, right) for name, (good, right) in rules.items()}


_RULES = _rules()


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs. `context` 0 means the model's own; `kv_memory` is in bytes; `threads` 0 means all cores."""

    rows: int = 8  # sequences that run at the same time
    context: int = 0  # tokens of prompt and answer together
    kv_memory: int = 4 << 30  # what keys and values may take
    chunk: int = 0  # prompt tokens a step, at most; 0: CHUNKS of the graph's form
    queue: int = 1024  # requests that may wait
    threads: int = 0  # of ONNX Runtime
    prefill_slowdown: float = 2.0  # how many times its usual step a sequence may wait beside others' prompts
    lookup: bool = True  # draft what followed the newest tokens where they stood before
    prefix_reuse: bool = True  # keep finished rows for prompts that begin alike
    exact: bool = True  # at least two nodes of a row in stock attention: the same bits in any batch; native has them so
    operators: str = "auto"  # of OPERATORS
    verify: bool = False  # check the files' hashes at load
    provider: str = "auto"  # what runs the graphs: one of PROVIDERS

    def __post_init__(self) -> None:
        low = {"rows": 1, "context": 0, "kv_memory": 1, "chunk": 0, "queue": 0, "threads": 0}
        if isinstance(self.chunk, int) and self.chunk > MAX_CHUNK:
            raise ConfigurationError(
                f"chunk is {self.chunk}: it has to be at most {MAX_CHUNK}, rows see each other squared"
            )
        if self.chunk == 1 and not isinstance(self.chunk, bool):
            raise ConfigurationError("chunk is 1: it has to be 0, for the graph form's own, or at least 2")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "prefill_slowdown":
                if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value < math.inf:
                    raise ConfigurationError(f"{item.name} is {value!r}: it has to be a number of at least 1")
            elif item.name == "provider":
                if value not in PROVIDERS:
                    raise ConfigurationError(f"{item.name} is {value!r}: it has to be one of {', '.join(PROVIDERS)}")
            elif item.name == "operators":
                if value not in OPERATORS:
                    raise ConfigurationError(f"{item.name} is {value!r}: it has to be one of {', '.join(OPERATORS)}")
            elif item.name not in low:
                if not isinstance(value, bool):
                    raise ConfigurationError(f"{item.name} is {value!r}: it has to be true or false")
            elif not isinstance(value, int) or isinstance(value, bool) or value < low[item.name]:
                raise ConfigurationError(
                    f"{item.name} is {value!r}: it has to be a whole number of at least {low[item.name]}"
                )
