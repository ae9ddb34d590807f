"""A benchmark as a table to read and as JSON to keep."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.bench.compare import Figures, Ratio, Spread
from runtime.bench.machine import Machine, heading
from runtime.bench.measure import Run

HEADINGS = ("concurrent", "speculation", "tokens/s", "tokens/step", "ms/step", "host ms/step", "speed-up", "acceptance")


@dataclass(frozen=True, slots=True)
class Report:
    """All that a benchmark has to say. `acceptance` is "measured" or "simulated"."""

    machine: Machine
    versions: dict[str, str]
    artifact: str
    precision: str
    provider: str
    threads: int
    acceptance: str
    prompts: str
    max_tokens: int
    runs: Sequence[Run]
    figures: Sequence[Figures]

    def table(self) -> str:
        """Markdown: what it ran on, then a line for each setting. Every line of figures names the acceptance."""
        load = Spread.of([run.other_load for run in self.runs])
        lines = [
            *heading(self.machine, self.versions),
            f"artifact: {self.artifact}, {self.precision}, {self.provider}, {self.threads} threads",
            f"prompts: {self.prompts}, at most {self.max_tokens} tokens each, greedy, acceptance {self.acceptance}",
            f"runs: {len(self.runs)}, settings in turns; meanwhile other processes took {load.median:.0%}"
            f" ({load.low:.0%} to {load.high:.0%}) of the machine",
            "",
        ]
        rows = [HEADINGS, *map(self._row, self.figures)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
        for i, row in enumerate(rows):
            lines.append("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |")
            if i == 0:
                lines.append("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
        lines += ["", "medians, [quartiles]; speed-up: of pairs of runs (interval of its confidence)"]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        derived = ("tokens_per_second", "tokens_per_step", "step_ms", "host_ms")
        parts = asdict(self)
        for record, run in zip(parts["runs"], self.runs, strict=True):
            record |= {name: getattr(run, name) for name in derived}
        for record in (*parts["runs"], *parts["figures"]):
            record["acceptance"] = self.acceptance
        return parts

    def _row(self, figures: Figures) -> tuple[str, ...]:
        return (
            str(figures.setting.concurrency),
            str(figures.setting.speculation),
            _spread(figures.tokens_per_second, 1),
            f"{figures.tokens_per_step.median:.2f}",
            _spread(figures.step_ms, 2),
            _spread(figures.host_ms, 2),
            _ratio(figures.speedup),
            self.acceptance,
        )


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} [{spread.low:.{digits}f}, {spread.high:.{digits}f}]"


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}, {ratio.confidence:.0%})"
