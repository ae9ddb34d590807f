"""From repeated runs to figures: medians with their spread, and a speed-up with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from runtime.bench.measure import Run, Setting

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A median of paired ratios, and an interval that holds the true median with `confidence`."""

    median: float
    low: float
    high: float
    confidence: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Ratio":
        """The interval between the k-th smallest and the k-th largest, for the largest k that keeps 95 %.

        The true median lies outside with probability 2 * P(Binomial(n, 1/2) < k), whatever the ratios' distribution
        (the sign test's interval). Below 6 pairs even k = 1 is less than 95 % sure: `confidence` says what it is.
        """
        ordered, n = sorted(ratios), len(ratios)
        outside = np.cumsum([comb(n, i) / 2**n for i in range(n // 2 + 1)]) * 2  # [k - 1]
        k = max(1, int(np.searchsorted(outside, 1 - CONFIDENCE, side="right")))
        return cls(float(np.median(ordered)), ordered[k - 1], ordered[n - k], max(0.0, 1 - float(outside[k - 1])))


@dataclass(frozen=True, slots=True)
class Figures:
    """What the runs of one setting come to; `speedup` over plain decoding, where that was measured."""

    setting: Setting
    runs: int
    tokens_per_second: Spread
    tokens_per_step: Spread
    step_ms: Spread
    host_ms: Spread
    overall_tokens_per_second: Spread  # prompts, start and tail included
    speedup: Ratio | None


def compare(runs: Sequence[Run]) -> list[Figures]:
    """Figures of each setting, in the order of the runs. Runs of one repeat and concurrency are pairs."""
    plain = {(run.setting.concurrency, run.repeat): run for run in runs if run.setting.speculation == "off"}
    figures = []
    for setting in dict.fromkeys(run.setting for run in runs):
        own = [run for run in runs if run.setting == setting]
        ratios = [
            run.tokens_per_second / plain[key].tokens_per_second
            for run in own
            if (key := (setting.concurrency, run.repeat)) in plain and setting.speculation != "off"
        ]
        figures.append(
            Figures(
                setting,
                len(own),
                Spread.of([run.tokens_per_second for run in own]),
                Spread.of([run.tokens_per_step for run in own]),
                Spread.of([run.step_ms for run in own]),
                Spread.of([run.host_ms for run in own]),
                Spread.of([run.tokens / run.seconds for run in own]),
                Ratio.of(ratios) if ratios else None,
            )
        )
    return figures
