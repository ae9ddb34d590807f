"""Tables to read, and figures as they stand in their cells."""

from collections.abc import Sequence

from runtime.bench.compare import Ratio, Spread


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, its headings first, columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *lines[1:]]


def spread(figure: Spread, digits: int) -> str:
    return f"{figure.median:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def ratio(figure: Ratio | None) -> str:
    if figure is None:
        return ""
    return f"{figure.median:.3f} ({figure.low:.3f} to {figure.high:.3f}, {figure.confidence:.0%})"
