"""`python -m runtime.bench service`: what HTTP costs beside the engine.

The same closed load goes over HTTP to a server started for it, and to an engine in this process, in turns: pairs of
runs compare throughput and time to the first token. Over HTTP it also says which part of the steps the engine spends
outside the model (host), what processor time the event loop and the client take, and how many requests a second
`/health` and `/metrics` answer under that load, in runs of their own. The client shares the machine with the server, so
what it takes is counted as HTTP's; so is the encoding of prompts, which the engine's runs have done before they begin.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
from tqdm import tqdm

from runtime.bench.arrivals import Closed, draw
from runtime.bench.compare import Ratio, Spread
from runtime.bench.load import ENGINE_OPTIONS, Bench, all_versions, engine_config, load_prompts
from runtime.bench.machine import Machine
from runtime.bench.markdown import ratio, spread, table
from runtime.bench.options import add_prompts, check_prompts, counts, positive, span
from runtime.bench.probe import Probe, Probed
from runtime.bench.server import StartedServer, health
from runtime.bench.timeline import Limits, LoadRun, Setting
from runtime.engine import Engine
from runtime.params import SamplingParams

PROBES = ("/health", "/metrics")
TIMEOUT = 600.0  # seconds that a client waits for an event
NAMES = (
    "streams", "engine, tokens/s", "over HTTP, tokens/s", "HTTP over engine", "first token over HTTP, ms",
    "later than the engine's, ms", "host share", "event loop, ms a request",
    "client, ms a request",
    *(f"{path}, requests/s" for path in PROBES),
)  # fmt: skip
NOTE = (
    "medians over runs [quartiles]; ratios: of pairs of runs (interval, its confidence). Host share: of the"
    " steps' time, outside decoder and heads; event loop, client: processor time"
)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "service", help="what HTTP costs", description=__doc__.partition("\n\n")[2] if __doc__ else None
    )
    add = parser.add_argument
    add("--artifact", type=Path, required=True, help="start a server for it, and load it here as well")
    add("--clients", type=counts, default=[1, 8, 32], metavar="LIST", help="streams at a time, with commas (1,8,32)")
    add("--requests", type=positive, help="of a run (8 a client)")
    add("--repeat", type=positive, default=6, help="pairs of runs; 6 give a 97 %% interval (%(default)s)")
    add("--max-tokens", type=span, default=span("16-128"), metavar="LOW-HIGH", help="of an answer, drawn (16-128)")
    add("--ignore-eos", action="store_true", help="answers go on past their end, to max tokens")
    add("--threads", type=int, help="of ONNX Runtime (all cores)")
    add("--json", type=Path, metavar="FILE", help="write all runs there as well")
    source = add_prompts(parser)
    source.add_argument("--random-words", type=span, metavar="LOW-HIGH", help="so many words that mean nothing")
    parser.set_defaults(**{name: None for name in ENGINE_OPTIONS if name != "threads"})
    return parser


@dataclass(frozen=True, slots=True)
class Pair:
    """One load over HTTP and in the engine; `host`, `loop_ms` and `client_ms` are of the run over HTTP."""

    clients: int
    http: LoadRun
    engine: LoadRun
    host: float  # share of the steps' time
    loop_ms: float  # processor time of the event loop's thread, a request
    client_ms: float  # of the client's process
    probes: list[Probed]


def run(options: argparse.Namespace) -> int:
    """Measures, prints, writes. Raises GorgonError."""
    check_prompts(options)
    loads = [Closed(n) for n in options.clients]
    config = engine_config(options, loads)
    prompts, source = load_prompts(options)
    with StartedServer(options.artifact, config) as server:
        engine = Engine.from_artifact(options.artifact, config, progress=partial(print, file=sys.stderr))
        params = SamplingParams(temperature=0.0, ignore_eos=options.ignore_eos)
        bench = Bench(server, engine, params, options.raw, Limits(1.0), TIMEOUT)
        pairs = []
        with tqdm(total=(options.repeat + 1) * len(loads), unit="pair", file=sys.stderr, disable=None) as progress:
            for turn in range(options.repeat + 1):  # the first is to warm up
                for load in loads:
                    pair = measure(bench, server, load, prompts, options.requests, options.max_tokens, turn)
                    pairs += [pair] if turn else []
                    progress.update()
        model = f"{server.health['model']}, {server.health['precision']}"
    print(report(Machine.here(), model, source, pairs))
    if options.json is not None:
        found = {"versions": all_versions(), "pairs": [asdict(pair) for pair in pairs]}
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


def measure(
    bench: Bench,
    server: StartedServer,
    load: Closed,
    prompts: Sequence[str],
    count: int | None,
    max_tokens: tuple[int, int],
    turn: int,
) -> Pair:
    """Every other pair begins with the engine."""
    requests = draw(load, prompts, count, max_tokens, turn)
    runs: dict[str, LoadRun] = {}
    host = loop = client = 0.0
    ways: tuple[Literal["http", "engine"], ...] = ("http", "engine") if turn % 2 else ("engine", "http")
    for via in ways:
        before, began, own = health(server.url)[1], _loop_seconds(server), time.process_time()
        runs[via] = bench.run(Setting(load, "auto", via), requests, turn)
        if via == "http":
            client, loop = time.process_time() - own, _loop_seconds(server) - began
            after = health(server.url)[1]
            outside, inside = (after[name] - before[name] for name in ("host_seconds", "session_seconds"))
            host = outside / (outside + inside)
    probes = []
    for path in PROBES:
        with Probe(server.url, path) as probe:
            bench.run(Setting(load, "auto"), requests, turn)
        probes.append(probe.result)
    loop_ms, client_ms = (seconds / len(requests) * 1e3 for seconds in (loop, client))
    return Pair(load.clients, runs["http"], runs["engine"], host, loop_ms, client_ms, probes)


def _loop_seconds(server: StartedServer) -> float:
    """Processor time of the server's first thread, which runs the event loop."""
    [thread] = [thread for thread in psutil.Process(server.pid).threads() if thread.id == server.pid]
    return float(thread.user_time + thread.system_time)


def report(machine: Machine, model: str, source: str, pairs: Sequence[Pair]) -> str:
    """Markdown, a row for each number of streams."""
    head = f"machine: {machine.cpu}, {machine.cores} cores, {' '.join(machine.isa)}; {model}; prompts: {source}"
    rows = [
        _row(clients, [p for p in pairs if p.clients == clients]) for clients in dict.fromkeys(p.clients for p in pairs)
    ]
    return "\n".join([head, "", *table([NAMES, *rows]), "", NOTE])


def _row(clients: int, pairs: Sequence[Pair]) -> tuple[str, ...]:
    over = Ratio.of([pair.http.tokens_per_second / pair.engine.tokens_per_second for pair in pairs])
    return (
        str(clients),
        spread(Spread.of([pair.engine.tokens_per_second for pair in pairs]), 0),
        spread(Spread.of([pair.http.tokens_per_second for pair in pairs]), 0),
        ratio(over),
        spread(Spread.of([pair.http.first.p50 * 1e3 for pair in pairs]), 1),
        spread(Spread.of([(pair.http.first.p50 - pair.engine.first.p50) * 1e3 for pair in pairs]), 1),
        spread(Spread.of([pair.host * 100 for pair in pairs]), 0) + " %",
        spread(Spread.of([pair.loop_ms for pair in pairs]), 2),
        spread(Spread.of([pair.client_ms for pair in pairs]), 2),
        *(spread(Spread.of([pair.probes[i].per_second for pair in pairs]), 0) for i in range(len(PROBES))),
    )
