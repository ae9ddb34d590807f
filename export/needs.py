"""Prints the extras to install beside `gorgon[serve]` to export a checkpoint, one a line; often none.

`export` for pickles, `sentencepiece` for a tokenizer.model without a tokenizer.json, `gguf` for a GGUF file.

Run:  python -m export.needs CHECKPOINT [HEADS]
"""

import sys
from pathlib import Path

from export.checkpoint import find, is_pickled
from export.heads import beside, needs_torch
from export.model import form
from export.tokenizer import needs_sentencepiece
from runtime.errors import GorgonError


def main(arguments: list[str]) -> int:
    given, *others = map(Path, arguments)
    try:
        checkpoint = form(given)
        own = None if checkpoint.is_file() else beside(checkpoint)
        heads = others or ([] if own is None else [own])
        pickled = any(map(needs_torch, heads)) or (not checkpoint.is_file() and is_pickled(find(checkpoint)))
    except GorgonError as error:
        print(f"export: {error}", file=sys.stderr)
        return error.exit_code
    needed = {"export": pickled, "sentencepiece": needs_sentencepiece(checkpoint), "gguf": checkpoint.is_file()}
    for extra, is_needed in needed.items():
        if is_needed:
            print(extra)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
