"""A profile as a picture: step time over packed tokens, and the roofline below it."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure  # without pyplot there is no window, and nothing global

from runtime.bench.profile import ProfileReport


def plot(report: ProfileReport, path: Path) -> None:
    """Writes a PNG. Points were timed, lines are the cost model's, the dashed line is the roofline."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    value = report.profile.cost.to_json()
    last = value["tokens"][-1]
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(value["rows"])))
    for rows, colour in zip(value["rows"], colours, strict=True):
        timed = report.even(rows)
        tokens = np.linspace(timed[0].tokens, last, 400)
        label = f"{rows} row{'s' * (rows > 1)}"
        axes.plot(tokens, report.predicted(rows, tokens) * 1e3, color=colour, linewidth=1.2, label=label)
        axes.plot([s.tokens for s in timed], [s.seconds * 1e3 for s in timed], "o", color=colour, markersize=4)
    if (roof := report.roofline) is not None:
        tokens = np.geomspace(1, last, 400)
        label = (
            f"roofline: {roof.weight_bytes / 1e6:.0f} MB of weights read at {roof.bandwidth / 1e9:.0f} GB/s,\n"
            f"a large {report.precision} product at {roof.throughput / 1e9:.0f} Gop/s"
        )
        axes.plot(tokens, np.maximum(roof.floor, roof.token * tokens) * 1e3, "--", color="black", label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="packed tokens of the step", ylabel="ms of the decoder's run",
        title=f"{report.title()}\n{report.context} committed tokens a row; points timed, lines predicted",
    )  # fmt: skip
    axes.set_xticks(value["tokens"], [str(t) for t in value["tokens"]], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=130)
