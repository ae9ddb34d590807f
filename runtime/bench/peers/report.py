"""A contest as a table to read and as JSON to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.bench.compare import Ratio, Spread
from runtime.bench.machine import Machine
from runtime.bench.markdown import ratio, spread, table
from runtime.bench.peers.catalogue import OWN
from runtime.bench.peers.contest import Run, Setting

HEADINGS = ("at a time", "engine", "precision", "speculation", "acceptance", "tokens/s", "ms/step", "tokens/step",
            f"{OWN} over it", f"{OWN} plain over it", "same texts", "runs")  # fmt: skip
REFERENCE = ("fp32", "off")  # precision and speculation whose texts the others' are compared with


@dataclass(frozen=True, slots=True)
class Figures:
    """What the runs of one setting come to. Ratios are those of our best setting to this one, of the same rounds."""

    setting: Setting
    runs: int  # 0: only the first round, whose figures these then are
    tokens_per_second: Spread
    step_ms: Spread
    tokens_per_step: Spread
    same_texts: float | None  # share of the answers
    over: Ratio | None  # our fastest, speculating or not
    plain_over: Ratio | None  # our fastest without speculation


def summarize(runs: Sequence[Run]) -> list[Figures]:
    """Fastest first within each concurrency."""
    found = {setting: _figures(setting, runs) for setting in dict.fromkeys(run.setting for run in runs)}
    figures = []
    for setting, (counted, plain_figures) in found.items():
        ours = [
            s for s, (kept, _) in found.items() if s.engine == OWN and s.concurrency == setting.concurrency and kept
        ]
        over, plain_over = (
            _ratio(_best(candidates, found), setting, runs)
            for candidates in (ours, [s for s in ours if s.speculation == "off"])
        )
        figures.append(Figures(setting, counted, *plain_figures, over, plain_over))
    return sorted(figures, key=lambda f: (f.setting.concurrency, -f.tokens_per_second.median))


def _figures(setting: Setting, runs: Sequence[Run]) -> tuple[int, tuple[Spread, Spread, Spread, float | None]]:
    own = [run for run in runs if run.setting == setting]
    counted = [run for run in own if run.repeat]
    shown = counted or own
    same = [run.same_texts for run in shown if run.same_texts is not None]
    return len(counted), (
        Spread.of([run.tokens_per_second for run in shown]),
        Spread.of([run.step_ms for run in shown]),
        Spread.of([run.tokens_per_step for run in shown]),
        sum(same) / sum(run.prompts for run in shown) if same else None,
    )


def _best(candidates: Sequence[Setting], found: Mapping[Setting, tuple[int, tuple[Any, ...]]]) -> Setting | None:
    return max(candidates, key=lambda s: float(found[s][1][0].median), default=None)


def _ratio(ours: Setting | None, other: Setting, runs: Sequence[Run]) -> Ratio | None:
    """Runs of one round are pairs."""
    speed = {(run.setting, run.repeat): run.tokens_per_second for run in runs if run.repeat}
    if ours is None or ours == other:
        return None
    pairs = [
        speed[ours, repeat] / value
        for (setting, repeat), value in speed.items()
        if setting == other and (ours, repeat) in speed
    ]
    return Ratio.of(pairs) if pairs else None


@dataclass(frozen=True, slots=True)
class Report:
    """All that a contest has to say. `acceptance` is "measured" or "simulated", and is ours."""

    machine: Machine
    versions: Mapping[str, Mapping[str, str]]  # of each engine
    built: Sequence[str]  # how llama.cpp was configured
    checkpoint: str
    threads: int
    acceptance: str
    prompts: str
    new_tokens: int
    groups: int
    reference: str  # whose texts the others' are compared with, "" for none
    memory: Mapping[str, int]  # resident bytes of each process after loading
    runs: Sequence[Run]
    figures: Sequence[Figures]
    notes: Sequence[str]

    def table(self) -> str:
        """Markdown: what it ran on, a line for each setting, and what could not be run."""
        machine = self.machine
        load = Spread.of([run.other_load for run in self.runs])
        lines = [
            f"machine: {machine.cpu}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {' '.join(machine.isa)}",
            *(
                f"{engine}: " + ", ".join(f"{name} {number}" for name, number in versions.items())
                for engine, versions in self.versions.items()
            ),
        ]
        if self.built:
            lines.append(f"llama.cpp's build: {' '.join(self.built)}")
        lines += [
            f"checkpoint: {self.checkpoint}, {self.threads} threads for every engine",
            f"prompts: {self.prompts}; greedy, {self.new_tokens} tokens each, {self.groups} groups a run; {OWN}'s"
            f" acceptance {self.acceptance}",
            f"runs: {len(self.runs)}, settings in turns; meanwhile other processes took {load.median:.0%}"
            f" ({load.low:.0%} to {load.high:.0%}) of the machine",
            "",
            *table([HEADINGS, *map(self._row, self.figures)]),
            "",
            "tokens/s of steady decoding: medians over runs [quartiles]; 0 runs: far from its engine's best in the"
            " first round, whose figure this is",
            f"{OWN} over it: its fastest setting at this concurrency over this one, plain: without speculation;"
            " of pairs of runs (interval of its confidence)",
        ]
        if self.reference:
            lines.append(f"same texts: answers equal to those of {self.reference}, plain, token for token")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def json(self) -> dict[str, Any]:
        parts = asdict(self)
        for record, run in zip(parts["runs"], self.runs, strict=True):
            record |= {name: getattr(run, name) for name in ("tokens_per_second", "tokens_per_step", "step_ms")}
        for record, figures in zip(parts["figures"], self.figures, strict=True):
            record["acceptance"] = self._acceptance(figures.setting)
        return parts

    def _acceptance(self, setting: Setting) -> str:
        if setting.speculation == "off":
            return ""
        return self.acceptance if setting.engine == OWN else "measured"

    def _row(self, figures: Figures) -> tuple[str, ...]:
        setting = figures.setting
        return (
            str(setting.concurrency),
            setting.engine,
            setting.precision,
            setting.speculation,
            self._acceptance(setting),
            spread(figures.tokens_per_second, 1),
            f"{figures.step_ms.median:.2f}",
            f"{figures.tokens_per_step.median:.2f}",
            ratio(figures.over),
            ratio(figures.plain_over),
            "" if figures.same_texts is None else f"{figures.same_texts:.1%}",
            str(figures.runs),
        )
