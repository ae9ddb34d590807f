"""One request as its client saw it, and what a run of them comes to.

The figures are those of `vllm bench serve` (vllm/benchmarks/serve.py); where guidellm calls one otherwise it is noted:

time to first token     from sending a request to its first event with text: connection, queue, and prompt included.
time per token          (end - first event) / (tokens - 1) of one answer, its tokens as the service's `usage` counts
                        them; answers of one token have none. vLLM's TPOT, guidellm's inter-token latency. The prompt's
                        own step gives one token, so what follows the first event is tokens - 1, but where that token's
                        text is held back (half a character, what may begin a stop string) it comes a step later.
gap                     between an event with text and the one before it, in one answer: what a reader waits. vLLM's
                        ITL. An event is the text of a step, or of several (`--stream-interval`), and a gap is not the
                        time of one: that is the time per token. Events that one read brought have a gap of 0. The last
                        event, which has no text but `usage`, comes with the last text and makes no gap.
latency                 from sending a request to its end. vLLM's E2EL, guidellm's request latency.
throughput              tokens and requests of the answers that were completed, by the seconds from the start of the run
                        to the end of its last answer; the tail, in which clients run out of requests, is included.
goodput                 as throughput, of those answers only whose time per token and time to first token are within the
                        limits; an answer of one token has no time per token to exceed.

Percentiles interpolate linearly; those of gaps are over all gaps of a run, the others over its answers. A request that
is not answered to its end has an outcome that says so. It counts among the errors and in no other figure: what it did
receive is no throughput.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.bench.arrivals import Load
from runtime.bench.processors import Shares
from runtime.errors import StepError

Outcome = Literal["completed", "refused", "not ready", "failed", "disconnected", "timed out"]
"""refused: 429. not ready: 503. failed: any other status, or an answer that ended with an error. disconnected: no
connection, or it broke off before the end. timed out: nothing came for as long as the client waits."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Times in seconds since the run began."""

    due: float  # when it was to be sent
    sent: float
    events: tuple[float, ...]  # arrivals of text
    end: float
    outcome: Outcome
    prompt_tokens: int = 0
    tokens: int = 0
    error: str | None = None

    @property
    def first(self) -> float:
        """Time to first token; an answer without any text shows itself by its end."""
        return (self.events[0] if self.events else self.end) - self.sent

    @property
    def latency(self) -> float:
        return self.end - self.sent

    @property
    def per_token(self) -> float | None:
        if self.tokens < 2:
            return None
        return (self.latency - self.first) / (self.tokens - 1)

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.events, self.events[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Percentiles:
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles | None":
        """None of nothing."""
        return cls(*np.percentile(values, (50, 95, 99)).tolist()) if values else None


@dataclass(frozen=True, slots=True)
class Limits:
    """What good answers keep to, in seconds."""

    per_token: float
    first: float | None = None

    def keeps(self, timeline: Timeline) -> bool:
        per_token = timeline.per_token or 0.0
        return per_token <= self.per_token and (self.first is None or timeline.first <= self.first)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is compared: `speculation` as in SamplingParams, under a load, over HTTP or in the engine itself."""

    load: Load
    speculation: int | str
    via: Literal["http", "engine"] = "http"


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One setting, once. Times in seconds."""

    setting: Setting
    repeat: int
    requests: int
    completed: int
    good: int  # of those completed
    errors: dict[str, int]  # by outcome
    prompt_tokens: int
    tokens: int
    good_tokens: int
    seconds: float
    first: Percentiles
    latency: Percentiles
    per_token: Percentiles | None  # None: no answer had two tokens
    gap: Percentiles | None  # None: no answer had two events
    late: float  # the longest that a request was sent after it was due: more than a few ms is a client too slow
    shares: Shares

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def requests_per_second(self) -> float:
        return self.completed / self.seconds

    @property
    def goodput(self) -> float:
        """Requests a second."""
        return self.good / self.seconds

    @property
    def good_tokens_per_second(self) -> float:
        return self.good_tokens / self.seconds


def summarize(setting: Setting, repeat: int, timelines: Sequence[Timeline], limits: Limits, shares: Shares) -> LoadRun:
    """The figures of a run. Raises StepError where no request was completed: that run has none."""
    done = [timeline for timeline in timelines if timeline.outcome == "completed"]
    outcomes = Counter(timeline.outcome for timeline in timelines)
    first = Percentiles.of([timeline.first for timeline in done])
    latency = Percentiles.of([timeline.latency for timeline in done])
    if first is None or latency is None:
        error = next((timeline.error for timeline in timelines if timeline.error), None)
        counted = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
        raise StepError(f"no request was answered with {setting.load}: {counted or 'none was sent'}; {error}")
    good = [timeline for timeline in done if limits.keeps(timeline)]
    return LoadRun(
        setting=setting,
        repeat=repeat,
        requests=len(timelines),
        completed=len(done),
        good=len(good),
        errors={outcome: number for outcome, number in outcomes.items() if outcome != "completed"},
        prompt_tokens=sum(timeline.prompt_tokens for timeline in done),
        tokens=sum(timeline.tokens for timeline in done),
        good_tokens=sum(timeline.tokens for timeline in good),
        seconds=max(timeline.end for timeline in timelines),
        first=first,
        latency=latency,
        per_token=Percentiles.of([timeline.per_token for timeline in done if timeline.per_token is not None]),
        gap=Percentiles.of([gap for timeline in done for gap in timeline.gaps]),
        late=max(timeline.sent - timeline.due for timeline in timelines),
        shares=shares,
    )
