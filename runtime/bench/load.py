"""`python -m runtime.bench load`: the HTTP service under load, speculation settings against each other.

Clients that wait for their answers (closed loop) or requests that come whatever happens (open loop, Poisson arrivals),
with prompts and output lengths of many sizes. The settings take turns on one server, and every repetition runs all of
them on the same prompts, lengths, sampling seeds and arrival times; a ratio compares runs of the same repetition. With
--engine the same closed load also runs on an engine within this process, without HTTP: what the service costs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm import tqdm

from runtime.bench.arrivals import Closed, Load, Open, Request, draw, random_words
from runtime.bench.client import drive
from runtime.bench.inprocess import drive_engine
from runtime.bench.load_report import LoadReport, compare
from runtime.bench.machine import Machine, versions
from runtime.bench.options import add_prompts, check_prompts, counts, number, positive, positives, span, speculations
from runtime.bench.processors import ProcessorTime
from runtime.bench.prompts import MT_BENCH, MT_BENCH_TEMPLATE, encode, questions
from runtime.bench.server import RunningServer, StartedServer
from runtime.bench.timeline import Limits, LoadRun, Setting, summarize
from runtime.engine import Engine
from runtime.errors import ConfigurationError
from runtime.manifest import Manifest
from runtime.params import CHUNKS, EngineConfig, SamplingParams

SEED = 0  # of the prompts' order and of random words
RANDOM_PROMPTS = 256
ENGINE_OPTIONS = ("rows", "chunk", "queue", "threads", "prefill_slowdown", "lookup", "prefix_reuse")

Server = RunningServer | StartedServer


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "load", help="the service under load", description=__doc__.partition("\n\n")[2] if __doc__ else None
    )
    add = parser.add_argument
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--url", help="of a running server, as http://127.0.0.1:8000")
    target.add_argument("--artifact", type=Path, help="start a server for it, on a free port")
    add("--clients", type=counts, metavar="LIST", help="closed loop: clients at a time, with commas (1,8)")
    add("--rate", type=positives, metavar="LIST", help="open loop: requests a second, with commas (none)")
    add("--speculation", type=speculations, default=speculations("off,4,16,auto"), metavar="LIST",
        help='"off", "auto" or tree nodes, with commas (off,4,16,auto)')  # fmt: skip
    add("--engine", action="store_true", help="with --artifact: the closed loop in this process too, without HTTP")
    add("--requests", type=positive, help="of a run (8 a client; 20 seconds of arrivals, at least 64)")
    add("--repeat", type=positive, default=6, help="runs of each setting; 6 give a 97 %% interval (%(default)s)")
    add("--max-tokens", type=span, default=span("16-128"), metavar="LOW-HIGH", help="of an answer, drawn (16-128)")
    add("--ignore-eos", action="store_true", help="answers go on past their end, to max tokens")
    add("--temperature", type=float, default=0.0, help="of sampling; at 1.5 most drafts fail (%(default)g)")
    add("--time-per-token-limit", type=number, default=50.0, metavar="MS", help="of goodput (%(default)g)")
    add("--first-token-limit", type=number, metavar="MS", help="of goodput (none)")
    add("--timeout", type=number, default=600.0, metavar="SECONDS",
        help="how long a client waits for an event (%(default)g)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures and runs there as well")
    add("--png", type=Path, metavar="FILE", help="plot throughput and time per token there")
    default, engine = EngineConfig(), parser.add_argument_group("server", "with --artifact; as of `python -m service`")
    engine.add_argument("--rows", type=positive, help="(the most clients, or 8)")
    engine.add_argument("--chunk", type=int, help=f"({CHUNKS['ragged']}; {CHUNKS['padded']} in the padded form)")
    for name in ("queue", "threads"):
        engine.add_argument(f"--{name}", type=int, help=f"({getattr(default, name)})")
    engine.add_argument("--prefill-slowdown", type=float, metavar="TIMES", help=f"({default.prefill_slowdown:g})")
    engine.add_argument("--lookup", action=argparse.BooleanOptionalAction, help="(--lookup)")
    engine.add_argument("--prefix-reuse", action=argparse.BooleanOptionalAction,
        help="(--no-prefix-reuse: the same prompts come again in every run)")  # fmt: skip
    source = add_prompts(parser)
    source.add_argument("--random-words", type=span, metavar="LOW-HIGH", help="so many words that mean nothing")
    return parser


def run(options: argparse.Namespace) -> int:
    """Measures, prints, writes. Raises GorgonError."""
    loads = check(options)
    config, machine = engine_config(options, loads), Machine.here()
    params = SamplingParams(temperature=options.temperature, ignore_eos=options.ignore_eos)
    limits = Limits(options.time_per_token_limit / 1e3, options.first_token_limit and options.first_token_limit / 1e3)
    prompts, source = load_prompts(options)
    server: Server = RunningServer(options.url) if options.url else StartedServer(options.artifact, config)
    with server:
        engine = (
            Engine.from_artifact(options.artifact, config, progress=partial(print, file=sys.stderr))
            if options.engine
            else None
        )
        bench = Bench(server, engine, params, options.raw, limits, options.timeout)
        runs = bench.take_turns(
            loads, options.speculation, prompts, options.requests, options.max_tokens, options.repeat
        )
    low, high = options.max_tokens
    answers = f"{low} to {high} tokens at most" + (", past their end" if options.ignore_eos else "")
    answers += f", temperature {options.temperature:g}" if options.temperature else ", greedy"
    report = LoadReport(machine, all_versions(), server.health, source, answers, limits, runs, compare(runs))
    print(report.table())
    if options.json is not None:
        options.json.write_text(json.dumps(report.json(), indent=1) + "\n", "utf-8")
    if options.png is not None:
        from runtime.bench.load_plot import plot  # matplotlib takes a second to import

        plot(report, options.png)
    return 0


def check(options: argparse.Namespace) -> list[Load]:
    """The loads; raises ConfigurationError for options that do not go together."""
    check_prompts(options)
    given = [name for name in ENGINE_OPTIONS if getattr(options, name) is not None]
    if options.url and (given or options.engine):
        wrong = "--" + (given[0] if given else "engine").replace("_", "-")
        raise ConfigurationError(f"{wrong} goes with --artifact, not with --url")
    loads: list[Load] = [Closed(n) for n in options.clients or ([] if options.rate else counts("1,8"))]
    if options.engine and not loads:
        raise ConfigurationError("--engine goes with --clients: an open loop is the service's alone")
    return loads + [Open(rate) for rate in options.rate or []]


def engine_config(options: argparse.Namespace, loads: Sequence[Load]) -> EngineConfig:
    """Rows for all clients, and memory for every row's whole context: the budget is not what is measured."""
    given = {name: value for name in ENGINE_OPTIONS if (value := getattr(options, name)) is not None}
    clients = [load.clients for load in loads if isinstance(load, Closed)]
    rows = given.setdefault("rows", max(clients, default=EngineConfig().rows))
    if options.artifact is not None:
        manifest = Manifest.read(options.artifact)
        given["kv_memory"] = rows * manifest.capacity * manifest.kv_bytes
    given.setdefault("prefix_reuse", False)
    return EngineConfig(**given)


