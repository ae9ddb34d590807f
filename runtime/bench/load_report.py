"""A load's runs as figures, as tables to read, and as JSON to keep."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.bench.arrivals import Closed
from runtime.bench.compare import Ratio, Spread
from runtime.bench.machine import Machine, heading
from runtime.bench.markdown import ratio, spread, table
from runtime.bench.timeline import Limits, LoadRun, Percentiles, Setting

NAMES = ("load", "over", "speculation")
THROUGHPUT = ("tokens/s", "requests/s", "goodput", "of the best fixed", "of off", "of the engine", "errors")
LATENCY = ("first token, ms", "ms a token", "gap, ms", "latency, ms", "client", "server", "others")
NOTES = (
    "medians over runs [quartiles]; ratios: of pairs of runs (interval, its confidence), of tokens/s where"
    " clients wait for answers, of the inverse of the median latency where requests come by themselves",
    "first token, time per token (of an answer), gap between events (the text of a step, or of several:"
    " --stream-interval) and latency of a whole answer: p50 / p95 / p99; client, server, others: shares of all"
    " processors",
)


@dataclass(frozen=True, slots=True)
class PercentileSpreads:
    """Each percentile over the runs."""

    p50: Spread
    p95: Spread
    p99: Spread

    @classmethod
    def of(cls, runs: Sequence[Percentiles | None]) -> "PercentileSpreads | None":
        known = [run for run in runs if run is not None]
        if not known:
            return None
        return cls(*(Spread.of([getattr(run, name) for run in known]) for name in ("p50", "p95", "p99")))


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What the runs of one setting come to."""

    setting: Setting
    runs: int
    requests: int
    errors: dict[str, int]
    tokens_per_second: Spread
    requests_per_second: Spread
    goodput: Spread  # requests a second
    good_tokens_per_second: Spread
    first: PercentileSpreads | None
    latency: PercentileSpreads | None
    per_token: PercentileSpreads | None
    gap: PercentileSpreads | None
    client: Spread  # shares of all processors
    server: Spread | None
    others: Spread
    of_best: Ratio | None  # to the best fixed setting (off is one), which has none itself
    of_off: Ratio | None
    of_engine: Ratio | None  # what is left of the throughput without HTTP


def compare(runs: Sequence[LoadRun]) -> list[LoadFigures]:
    """Figures of each setting, in the order of the runs. Runs of one repeat and load are pairs."""
    settings = list(dict.fromkeys(run.setting for run in runs))
    scores = {setting: {run.repeat: score(run) for run in runs if run.setting == setting} for setting in settings}

    def to(setting: Setting, base: Setting | None) -> Ratio | None:
        if base is None or base == setting or base not in scores:
            return None
        pairs = scores[setting].keys() & scores[base].keys()
        return Ratio.of([scores[setting][repeat] / scores[base][repeat] for repeat in pairs]) if pairs else None

    figures = []
    for setting in settings:
        peers = [s for s in settings if (s.load, s.via) == (setting.load, setting.via) and s.speculation != "auto"]
        best = max(peers, key=lambda s: Spread.of(list(scores[s].values())).median, default=None)
        engine = Setting(setting.load, setting.speculation, "engine")
        ratios = to(setting, best), to(setting, Setting(setting.load, "off", setting.via)), to(setting, engine)
        figures.append(_figures(setting, [run for run in runs if run.setting == setting], ratios))
    return figures


def score(run: LoadRun) -> float:
    """What settings are compared by, higher is better: tokens a second, or where the arrivals decide those, how fast a
    median answer comes."""
    return run.tokens_per_second if isinstance(run.setting.load, Closed) else 1 / run.latency.p50


