"""A contest as a picture: a bar for each setting, the fastest on top."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runtime.bench.peers.catalogue import OWN
from runtime.bench.peers.report import Report

OURS, THEIRS = "tab:orange", "tab:gray"


def plot(report: Report, path: Path) -> None:
    """A panel for each concurrency; quartiles as whiskers, plain decoding in a lighter tone."""
    counts = sorted({f.setting.concurrency for f in report.figures})
    most = max(sum(f.setting.concurrency == count for f in report.figures) for count in counts)
    figure = Figure(figsize=(7 * len(counts), 1.5 + 0.35 * most), layout="tight")
    [panels] = figure.subplots(1, len(counts), squeeze=False)
    for count, axes in zip(counts, panels, strict=True):
        chosen = [f for f in report.figures if f.setting.concurrency == count]
        spreads = [f.tokens_per_second for f in chosen]
        bars = axes.barh(
            [_label(report, i) for i, f in enumerate(report.figures) if f.setting.concurrency == count],
            [spread.median for spread in spreads],
            xerr=[[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]],
            color=[OURS if f.setting.engine == OWN else THEIRS for f in chosen],
        )
        for bar, f in zip(bars, chosen, strict=True):
            bar.set_alpha(0.5 if f.setting.speculation == "off" else 1.0)
        axes.invert_yaxis()
        axes.set(title=f"{count} at a time", xlabel="tokens a second")
    figure.suptitle(f"{report.checkpoint}, {report.threads} threads on {report.machine.cpu}")
    FigureCanvasAgg(figure).print_png(path)


def _label(report: Report, i: int) -> str:
    setting = report.figures[i].setting
    if setting.speculation == "off":
        return f"{setting.engine} {setting.precision}"
    how = ", simulated" if setting.engine == OWN and report.acceptance == "simulated" else ""
    return f"{setting.engine} {setting.precision}, {setting.speculation}{how}"
