"""What the full forms found, as docs/reliability.md and as the README's table."""

import re
from collections.abc import Mapping
from pathlib import Path

from runtime.bench.machine import Machine, versions
from tests.faults.scenarios import SCENARIOS
from tests.faults.tally import Tally

DOCUMENT, README = Path("docs/reliability.md"), Path("README.md")
BEGIN, END = "<!-- written by `make test-full` -->\n", "<!-- end -->\n"
HEADINGS = ("", "requests", "faults injected", "answers compared", "lost", "wrong", "rows leaked")


def write(root: Path, tallies: Mapping[str, Tally]) -> None:
    """Replaces what stands between the marks in both files. Raises ValueError where a file has no marks."""
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    machine = Machine.here()
    place = f"{machine.cpu}, {machine.cores} cores, onnxruntime {versions()['onnxruntime']}"
    rows = [_row(name, tally) for name, tally in tallies.items()]
    whole = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|", *rows, _row("all", total)]
    kinds = [f"- **{s.name}**: {(s.play.__doc__ or '').strip()} {_said(tallies[s.name])}" for s in SCENARIOS]
    _replace(root / DOCUMENT, "\n".join([f"On {place}:", "", *whole, "", *kinds]) + "\n")
    _replace(root / README, "\n".join([whole[0], whole[1], _row("all", total)]) + "\n")


def _row(name: str, tally: Tally) -> str:
    figures = (tally.requests, tally.faults.total(), tally.answered, len(tally.lost), len(tally.wrong), tally.leaked)
    return f"| {name} | " + " | ".join(f"{figure:,}" for figure in figures) + " |"


def _said(tally: Tally) -> str:
    """The rest of a tally in words."""
    ends = [f"{number:,} × {kind}" for kind, number in sorted(tally.faults.items())]
    ends += [f"{tally.stated:,} ended with an error that says why"] if tally.stated else []
    parts = ([", ".join(ends)] if ends else []) + tally.notes
    return "; ".join(parts) + "." if parts else ""


def _replace(file: Path, text: str) -> None:
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    before = file.read_text("utf-8")
    if len(pattern.findall(before)) != 1:
        raise ValueError(f"{file} has no place for the table: one {BEGIN.strip()} and one {END.strip()} after it")
    file.write_text(pattern.sub(lambda _: BEGIN + text + END, before), "utf-8")
