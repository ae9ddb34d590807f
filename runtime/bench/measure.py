"""One run of a benchmark: some prompts through an engine, a fixed number at a time, and what the steps cost.

Sequences start `concurrency` together, the next ones when all of those have ended: answers may be too short for steps
without a prompt otherwise. Decoding is measured where it is steady: over the steps in which exactly `concurrency`
sequences decode and none prefills. Prompts and tails count only towards `seconds` and `tokens`.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.bench.machine import OtherLoad
from runtime.engine import Engine
from runtime.errors import ConfigurationError, StepError
from runtime.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Setting:
    """What is compared: `speculation` as in SamplingParams, sequences at a time."""

    speculation: int | str
    concurrency: int


@dataclass(frozen=True, slots=True)
class Run:
    """One setting, once. Times in seconds; `decode_`, `session_`, `host_` and `steps` are of the steady steps."""

    setting: Setting
    repeat: int
    requests: int
    tokens: int  # of the whole run
    seconds: float
    steps: int
    decode_tokens: int
    decode_seconds: float
    session_seconds: float
    host_seconds: float
    other_load: float  # share of the machine's processor time that other processes took

    @property
    def tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds

    @property
    def tokens_per_step(self) -> float:
        """Of one sequence."""
        return self.decode_tokens / (self.steps * self.setting.concurrency)

    @property
    def step_ms(self) -> float:
        return self.decode_seconds / self.steps * 1e3

    @property
    def host_ms(self) -> float:
        """Of a step, outside the model's session."""
        return self.host_seconds / self.steps * 1e3


def measure(engine: Engine, setting: Setting, prompts: Sequence[list[int]], params: SamplingParams, repeat: int) -> Run:
    """Answers all prompts, `setting.concurrency` at a time. Raises StepError where a sequence fails."""
    waiting, live = deque(prompts), 0
    tokens = steps = decode_tokens = 0
    decode_seconds = session_seconds = host_seconds = 0.0
    load, begin = OtherLoad(), time.perf_counter()
    after = engine.stats()
    while waiting or live:
        if not live:
            together = [waiting.popleft() for _ in range(min(setting.concurrency, len(waiting)))]
            live = len([engine.add(prompt, params) for prompt in together])
        before, began = after, time.perf_counter()
        outputs = engine.step()
        elapsed = time.perf_counter() - began
        after = engine.stats()
        emitted = sum(len(output.tokens) for output in outputs)
        tokens += emitted
        if live == setting.concurrency and after["prefilled"] == before["prefilled"]:
            steps += 1
            decode_tokens += emitted
            decode_seconds += elapsed
            session_seconds += after["session_seconds"] - before["session_seconds"]
            host_seconds += after["host_seconds"] - before["host_seconds"]
        for output in outputs:
            if output.finish_reason == "error":
                raise StepError(f"a sequence failed while it was measured: {output.sequence.error}")
            live -= output.finish_reason is not None
    if not steps:
        raise ConfigurationError(
            f"no step had {setting.concurrency} sequences decoding: give more --requests or --max-tokens"
        )
    seconds = time.perf_counter() - begin
    return Run(
        setting, repeat, len(prompts), tokens, seconds, steps, decode_tokens, decode_seconds, session_seconds,
        host_seconds, load.share(),
    )  # fmt: skip
