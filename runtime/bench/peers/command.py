"""`python -m runtime.bench peers`: Gorgon and its peers on one checkpoint, in turns, on this machine.

Every peer is installed into an environment of its own, all are given the same checkpoint, prompts, number of tokens and
threads, and each takes part in every precision that it has. What cannot be run is named with the reason.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm import tqdm

from runtime.bench.machine import Machine
from runtime.bench.options import add_prompts, check_prompts, counts, positive
from runtime.bench.peers.catalogue import OWN, Peer, catalogue
from runtime.bench.peers.contest import Contest, Setting, Task
from runtime.bench.peers.entry import ROOT, Entries, Given
from runtime.bench.peers.gorgon import ARTIFACT
from runtime.bench.peers.install import NotInstalled, cmake_arguments, cpu_flags, find_clang
from runtime.bench.peers.process import Failed
from runtime.bench.peers.report import REFERENCE, Report, summarize
from runtime.bench.prompts import MT_BENCH, MT_BENCH_TEMPLATE, encode, questions, random_prompts
from runtime.errors import ConfigurationError
from runtime.manifest import Manifest

SEED = 0  # of the prompts' order and of random prompts
DEMO = ROOT / "export" / "demo"
DEMO_PROMPTS = (DEMO / "data.jsonl", "What does {name} do?", "heldout")  # file, template, without
RANDOM_TEXTS = "on random weights a text repeats itself or does not by accident: prompt-lookup would say nothing"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "peers",
        help="other engines on the same checkpoint",
        description=__doc__.partition("\n\n")[2] if __doc__ else None,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="Hugging Face directory of a Llama (the demo model's)")
    add("--heads", type=Path, metavar="PATH", help=f"Medusa heads, for {OWN} alone (the demo model's)")
    add("--engines", metavar="LIST", help="ENGINE or ENGINE/PRECISION, with commas (all): " + ", ".join(catalogue()))
    add("--concurrency", type=counts, default=counts("1,8"), metavar="LIST",
        help="sequences at a time, with commas (1,8)")  # fmt: skip
    add("--max-tokens", type=positive, default=32, help="tokens of every answer (%(default)s)")
    add("--groups", type=positive, default=4, help="times CONCURRENCY prompts in a run (%(default)s)")
    add("--repeat", type=positive, default=6, help="rounds; 6 give a 97 %% interval (%(default)s)")
    add("--threads", type=positive, help="of every engine (all cores)")
    add("--acceptance", choices=("measured", "simulated"), default="measured",
        help=f"simulated: {OWN} replays what is published of vicuna-7b's heads; for random weights")  # fmt: skip
    add("--home", type=Path, default=Path(".peers"), metavar="DIR",
        help="where peers are installed, gigabytes (%(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures and runs there as well")
    add("--png", type=Path, metavar="FILE", help="plot tokens a second there")
    source = add_prompts(parser)
    source.add_argument(
        "--random-prompts", type=positive, metavar="LENGTH", help="LENGTH random tokens; runs past </s>"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Measures, prints, writes. Raises GorgonError."""
    check_prompts(options)
    peers = catalogue()
    wanted = choose(options.engines, peers)
    machine = Machine.here()
    checkpoint, heads, name = options.checkpoint, options.heads, "the demo model"
    if checkpoint is None:
        checkpoint, heads = DEMO / "model", heads or DEMO / "model" / "medusa_lm_head.safetensors"
    else:
        name = checkpoint.resolve().name
    given = Given(
        checkpoint.resolve(), None if heads is None else heads.resolve(), options.home.resolve(),
        options.threads or machine.cores,
    )  # fmt: skip
    entries = Entries(given)
    entries.prepare(peers, wanted, _say)
    simulated = options.acceptance == "simulated"
    past_end = simulated or options.random_prompts is not None
    prompts, source = load_prompts(options, entries)
    rows = max(options.concurrency)
    try:
        entries.load(rows, max(map(len, prompts)) + options.max_tokens, simulated, _say)
        contest = Contest(entries.loaded, machine.cores)
        task, reference = set_task(options, contest, list(entries.loaded), prompts, past_end)
        settings = all_settings(peers, list(entries.loaded), options.concurrency, simulated, contest.notes)
        with tqdm(unit="run", file=sys.stderr, disable=None) as bar:
            runs = contest.play(settings, task, options.repeat, lambda text: (bar.set_description(text), bar.update()))
    finally:
        entries.close()
    runs.sort(key=lambda run: (settings.index(run.setting), run.repeat))
    report = Report(
        machine, entries.versions, _built(wanted), name, given.threads, options.acceptance, source,
        options.max_tokens, options.groups, reference, entries.memory, runs, summarize(runs),
        [*entries.notes, *contest.notes],
    )  # fmt: skip
    print(report.table())
    if options.json is not None:
        options.json.write_text(json.dumps(report.json(), indent=1) + "\n", "utf-8")
    if options.png is not None:
        from runtime.bench.peers.plot import plot  # matplotlib takes a second to import

        plot(report, options.png)
    return 0


