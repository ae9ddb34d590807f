"""`python -m runtime.bench profile`: what a step costs on this machine, as the engine believes it.

Prints the cost model that serving would use: it is read where it was measured before, else measured and kept. The plot
shows the time of a step over its packed tokens, timed and predicted, above the roofline of its products.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bench.machine import Machine, heading, versions
from runtime.bench.roofline import Roofline
from runtime.errors import ConfigurationError
from runtime.manifest import Manifest
from runtime.params import EngineConfig
from runtime.profile import Profile, fingerprint, path_of, profile
from runtime.sessions import open_session
from runtime.survey import Sample


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "profile", help="seconds of a step", description=__doc__.partition("\n\n")[2] if __doc__ else None
    )
    default = EngineConfig()
    add = parser.add_argument
    add("--artifact", type=Path, required=True, help="directory that `python -m export` wrote")
    add("--rows", type=int, default=default.rows, help="sequences at the same time, at most (%(default)s)")
    add("--threads", type=int, default=default.threads, help="threads of ONNX Runtime, 0: all cores (%(default)s)")
    add("--exact", action=argparse.BooleanOptionalAction, default=default.exact,
        help="the same bits in any batch: at least two nodes a row")  # fmt: skip
    add("--fresh", action="store_true", help="measure again, also where a profile is kept")
    add("--json", type=Path, metavar="FILE", help="write the model and all that was timed there as well")
    add("--png", type=Path, metavar="FILE", help="plot it there, with the roofline, which is measured now")
    return parser


def run(options: argparse.Namespace) -> int:
    """Measures or reads, prints, writes. Raises GorgonError."""
    if options.png is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("--png needs matplotlib, which is not installed: pip install matplotlib")
    manifest = Manifest.read(options.artifact)
    memory = max(EngineConfig().kv_memory, options.rows * manifest.capacity * manifest.kv_bytes)
    config = EngineConfig(rows=options.rows, threads=options.threads, exact=options.exact, kv_memory=memory)
    progress = lambda message: print(message, file=sys.stderr)  # noqa: E731
    session = open_session(options.artifact, manifest, config, progress)
    known = profile(options.artifact, session, config, progress, options.fresh)
    machine = Machine.here()
    threads = options.threads or machine.cores
    roofline = None
    if options.png is not None:
        roofline = Roofline.measure(options.artifact, manifest.precision, threads)
    path = path_of(options.artifact, fingerprint(session, config))
    report = ProfileReport(
        machine, versions(), manifest.name, manifest.precision, session.provider, threads, str(path), known, roofline
    )
    print(report.table())
    if options.json is not None:
        options.json.write_text(json.dumps(report.json(), indent=1) + "\n", "utf-8")
    if options.png is not None:
        from runtime.bench.profile_plot import plot  # matplotlib takes a second to import

        plot(report, options.png)
    return 0


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """A cost model, what it was fitted to, and what it ran on."""

    machine: Machine
    versions: dict[str, str]
    artifact: str
    precision: str
    provider: str
    threads: int
    path: str
    profile: Profile
    roofline: Roofline | None

    def title(self) -> str:
        return f"{self.artifact}, {self.precision}, {self.provider}, {self.threads} threads, {self.machine.cpu}"

    def table(self) -> str:
        cost = self.profile.cost
        value = cost.to_json()
        rows, tokens = value["rows"], value["tokens"]
        lines = [
            *heading(self.machine, self.versions),
            f"artifact: {self.artifact}, {self.precision}, {self.provider}, {self.threads} threads",
            f"profile: {self.path}",
            "",
            f"ms a decoder run, by rows and packed tokens; {self.context} committed tokens a row",
            "",
            *_markdown([["rows \\ tokens", *map(str, tokens)], *([str(r), *self._line(r, tokens)] for r in rows)]),
            "",
            *_markdown([["rows", *map(str, rows)], ["ms of the heads", *(f"{x * 1e3:.2f}" for x in value["heads"])]]),
            "",
            "ms more for 1000 more of: "
            + ", ".join(f"{name} {value[name] * 1e6:.2f}" for name in ("key", "pair", "slot"))
            + f"; logits of {tokens[-1]} tokens: {value['vocabulary'][-1] * 1e3:.2f} ms",
            self._fit(),
        ]
        if (roof := self.roofline) is not None:
            lines.append(
                f"roofline: {roof.weight_bytes / 1e6:.1f} MB of weights at {roof.bandwidth / 1e9:.1f} GB/s:"
                f" {roof.floor * 1e3:.2f} ms; {roof.throughput / 1e9:.0f} Gop/s: {roof.token * 1e6:.1f} us a token"
            )
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        return {
            "machine": asdict(self.machine), "versions": self.versions, "artifact": self.artifact,
            "precision": self.precision, "provider": self.provider, "threads": self.threads,
            "cost": self.profile.cost.to_json(), "samples": [asdict(sample) for sample in self.profile.samples],
            "roofline": None if self.roofline is None else asdict(self.roofline),
        }  # fmt: skip

    @property
    def context(self) -> int:
        """Committed tokens a row in most of what was timed."""
        return min(s.keys // s.rows for s in self.profile.samples if not s.heads)

    def even(self, rows: int) -> list[Sample]:
        """What was timed of so many rows of equal width, by tokens."""
        some = [s for s in self.profile.samples if s.rows == rows and not s.heads and not s.silent]
        alike = [s for s in some if s.keys == rows * self.context and s.widest == -(-s.tokens // rows)]
        return sorted(alike, key=lambda s: s.tokens)

    def predicted(self, rows: int, tokens: np.ndarray) -> np.ndarray:
        """Seconds of a step of so many rows of equal width, [tokens]."""
        nodes = tokens / rows
        attended = tokens * (self.context + nodes)
        seconds: np.ndarray = self.profile.cost.decoder(rows, tokens, nodes, attended, 0, rows * self.context)
        return seconds

    def _line(self, rows: int, tokens: Sequence[int]) -> list[str]:
        possible = min(s.tokens for s in self.even(rows))
        seconds = self.predicted(rows, np.array(tokens))
        return [f"{s * 1e3:.2f}" if t >= possible else "" for s, t in zip(seconds, tokens, strict=True)]

    def _fit(self) -> str:
        cost = self.profile.cost
        timed = [s for s in self.profile.samples if not s.heads]
        errors = [
            abs(float(cost.decoder(s.rows, s.tokens, s.widest, s.attended, s.silent, s.keys)) / s.seconds - 1)
            for s in timed
        ]
        middle, most = np.quantile(errors, [0.5, 0.95])
        return f"fitted to {len(timed)} kinds of steps; error: median {middle:.1%}, 95th percentile {most:.1%}"


def _markdown(rows: list[list[str]]) -> list[str]:
    """A table, its first row the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *lines[1:]]
