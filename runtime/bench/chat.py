"""`python -m runtime.bench chat`: the time to the first token of each turn of a chat, with and without prefix reuse.

Every chat is held twice, one after the other in one process, in turns the one or the other first: once with what
earlier turns have left in its row, once with all of it given up before each turn. A ratio is of the same turn of the
same chat. Chats whose texts fork, as an int8 or int4 artifact's may where two tokens are almost equally likely, are
left out.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.bench.compare import Ratio, Spread
from runtime.bench.machine import Machine, heading, versions
from runtime.bench.markdown import ratio, spread, table
from runtime.bench.options import add_prompts, check_prompts, positive
from runtime.bench.prompts import MT_BENCH, MT_BENCH_TEMPLATE, questions
from runtime.engine import Engine
from runtime.errors import ConfigurationError, StepError
from runtime.params import EngineConfig, SamplingParams
from runtime.prompts import Prompts

SEED = 0  # of the questions' order


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a chat; `first` in seconds, from asking to the first token."""

    chat: int
    number: int  # from 1
    reuse: bool
    prompt: int  # tokens
    cached: int  # of these
    first: float
    text: str


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "chat", help="the first token of a chat's turns, with and without prefix reuse",
        description=__doc__.partition("\n\n")[2] if __doc__ else None,
    )  # fmt: skip
    add = parser.add_argument
    add("--artifact", type=Path, required=True, help="directory that `python -m export` wrote")
    add("--turns", type=positive, default=5, help="questions of a chat (%(default)s)")
    add("--chats", type=positive, default=12, help="chats, each held twice; 6 give a 97 %% interval (%(default)s)")
    add("--max-tokens", type=positive, default=64, help="tokens of an answer at most (%(default)s)")
    add("--threads", type=int, default=0, help="threads of ONNX Runtime, 0: all cores (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every turn there as well")
    add_prompts(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Measures, prints, writes. Raises GorgonError."""
    check_prompts(options)
    if options.raw:
        raise ConfigurationError("--raw has no turns: chats need the chat template")
    config = EngineConfig(rows=2, chunk=256, threads=options.threads)
    engine = Engine.from_artifact(options.artifact, config, progress=lambda text: print(text, file=sys.stderr))
    if options.prompts is None:
        texts = questions(MT_BENCH, MT_BENCH_TEMPLATE, None, SEED)
    else:
        texts = questions(options.prompts, options.template or "{prompt}", options.without, SEED)
    turns = measure(engine, texts, options.chats, options.turns, options.max_tokens)
    manifest = engine.manifest
    print("\n".join(heading(Machine.here(), versions())))
    left_out = options.chats - len(turns) // (2 * options.turns)
    print(f"artifact: {manifest.name}, {manifest.precision}; answers of {options.max_tokens} tokens at most")
    print(f"{options.chats} chats, {left_out} of them left out\n")
    print("\n".join(table(rows(turns))))
    print("\nmedians, [quartiles]; the ratio is a median over chats, (interval of its confidence)")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(turn) for turn in turns], indent=1) + "\n", "utf-8")
    return 0


def measure(engine: Engine, texts: list[str], chats: int, turns: int, max_tokens: int) -> list[Turn]:
    """Every chat twice, after one that warms up. Raises ContextError for chats that outgrow the context.

    Raises StepError where a turn fails, or every chat forks.
    """
    found: list[Turn] = []
    for chat in tqdm(range(chats + 1), unit="chat", file=sys.stderr, disable=None):
        asked = [texts[(chat * turns + i) % len(texts)] for i in range(turns)]
        held = {reuse: hold(engine, chat, asked, reuse, max_tokens) for reuse in (chat % 2 == 0, chat % 2 == 1)}
        if chat and [turn.text for turn in held[True]] == [turn.text for turn in held[False]]:
            found += held[True] + held[False]
    if not found:
        raise StepError("every chat went otherwise with what was reused: there is nothing to compare")
    return found


def hold(engine: Engine, chat: int, asked: list[str], reuse: bool, max_tokens: int) -> list[Turn]:
    """One chat, greedily answered, from nothing."""
    prompts, messages, turns = Prompts(engine.manifest, engine.tokenizer), list[dict[str, str]](), list[Turn]()
    engine.forget()
    for number, text in enumerate(asked, 1):
        messages.append({"role": "user", "content": text})
        tokens = prompts.chat(messages)
        if not reuse:
            engine.forget()
        began, first = time.perf_counter(), None
        sequence = engine.add(tokens, SamplingParams(max_tokens))
        while sequence.finish_reason is None:
            engine.step()
            if first is None and sequence.tokens:
                first = time.perf_counter() - began
        if sequence.error is not None or first is None:
            raise StepError(f"turn {number} of chat {chat} has no answer: {sequence.error or sequence.finish_reason}")
        messages.append({"role": "assistant", "content": sequence.text})
        turns.append(Turn(chat, number, reuse, len(tokens), sequence.cached, first, sequence.text))
    return turns


def rows(turns: list[Turn]) -> list[tuple[str, ...]]:
    """Of each turn: tokens, times, and how many times as fast it is with reuse."""
    found: list[tuple[str, ...]] = [
        ("turn", "prompt tokens", "reused", "without, ms", "with reuse, ms", "without over with")
    ]
    for number in sorted({turn.number for turn in turns}):
        by_reuse = {
            reuse: sorted((t for t in turns if (t.number, t.reuse) == (number, reuse)), key=lambda turn: turn.chat)
            for reuse in (True, False)
        }
        times = {reuse: [turn.first * 1e3 for turn in own] for reuse, own in by_reuse.items()}
        ratios = [without / with_ for without, with_ in zip(times[False], times[True], strict=True)]
        found.append((
            str(number), f"{Spread.of([t.prompt for t in by_reuse[True]]).median:.0f}",
            f"{Spread.of([t.cached for t in by_reuse[True]]).median:.0f}",
            spread(Spread.of(times[False]), 1), spread(Spread.of(times[True]), 1), ratio(Ratio.of(ratios)),
        ))  # fmt: skip
    return found