def load_prompts(options: argparse.Namespace) -> tuple[list[str], str]:
    """Texts, and where they are from. Those that an artifact has no room for are left out; a server refuses them."""
    if options.random_words is not None:
        low, high = options.random_words
        return random_words(RANDOM_PROMPTS, (low, high), SEED), f"{low} to {high} random words"
    if options.prompts is not None:
        texts = questions(options.prompts, options.template or "{prompt}", options.without, SEED)
        source = options.prompts.name
    else:
        texts, source = questions(MT_BENCH, MT_BENCH_TEMPLATE, None, SEED), "MT-Bench, first turns"
    if options.artifact is None:
        return texts, source
    manifest, most = Manifest.read(options.artifact), options.max_tokens[1]
    tokenizer = Tokenizer.from_file(str(options.artifact / "tokenizer.json"))
    encoded = encode(texts, manifest, tokenizer, options.raw)
    fitting = [text for text, ids in zip(texts, encoded, strict=True) if len(ids) <= manifest.context - most]
    if not fitting:
        raise ConfigurationError(f"no prompt of {source} leaves room for {most} tokens: give less")
    if left_out := len(texts) - len(fitting):
        source += f" ({left_out} too long ones left out)"
    return fitting, source


def all_versions() -> dict[str, str]:
    return versions() | {package: version(package) for package in ("httptools", "uvloop")}


@dataclass(frozen=True, slots=True)
class Bench:
    """What runs go through: a server and perhaps an engine, and how answers are sampled and judged."""

    server: Server
    engine: Engine | None
    params: SamplingParams
    raw: bool
    limits: Limits
    timeout: float

    def take_turns(
        self,
        loads: Sequence[Load],
        speculations: Sequence[int | str],
        prompts: Sequence[str],
        count: int | None,
        max_tokens: tuple[int, int],
        repeat: int,
    ) -> list[LoadRun]:
        """A run of each setting to warm up, then `repeat` of each, the first of a repetition another one each time."""
        settings = [Setting(load, speculation) for load in loads for speculation in speculations]
        if self.engine is not None:
            settings += [replace(s, via="engine") for s in settings if isinstance(s.load, Closed)]
        runs = []
        with tqdm(total=(repeat + 1) * len(settings), unit="run", file=sys.stderr, disable=None) as progress:
            for turn in range(repeat + 1):
                shift = turn % len(settings)
                for setting in settings[shift:] + settings[:shift]:
                    progress.set_description(f"{setting.load}, speculation {setting.speculation}, {setting.via}")
                    runs.append(self.run(setting, draw(setting.load, prompts, count, max_tokens, turn), turn))
                    progress.update()
        runs.sort(key=lambda run: (loads.index(run.setting.load), settings.index(run.setting), run.repeat))
        return [run for run in runs if run.repeat > 0]

    def run(self, setting: Setting, requests: Sequence[Request], repeat: int) -> LoadRun:
        """One setting, once. Raises StepError where nothing is answered, or the server dies."""
        params, used = replace(self.params, speculation=setting.speculation), ProcessorTime(self.server.pid)
        if setting.via == "engine":
            assert self.engine is not None and isinstance(setting.load, Closed)
            timelines = drive_engine(self.engine, setting.load.clients, requests, params, self.raw)
        else:
            fields = {name: getattr(params, name) for name in ("temperature", "ignore_eos", "speculation")}
            body = fields | ({"raw": True} if self.raw else {})
            timelines = drive(f"{self.server.url}/generate", setting.load, requests, body, self.timeout)
            self.server.check()
        return summarize(setting, repeat, timelines, self.limits, used.shares())
