"""Options that several benchmarks share: whole numbers, lists of them, and where prompts come from."""

import argparse
from pathlib import Path
from typing import Any

from runtime.errors import ConfigurationError
from runtime.params import MAX_NODES


def whole(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
    return int(text)


def positive(text: str) -> int:
    return whole(text, 1, 1 << 30)


def counts(text: str) -> list[int]:
    """Of things at a time."""
    return [whole(part, 1, 4096) for part in text.split(",")]


def speculations(text: str) -> list[int | str]:
    return [part if part in ("off", "auto") else whole(part, 2, MAX_NODES) for part in text.split(",")]


def span(text: str) -> tuple[int, int]:
    """LOW-HIGH, or one number for both."""
    low, _, high = text.partition("-")
    bounds = positive(low), positive(high or low)
    if bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"{text!r} does not go from low to high")
    return bounds


def positives(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def number(text: str) -> float:
    """A finite one above zero."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def add_prompts(parser: argparse.ArgumentParser) -> Any:
    """The group of options that say which prompts; returns what holds the alternatives to a file of them."""
    prompts = parser.add_argument_group(
        "prompts", "MT-Bench's questions, unless a file or something random is asked for"
    )
    source = prompts.add_mutually_exclusive_group()
    source.add_argument("--prompts", type=Path, metavar="FILE", help="a .jsonl file, a row for each prompt")
    add = prompts.add_argument
    add("--template", help="with --prompts: makes a prompt of a row's fields, in braces ({prompt})")
    add("--without", metavar="FIELD", help="with --prompts: leave out rows whose FIELD is true")
    add("--raw", action="store_true", help="prompts as they are, not as messages of the chat template")
    return source


def check_prompts(options: argparse.Namespace) -> None:
    """Raises ConfigurationError for options of a file without the file."""
    if options.prompts is None and (options.template or options.without):
        raise ConfigurationError("--template and --without go with --prompts")
