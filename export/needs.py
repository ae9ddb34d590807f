"""Prints what must be installed beside `gorgon[serve]` to export these heads: `export` for pickles, else nothing.

Run:  python -m export.needs [HEADS]
"""

import sys
from pathlib import Path

from export.heads import needs_torch
from runtime.errors import GorgonError


def main(arguments: list[str]) -> int:
    try:
        if any(needs_torch(Path(argument)) for argument in arguments):
            print("export")
    except GorgonError as error:
        print(f"export: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
