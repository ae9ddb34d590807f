"""From repeated runs to figures: medians with their spread, and a speed-up with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """The centre of paired ratios, and an interval that holds the true one with `confidence`."""

    median: float
    low: float
    high: float
    confidence: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Ratio":
        """Hodges and Lehmann's estimate, and the interval of Wilcoxon's signed ranks.

        The estimate is the median of the geometric means of all two of them, the interval lies between the k-th
        smallest and the k-th largest of these, for the largest k that keeps 95 %. That holds for any distribution that
        is symmetric on a logarithmic scale, as that of pairs whose runs come in turns; an outlier counts for little.
        Below 6 pairs even k = 1 is less than 95 % sure: `confidence` says what it is.
        Raises ValueError for ratios that are not above 0.
        """
        if not all(value > 0 for value in ratios):
            raise ValueError(f"the ratios {list(ratios)} are not all above 0")
        logs, n = np.log(ratios), len(ratios)
        means = np.exp(np.sort(((logs[:, None] + logs) / 2)[np.triu_indices(n)]))
        outside = np.cumsum(_rank_sums(n)) * 2  # [k - 1]: the probability that the true one is not between
        k = max(1, int(np.searchsorted(outside, 1 - CONFIDENCE, side="right")))
        return cls(float(np.median(means)), float(means[k - 1]), float(means[-k]), max(0.0, 1 - float(outside[k - 1])))


def _rank_sums(pairs: int) -> np.ndarray:
    """How probable each sum of positive signed ranks is, [pairs * (pairs + 1) / 2 + 1], where nothing differs."""
    sums = np.ones(1)
    for rank in range(1, pairs + 1):
        sums = (np.pad(sums, (0, rank)) + np.pad(sums, (rank, 0))) / 2
    return sums


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
