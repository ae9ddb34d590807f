"""`python -m runtime.bench decode`: tokens a second, plain against speculative, one sequence and several.

The settings take turns within one process, and every repetition runs all of them on the same prompts, so that a machine
that is busy for a while slows them alike; a speed-up compares runs of the same repetition.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from runtime.bench.compare import compare
from runtime.bench.machine import Machine, versions
from runtime.bench.measure import Run, Setting, measure
from runtime.bench.prompts import MT_BENCH, MT_BENCH_TEMPLATE, encode, questions, random_prompts
from runtime.bench.report import Report
from runtime.bench.simulated import SimulatedSession
from runtime.engine import Engine
from runtime.errors import ConfigurationError, GorgonError
from runtime.manifest import Manifest
from runtime.params import MAX_NODES, EngineConfig, SamplingParams

CHUNK = 256  # prompt tokens a step: a prompt is in after one or two, and steps with prompts are not measured
SEED = 0  # of the prompts' order, of random prompts and of simulated acceptance


def speculations(text: str) -> list[int | str]:
    return [part if part in ("off", "auto") else _whole(part, 2, MAX_NODES) for part in text.split(",")]


def concurrencies(text: str) -> list[int]:
    return [_whole(part, 1, 4096) for part in text.split(",")]


def _positive(text: str) -> int:
    return _whole(text, 1, 1 << 30)


def _whole(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m runtime.bench", description="Measures an artifact on this machine.")
    decode = top.add_subparsers(required=True, metavar="decode").add_parser(
        "decode", help="tokens a second of decoding", description=__doc__.partition("\n\n")[2] if __doc__ else None
    )
    add = decode.add_argument
    add("--artifact", type=Path, required=True, help="directory that `python -m export` wrote")
    add("--speculation", type=speculations, default=speculations("off,4,16"), metavar="LIST",
        help='"off", "auto" or tree nodes, with commas (off,4,16)')  # fmt: skip
    add("--concurrency", type=concurrencies, default=concurrencies("1,8"), metavar="LIST",
        help="sequences at a time, with commas (1,8)")  # fmt: skip
    add("--max-tokens", type=_positive, default=128, help="tokens of an answer at most (%(default)s)")
    add("--requests", type=_positive, help="prompts a run (8 + 2 x concurrency)")
    add("--repeat", type=_positive, default=6, help="runs of each setting; 6 give a 97 %% interval (%(default)s)")
    add("--threads", type=int, default=0, help="threads of ONNX Runtime, 0: all cores (%(default)s)")
    add("--acceptance", choices=("measured", "simulated"), default="measured",
        help="simulated: replay what is published of vicuna-7b's heads, for random weights (%(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures and runs there as well")
    prompts = decode.add_argument_group("prompts", "MT-Bench's questions, unless a file or random tokens are asked for")
    source = prompts.add_mutually_exclusive_group()
    source.add_argument("--prompts", type=Path, metavar="FILE", help="a .jsonl file, a row for each prompt")
    source.add_argument(
        "--random-prompts", type=_positive, metavar="LENGTH", help="LENGTH random tokens; runs past </s>"
    )
    add = prompts.add_argument
    add("--template", help="with --prompts: makes a prompt of a row's fields, in braces ({prompt})")
    add("--without", metavar="FIELD", help="with --prompts: leave out rows whose FIELD is true")
    add("--raw", action="store_true", help="prompts as they are, not as messages of the chat template")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    top = parser()
    options = top.parse_args(arguments)
    if options.prompts is None and (options.template or options.without):
        top.error("--template and --without go with --prompts")
    if options.random_prompts and options.raw:
        top.error("--raw goes with texts, not with --random-prompts")
    try:
        report = run(options)
    except GorgonError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report.table())
    if options.json is not None:
        options.json.write_text(json.dumps(report.json(), indent=1) + "\n", "utf-8")
    return 0


def run(options: argparse.Namespace) -> Report:
    manifest = Manifest.read(options.artifact)
    rows = max(options.concurrency)
    config = EngineConfig(
        rows=rows,
        chunk=CHUNK,
        kv_memory=rows * manifest.capacity * manifest.kv_bytes,  # every row's whole context: the budget is not measured
        threads=options.threads,
    )
    engine = Engine.from_artifact(options.artifact, config)
    if options.acceptance == "simulated":
        engine.session = SimulatedSession(engine.session, SEED)
    prompts, source = load_prompts(options, engine)
    params = SamplingParams(
        max_tokens=options.max_tokens,
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


if __name__ == "__main__":
    sys.exit(main())
