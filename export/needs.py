"""Prints the extras to install beside `gorgon[serve]` to export a checkpoint, one a line; often none.

`export` for pickles, `sentencepiece` for a tokenizer.model without a tokenizer.json, `gguf` for a GGUF file.

Run:  python -m export.needs CHECKPOINT [HEADS] [--offline]
Names on the Hub are downloaded for it: what they need shows when they are there.
"""

import sys

from export.checkpoint import find, is_pickled
from export.heads import beside, needs_torch
from export.hub import local
from export.model import form
from export.tokenizer import needs_sentencepiece
from runtime.errors import GorgonError

OFFLINE = "--offline"


def main(arguments: list[str]) -> int:
    given, *others = [argument for argument in arguments if argument != OFFLINE]
    offline = OFFLINE in arguments
    try:
        checkpoint = form(local(given, "checkpoint", offline))
        named = [local(other, "heads", offline) for other in others]
        own = None if checkpoint.is_file() else beside(checkpoint)
        heads = named or ([] if own is None else [own])
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
