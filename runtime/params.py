"""What a request and an engine can be asked for, each option with its one default, and its range."""

import math
from dataclasses import dataclass, fields

from runtime.errors import ConfigurationError, ParameterError

MAX_NODES = 64  # the largest tree, its root included; the cache keeps this much room past the context
MAX_STOPS = 16
MAX_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled, and when it ends.

    The distribution of a token is softmax(logits / temperature), then cut to the `top_k` most probable (0: all), to
    the smallest set whose probability reaches `top_p`, and to those at least `min_p` times as probable as the best.
    `temperature` 0 takes the most probable token. A `seed` makes a sampled answer repeatable, in any batch and with
    any `speculation`: "off", "auto", or the number of tree nodes (2 to 64, the root included).
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

    def __post_init__(self) -> None:
        whole = lambda x: isinstance(x, int) and not isinstance(x, bool)  # noqa: E731
        number = lambda x: whole(x) or isinstance(x, float) and math.isfinite(x)  # noqa: E731
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list):
                raise ParameterError(f"{name} is {value!r}: it has to be a tuple or a list")
            object.__setattr__(self, name, tuple(value))
        rules = (
            ("max_tokens", whole(self.max_tokens) and self.max_tokens >= 1, "a whole number of at least 1"),
            ("temperature", number(self.temperature) and 0 <= self.temperature <= 100, "a number from 0 to 100"),
            ("top_k", whole(self.top_k) and self.top_k >= 0, "a whole number, 0 for no limit"),
            ("top_p", number(self.top_p) and 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("min_p", number(self.min_p) and 0 <= self.min_p <= 1, "a number from 0 to 1"),
            ("seed", self.seed is None or whole(self.seed) and 0 <= self.seed < 2**64, "a whole number below 2**64"),
            ("stop", len(self.stop) <= MAX_STOPS and all(isinstance(s, str) and s for s in self.stop),
             f"at most {MAX_STOPS} strings, none of them empty"),
            ("stop_token_ids", all(whole(t) and t >= 0 for t in self.stop_token_ids), "token ids, from 0"),
            ("ignore_eos", isinstance(self.ignore_eos, bool), "true or false"),
            ("speculation", self.speculation in ("off", "auto") or whole(self.speculation)
             and 2 <= int(self.speculation) <= MAX_NODES, f'"off", "auto" or a number of nodes from 2 to {MAX_NODES}'),
        )  # fmt: skip
        for name, good, right in rules:
            if not good:
                raise ParameterError(f"{name} is {getattr(self, name)!r}: it has to be {right}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs. `context` 0 means the model's own; `kv_memory` is in bytes; `threads` 0 means all cores."""

    rows: int = 8  # sequences that run at the same time
    context: int = 0  # tokens of prompt and answer together
    kv_memory: int = 4 << 30  # what keys and values may take
    chunk: int = 64  # prompt tokens a step, at most
    queue: int = 1024  # requests that may wait
    threads: int = 0  # of ONNX Runtime
    prefill_slowdown: float = 2.0  # how many times its usual step a sequence may wait beside others' prompts
    lookup: bool = True  # draft what followed the newest tokens where they stood before
    exact: bool = True  # at least two nodes a row: the same bits in any batch
    verify: bool = False  # check the files' hashes at load

    def __post_init__(self) -> None:
        low = {"rows": 1, "context": 0, "kv_memory": 1, "chunk": 2, "queue": 0, "threads": 0}
        if isinstance(self.chunk, int) and self.chunk > MAX_CHUNK:
            raise ConfigurationError(
                f"chunk is {self.chunk}: it has to be at most {MAX_CHUNK}, rows see each other squared"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "prefill_slowdown":
                if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value < math.inf:
                    raise ConfigurationError(f"{field.name} is {value!r}: it has to be a number of at least 1")
            elif field.name not in low:
                if not isinstance(value, bool):
                    raise ConfigurationError(f"{field.name} is {value!r}: it has to be true or false")
            elif not isinstance(value, int) or isinstance(value, bool) or value < low[field.name]:
                raise ConfigurationError(
                    f"{field.name} is {value!r}: it has to be a whole number of at least {low[field.name]}"
                )
