"""How long answers took and how large they were: histograms, without a lock."""

import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from service.answer import Answer

# vLLM's bounds, and below them what small models need: seconds
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
         160.0, 640.0, 2560.0)  # fmt: skip
GAP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
       10.0, 20.0, 40.0, 80.0)  # fmt: skip
WHOLE = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
         120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip


TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


class Histogram:
    """Counts of seconds or tokens between bounds. One thread's: prometheus_client's takes two locks an observation."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # the last: more than any bound
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """(bound, how many are not above it), as Prometheus has them."""
        return buckets(self._bounds, self._counts)


def buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """(bound, how many are not above it) of counts between bounds, the last of them above all."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(counts)), strict=True))


class Latencies:
    """Of answers that came to their end, by stop or length; those that were broken off would distort them."""

    def __init__(self) -> None:
        self.first = Histogram(FIRST)
        self.gap = Histogram(GAP)
        self.per_token = Histogram(GAP)
        self.whole = Histogram(WHOLE)
        self.queue, self.prefill, self.decode, self.inference = (Histogram(WHOLE) for _ in range(4))
        self.prompt, self.computed, self.answer, self.asked = (Histogram(TOKENS) for _ in range(4))

    def observe(self, answer: Answer) -> None:
        """An answer that has just ended. The first token's text is there with the end if it has none of its own."""
        assert answer.sequence is not None
        ended = time.monotonic()
        first = ended if answer.first is None else answer.first
        self.first.observe(first - answer.began)
        self.whole.observe(ended - answer.began)
        if len(answer.sequence.tokens) > 1:
            self.per_token.observe((ended - first) / (len(answer.sequence.tokens) - 1))
        for gap in answer.gaps:
            self.gap.observe(gap)
        sequence = answer.sequence
        if sequence.started is not None and sequence.first is not None and sequence.ended is not None:
            self.queue.observe(sequence.started - sequence.arrived)
            self.prefill.observe(sequence.first - sequence.started)
            self.decode.observe(sequence.ended - sequence.first)
            self.inference.observe(sequence.ended - sequence.started)
        self.prompt.observe(len(sequence.prompt))
        self.computed.observe(len(sequence.prompt) - sequence.cached)
        self.answer.observe(len(sequence.tokens))
        self.asked.observe(min(sequence.params.max_tokens, 1 << 30))  # any whole number may be asked for
