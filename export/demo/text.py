"""pydoc-chat's questions and answers as text: for its heads, and for `python -m export.evaluate`.

python -m export.demo.text FILE     every trained object's question in a phrasing that training never saw
"""

import json
import random
import sys
from pathlib import Path

from export.demo.dialogue import EOS, HELD_OUT_PHRASINGS, PREFIX, TRAINED_PHRASINGS, Entry, load_entries, turn

HEAD_PHRASINGS = 3  # trained phrasings an object gives to the heads

Asked = list[tuple[Entry, str]]


def trained(entries: list[Entry]) -> Asked:
    """The trained objects in a few of the phrasings they were trained in."""
    draw = random.Random(0)
    known = [entry for entry in entries if not entry.heldout]
    return [(entry, phrasing) for entry in known for phrasing in draw.sample(TRAINED_PHRASINGS, HEAD_PHRASINGS)]


def held_out(entries: list[Entry]) -> Asked:
    """The trained objects, each in one phrasing that was held out."""
    draw = random.Random(1)
    return [(entry, draw.choice(HELD_OUT_PHRASINGS)) for entry in entries if not entry.heldout]


def write(file: Path, asked: Asked) -> None:
    """A .jsonl file of prompts and answers, as `export.text` reads it."""
    lines = [
        {"prompt": PREFIX + turn(phrasing, entry.name), "text": f" {entry.answer}{EOS}"} for entry, phrasing in asked
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m export.demo.text FILE")
    write(Path(sys.argv[1]), held_out(load_entries()))
