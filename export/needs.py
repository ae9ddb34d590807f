"""Prints the extras to install beside `gorgon[serve]` to export a checkpoint, one a line; often none.

`export` for pickles, `sentencepiece` for a tokenizer.model without a tokenizer.json.

Run:  python -m export.needs CHECKPOINT [HEADS]
"""

import sys
from pathlib import Path

from export.checkpoint import find, is_pickled
from export.heads import beside, needs_torch
from export.tokenizer import needs_sentencepiece
from runtime.errors import GorgonError


def main(arguments: list[str]) -> int:
    checkpoint, *others = map(Path, arguments)
    own = beside(checkpoint)
    heads = others or ([] if own is None else [own])
    try:
        if is_pickled(find(checkpoint)) or any(map(needs_torch, heads)):
            print("export")
    except GorgonError as error:
        print(f"export: {error}", file=sys.stderr)
        return error.exit_code
    if needs_sentencepiece(checkpoint):
        print("sentencepiece")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
