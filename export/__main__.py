"""`python -m export`: compiles a checkpoint, and its Medusa heads, to an artifact."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from export.chat import NAMES as CHAT_TEMPLATES
from runtime.errors import GorgonError
from runtime.manifest import FORMS, PRECISIONS

FORM_HELP = "of the graph: ragged for CPUs, padded for CUDA and TensorRT (default: %(default)s)"
PRECISION_HELP = (
    "of the linear layers: int8 in channels, int4 and int8-block32 in blocks of 32 weights, which keep the values of "
    "GGUF's Q4_0 and Q8_0 bit for bit; fp16 and bf16 in the padded form only, int8 and int8-block32 in the ragged one "
    "(default: %(default)s)"
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m export",
        description="Compiles a Hugging Face Llama checkpoint, and its Medusa heads, to an artifact for ONNX Runtime.",
        epilog="exit codes: 0 done, 1 the system refused (a full disk, no permission), 2 an option that cannot work, "
        "3 OUT cannot be replaced, 4 a checkpoint or heads that do not fit, 5 a failed self-test, 130 interrupted; "
        "OUT is then what it was before",
    )
    add = top.add_argument
    add(
        "checkpoint", metavar="CHECKPOINT",
        help="a Hugging Face directory (config.json, tensors, tokenizer), a GGUF file, or OWNER/NAME of the Hub",
    )  # fmt: skip
    heads = top.add_mutually_exclusive_group()
    heads.add_argument(
        "--heads", metavar="PATH",
        help="Medusa heads: a file, the directory that holds it, or OWNER/NAME (default: those in CHECKPOINT, if any)",
    )  # fmt: skip
    heads.add_argument("--plain", action="store_true", help="no heads, even if CHECKPOINT has some")
    add("--form", choices=FORMS, default="ragged", help=FORM_HELP)
    add("--precision", choices=PRECISIONS, default="int8", help=PRECISION_HELP)
    add("--context", type=int, metavar="N", help="tokens of prompt and answer together (default: the checkpoint's own)")
    add(
        "--chat-template", metavar="NAME|FILE",
        help=f"{', '.join(CHAT_TEMPLATES)}, or a file (default: the checkpoint's own, else by its name or tokens)",
    )  # fmt: skip
    add(
        "--no-self-test", dest="self_test", action="store_false",
        help="keep an artifact that this machine cannot run unchecked (bf16 without a GPU)",
    )  # fmt: skip
    add("--offline", action="store_true", help="take from the Hub only what was downloaded before")
    add("--out", type=Path, required=True, metavar="artifacts/NAME", help="the artifact to make, or to replace")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        from export.artifact import Source, export  # once the options are known, so that --help is quick
        from export.hub import local

        asked = {field.name: getattr(options, field.name) for field in fields(Source)}
        asked["checkpoint"] = local(options.checkpoint, "checkpoint", options.offline)
        asked["heads"] = local(options.heads, "heads", options.offline) if options.heads is not None else None
        source = Source(**asked)
        manifest, report = export(source, options.out, Progress(str(options.out)), note)
    except GorgonError as error:
        print(f"{CLEAR}export: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a place that may not be written
        print(f"{CLEAR}export: {error}; {options.out} is what it was before", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{CLEAR}export: interrupted; {options.out} is what it was before", file=sys.stderr)
        return 130
    size = sum(int(file["size"]) for file in manifest.files.values()) / 2**20
    print(
        f"{CLEAR}{options.out}: {manifest.precision}, {manifest.medusa_heads} Medusa heads, {size:.1f} MiB",
        file=sys.stderr,
    )
    print(f"self-test: {report or 'left out'}", file=sys.stderr)
    return 0


CLEAR = "\r\033[K" if sys.stderr.isatty() else ""


def note(line: str) -> None:
    """A line that stays."""
    print(f"{CLEAR}{line}", file=sys.stderr, flush=True)


class Progress:
    """What is being done, on standard error: one line that changes on a terminal, else a line each."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, what: str) -> None:
        print(f"{CLEAR}{self._name}: {what}", end="" if CLEAR else "\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
