"""`python -m runtime.bench decode`: tokens a second, plain against speculative, one sequence and several.

The settings take turns within one process, and every repetition runs all of them on the same prompts, so that a machine
that is busy for a while slows them alike; a speed-up compares runs of the same repetition.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.bench.compare import compare
from runtime.bench.machine import Machine, versions
from runtime.bench.measure import Run, Setting, measure
from runtime.bench.options import add_prompts, check_prompts, counts, positive, speculations
from runtime.bench.prompts import MT_BENCH, MT_BENCH_TEMPLATE, encode, questions, random_prompts
from runtime.bench.report import Report
from runtime.bench.simulated import SimulatedSession
from runtime.engine import Engine
from runtime.errors import ConfigurationError
from runtime.manifest import Manifest
from runtime.params import EngineConfig, SamplingParams

CHUNK = 256  # prompt tokens a step: a prompt is in after one or two, and steps with prompts are not measured
SEED = 0  # of the prompts' order, of random prompts and of simulated acceptance


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "decode", help="tokens a second of decoding", description=__doc__.partition("\n\n")[2] if __doc__ else None
    )
    add = parser.add_argument
    add("--artifact", type=Path, required=True, help="directory that `python -m export` wrote")
    add("--speculation", type=speculations, default=speculations("off,4,16,auto"), metavar="LIST",
        help='"off", "auto" or tree nodes, with commas (off,4,16,auto)')  # fmt: skip
    add("--concurrency", type=counts, default=counts("1,8"), metavar="LIST",
        help="sequences at a time, with commas (1,8)")  # fmt: skip
    add("--max-tokens", type=positive, default=128, help="tokens of an answer at most (%(default)s)")
    add("--temperature", type=float, default=0.0, help="of sampling; at 1.5 most drafts fail (%(default)g)")
    add("--lookup", action=argparse.BooleanOptionalAction, default=True, help="draft by prompt lookup as well")
    add("--requests", type=positive, help="prompts a run (8 + 2 x concurrency)")
    add("--repeat", type=positive, default=6, help="runs of each setting; 6 give a 97 %% interval (%(default)s)")
    add("--threads", type=int, default=0, help="threads of ONNX Runtime, 0: all cores (%(default)s)")
    add("--acceptance", choices=("measured", "simulated"), default="measured",
        help="simulated: replay what is published of vicuna-7b's heads, for random weights (%(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures and runs there as well")
    source = add_prompts(parser)
    source.add_argument(
        "--random-prompts", type=positive, metavar="LENGTH", help="LENGTH random tokens; runs past </s>"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Measures, prints, writes. Raises GorgonError."""
    check_prompts(options)
    if options.random_prompts and options.raw:
        raise ConfigurationError("--raw goes with texts, not with --random-prompts")
    report = decode(options)
    print(report.table())
    if options.json is not None:
        options.json.write_text(json.dumps(report.json(), indent=1) + "\n", "utf-8")
    return 0


def decode(options: argparse.Namespace) -> Report:
    manifest = Manifest.read(options.artifact)
    rows = max(options.concurrency)
    config = EngineConfig(
        rows=rows,
        chunk=CHUNK,
        prefill_slowdown=1e9,  # prompts go in at once: only steps without any are measured
        kv_memory=rows * manifest.capacity * manifest.kv_bytes,  # every row's whole context: the budget is not measured
        threads=options.threads,
        lookup=options.lookup,
        prefix_reuse=False,  # every run is given the same prompts
    )
    engine = Engine.from_artifact(options.artifact, config, progress=lambda text: print(text, file=sys.stderr))
    if options.acceptance == "simulated":
        engine.session = SimulatedSession(engine.session, SEED)
    prompts, source = load_prompts(options, engine)
    params = SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        ignore_eos=options.acceptance == "simulated" or options.random_prompts is not None,
    )
    settings = [Setting(speculation, n) for n in options.concurrency for speculation in options.speculation]
    machine, runs = Machine.here(), take_turns(engine, settings, prompts, params, options.requests, options.repeat)
    runs.sort(key=lambda run: (settings.index(run.setting), run.repeat))
    threads = options.threads or machine.cores
    return Report(
        machine, versions(), manifest.name, manifest.precision, engine.session.provider, threads, options.acceptance,
        source, options.max_tokens, runs, compare(runs),
    )  # fmt: skip


def load_prompts(options: argparse.Namespace, engine: Engine) -> tuple[list[list[int]], str]:
    """Token ids, and where they are from."""
    if options.random_prompts is not None:
        length = options.random_prompts
        return random_prompts(256, length, engine.manifest.vocab, SEED), f"{length} random tokens"
    if options.prompts is not None:
        texts = questions(options.prompts, options.template or "{prompt}", options.without, SEED)
        source = options.prompts.name
    else:
        texts, source = questions(MT_BENCH, MT_BENCH_TEMPLATE, None, SEED), "MT-Bench, first turns"
    prompts = encode(texts, engine.manifest, engine.tokenizer, options.raw)
    room = engine.manifest.context - options.max_tokens
    fitting = [prompt for prompt in prompts if len(prompt) <= room]
    if not fitting:
        raise ConfigurationError(f"no prompt of {source} leaves room for {options.max_tokens} tokens: give less")
    if left_out := len(prompts) - len(fitting):
        source += f" ({left_out} too long ones left out)"
    return fitting, source


def take_turns(
    engine: Engine,
    settings: list[Setting],
    prompts: list[list[int]],
    params: SamplingParams,
    requests: int | None,
    repeat: int,
) -> list[Run]:
    """A run of each setting to warm up, then `repeat` of each, the first of a repetition another one each time."""
    runs = []
    with tqdm(total=(repeat + 1) * len(settings), unit="run", file=sys.stderr, disable=None) as progress:
        for turn in range(repeat + 1):
            shift = turn % len(settings)
            for setting in settings[shift:] + settings[:shift]:
                progress.set_description(f"{setting.concurrency} concurrent, speculation {setting.speculation}")
                count = requests or 8 + 2 * setting.concurrency
                chosen = [prompts[(turn * count + i) % len(prompts)] for i in range(count)]
                asked = replace(params, speculation=setting.speculation)
                runs.append(measure(engine, setting, chosen, asked, turn))
                progress.update()
    return [run for run in runs if run.repeat > 0]