def choose(text: str | None, peers: dict[str, Peer]) -> list[tuple[str, str]]:
    """Pairs of engine and precision, in the catalogue's order. Raises ConfigurationError for one that is not there."""
    every = [(peer.name, precision) for peer in peers.values() for precision in peer.precisions]
    if text is None:
        return every
    chosen = set()
    for part in text.split(","):
        engine, _, precision = part.partition("/")
        found = [pair for pair in every if pair[0] == engine and precision in ("", pair[1])]
        if not found:
            known = ", ".join(f"{name}/{precision}" for name, precision in every)
            raise ConfigurationError(f"--engines has {part!r}: expected some of {known}")
        chosen |= {*found}
    return [pair for pair in every if pair in chosen]


def load_prompts(options: argparse.Namespace, entries: Entries) -> tuple[list[list[int]], str]:
    """Token ids, and where they are from, through the chat template of our own artifact."""
    artifacts = [form / ARTIFACT for (name, _), (_, _, form) in entries.ready.items() if name == OWN]
    if not artifacts:
        raise ConfigurationError(f"{OWN} itself cannot take part: {'; '.join(entries.notes) or 'it was not asked to'}")
    manifest = Manifest.read(artifacts[0])
    if options.random_prompts is not None:
        length = options.random_prompts
        return random_prompts(256, length, manifest.vocab, SEED), f"{length} random tokens"
    if options.prompts is None and options.checkpoint is None:
        file, template, without = DEMO_PROMPTS
        texts, source = questions(file, template, without, SEED), "the demo model's trained questions"
    elif options.prompts is not None:
        texts = questions(options.prompts, options.template or "{prompt}", options.without, SEED)
        source = options.prompts.name
    else:
        texts, source = questions(MT_BENCH, MT_BENCH_TEMPLATE, None, SEED), "MT-Bench, first turns"
    tokenizer = Tokenizer.from_file(str(artifacts[0] / "tokenizer.json"))
    prompts = encode(texts, manifest, tokenizer, options.raw)
    room = manifest.context - options.max_tokens
    return [prompt for prompt in prompts if len(prompt) <= room], source


def set_task(
    options: argparse.Namespace,
    contest: Contest,
    loaded: Sequence[tuple[str, str]],
    prompts: list[list[int]],
    past_end: bool,
) -> tuple[Task, str]:
    """The prompts whose answers are long enough, with those answers, and whose they are.

    The reference is our own fp32, plain, or else the first engine there is; with simulated acceptance texts mean
    nothing, and there is none. Prompts of like lengths stand together: a batch of them needs little padding.
    """
    rows = max(options.concurrency)
    needed = 2 * options.groups * rows
    if options.acceptance == "simulated":
        return Task(prompts[:needed], options.groups, options.max_tokens, past_end, None), ""
    if not loaded:
        raise ConfigurationError(f"no engine could be loaded: {'; '.join(contest.notes)}")
    own = (OWN, REFERENCE[0])
    engine, precision = own if own in loaded else loaded[0]
    _say(f"{engine} {precision} answers first, for prompts whose answers are long enough")
    found: list[tuple[list[int], list[int]]] = []
    for start in range(0, len(prompts) - rows + 1, rows):
        group = prompts[start : start + rows]
        task = Task(group, 1, options.max_tokens, past_end, None)
        try:
            answers = contest.answers(Setting(engine, precision, REFERENCE[1], rows), task)
        except Failed as error:
            raise ConfigurationError(
                f"{engine} {precision}, whose answers the others' are compared with: {error}"
            ) from None
        found += [pair for pair in zip(group, answers, strict=True) if len(pair[1]) == options.max_tokens]
        if len(found) >= needed:
            break
    if len(found) < rows:
        raise ConfigurationError(f"{len(found)} answers have {options.max_tokens} tokens: give less --max-tokens")
    found = sorted(found[:needed], key=lambda pair: len(pair[0]))
    chosen, answers = [list(part) for part in zip(*found, strict=True)]
    return Task(chosen, options.groups, options.max_tokens, past_end, answers), f"{engine} {precision}"


def all_settings(
    peers: dict[str, Peer],
    loaded: Sequence[tuple[str, str]],
    concurrencies: list[int],
    simulated: bool,
    notes: list[str],
) -> list[Setting]:
    settings = []
    for concurrency in concurrencies:
        for engine, precision in loaded:
            for speculation in peers[engine].speculation:
                if simulated and speculation == "lookup":
                    notes.append(note) if (
                        note := f"{engine}, speculation lookup: {RANDOM_TEXTS}"
                    ) not in notes else None
                else:
                    settings.append(Setting(engine, precision, speculation, concurrency))
    return settings


def _built(wanted: Sequence[tuple[str, str]]) -> list[str]:
    if not any(name == "llama.cpp" for name, _ in wanted):
        return []
    try:
        return cmake_arguments(cpu_flags(), find_clang())
    except NotInstalled:
        return []


def _say(text: str) -> None:
    print(f"peers: {text}", file=sys.stderr, flush=True)
