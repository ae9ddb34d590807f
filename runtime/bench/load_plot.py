"""A load's figures drawn over how heavy it was: a panel for each figure, a line for each setting."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runtime.bench.arrivals import Closed, Load, Open
from runtime.bench.compare import Spread
from runtime.bench.load_report import LoadFigures, LoadReport

Pick = Callable[[LoadFigures], Spread | None]
# Of each kind of load: a title, a figure, and what it is multiplied by. Arrivals decide the throughput of an open loop.
PANELS: dict[type[Closed] | type[Open], tuple[tuple[str, Pick, float], ...]] = {
    Closed: (
        ("tokens a second", lambda f: f.tokens_per_second, 1.0),
        ("time per token, p50, ms", lambda f: None if f.per_token is None else f.per_token.p50, 1e3),
    ),
    Open: (
        ("good answers a second", lambda f: f.goodput, 1.0),
        ("latency, p50, ms", lambda f: None if f.latency is None else f.latency.p50, 1e3),
    ),
}


def plot(report: LoadReport, path: Path) -> None:
    """A row of panels for each kind of load, medians with quartiles as a band, as a PNG."""
    kinds = [kind for kind in PANELS if any(isinstance(f.setting.load, kind) for f in report.figures)]
    figure = Figure(figsize=(10, 4 * len(kinds)), layout="constrained")
    for kind, panels in zip(kinds, figure.subplots(len(kinds), 2, squeeze=False), strict=True):
        chosen = [f for f in report.figures if isinstance(f.setting.load, kind)]
        for axes, (title, pick, scale) in zip(panels, PANELS[kind], strict=True):
            _panel(axes, chosen, pick, scale)
            axes.set(title=title, xlabel="clients" if kind is Closed else "requests a second")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="speculation", loc="outside right upper")
    server, machine = report.server, report.machine
    figure.suptitle(
        f"{server['model']}, {server['precision']}, {machine.cores} cores of {machine.cpu}; {report.prompts}"
    )
    FigureCanvasAgg(figure).print_png(path)


def _panel(axes: Axes, figures: list[LoadFigures], pick: Pick, scale: float) -> None:
    speculations = list(dict.fromkeys(f.setting.speculation for f in figures))
    loads = sorted({weight(f.setting.load) for f in figures})
    axes.set_xscale("log", base=2)
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    axes.set_xticks([], minor=True)
    for via, speculation in dict.fromkeys((f.setting.via, f.setting.speculation) for f in figures):
        points = [
            (weight(f.setting.load), spread)
            for f in sorted(figures, key=lambda f: weight(f.setting.load))
            if (f.setting.via, f.setting.speculation) == (via, speculation) and (spread := pick(f)) is not None
        ]
        x, color = [at for at, _ in points], f"C{speculations.index(speculation)}"
        axes.plot(
            x,
            [spread.median * scale for _, spread in points],
            label=str(speculation) if via == "http" else f"{speculation}, without HTTP",
            color=color,
            marker="o",
            linestyle="-" if via == "http" else "--",
            linewidth=2.5 if speculation == "auto" else 1.2,
        )
        low, high = ([getattr(spread, end) * scale for _, spread in points] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=color, alpha=0.15)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)


def weight(load: Load) -> float:
    return load.clients if isinstance(load, Closed) else load.rate