def _figures(
    setting: Setting, runs: list[LoadRun], ratios: tuple[Ratio | None, Ratio | None, Ratio | None]
) -> LoadFigures:
    over: Callable[[Callable[[LoadRun], float]], Spread] = lambda figure: Spread.of([figure(run) for run in runs])  # noqa: E731
    servers = [run.shares.server for run in runs if run.shares.server is not None]
    errors = Counter[str]()
    for run in runs:
        errors.update(run.errors)
    return LoadFigures(
        setting=setting,
        runs=len(runs),
        requests=sum(run.requests for run in runs),
        errors=dict(errors),
        tokens_per_second=over(lambda run: run.tokens_per_second),
        requests_per_second=over(lambda run: run.requests_per_second),
        goodput=over(lambda run: run.goodput),
        good_tokens_per_second=over(lambda run: run.good_tokens_per_second),
        first=PercentileSpreads.of([run.first for run in runs]),
        latency=PercentileSpreads.of([run.latency for run in runs]),
        per_token=PercentileSpreads.of([run.per_token for run in runs]),
        gap=PercentileSpreads.of([run.gap for run in runs]),
        client=over(lambda run: run.shares.client),
        server=Spread.of(servers) if servers else None,
        others=over(lambda run: run.shares.others),
        of_best=ratios[0],
        of_off=ratios[1],
        of_engine=ratios[2],
    )


@dataclass(frozen=True, slots=True)
class LoadReport:
    """All that a load has to say. `versions` are those of this process, `server` what /health said."""

    machine: Machine
    versions: dict[str, str]
    server: dict[str, Any]
    prompts: str
    answers: str
    limits: Limits
    runs: Sequence[LoadRun]
    figures: Sequence[LoadFigures]

    def table(self) -> str:
        """Markdown: what it ran on, then throughput and latency of each setting."""
        server = self.server
        good = f"at most {self.limits.per_token * 1e3:g} ms a token"
        if self.limits.first is not None:
            good += f" and {self.limits.first * 1e3:g} ms to the first"
        head = [
            *heading(self.machine, self.versions),
            f"server: {server['model']}, {server['precision']}, {server['provider']}, {server['rows']} rows",
            f"prompts: {self.prompts}; answers: {self.answers}; goodput: {good}",
            f"runs: {len(self.runs)}, settings in turns;"
            f" a request was sent at most {max(run.late for run in self.runs) * 1e3:.1f} ms late",
        ]
        throughput = table([NAMES + THROUGHPUT, *(_name(f) + _throughput(f) for f in self.figures)])
        latency = table([NAMES + LATENCY, *(_name(f) + _latency(f) for f in self.figures)])
        return "\n".join([*head, "", *throughput, "", *latency, "", *NOTES])

    def json(self) -> dict[str, Any]:
        derived = ("tokens_per_second", "requests_per_second", "goodput", "good_tokens_per_second")
        parts = asdict(self)
        for record, run in zip(parts["runs"], self.runs, strict=True):
            record |= {name: getattr(run, name) for name in derived}
        return parts


def _name(figures: LoadFigures) -> tuple[str, ...]:
    setting = figures.setting
    return str(setting.load), "HTTP" if setting.via == "http" else "none", str(setting.speculation)


def _throughput(f: LoadFigures) -> tuple[str, ...]:
    return (
        spread(f.tokens_per_second, 1),
        f"{f.requests_per_second.median:.2f}",
        f"{f.goodput.median:.2f}",
        ratio(f.of_best),
        ratio(f.of_off),
        ratio(f.of_engine),
        ", ".join(f"{number} {outcome}" for outcome, number in f.errors.items())
        + f"{'' if f.errors else 0} of {f.requests}",
    )


def _latency(f: LoadFigures) -> tuple[str, ...]:
    server = "" if f.server is None else f"{f.server.median:.0%}"
    times = (_ms(figures) for figures in (f.first, f.per_token, f.gap, f.latency))
    return (*times, f"{f.client.median:.1%}", server, f"{f.others.median:.0%}")


def _ms(figures: PercentileSpreads | None) -> str:
    if figures is None:
        return ""
    return " / ".join(f"{figure.median * 1e3:.1f}" for figure in (figures.p50, figures.p95, figures.p99))
