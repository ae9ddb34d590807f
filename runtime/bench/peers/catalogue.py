"""Which engines take part, and in what: peers.json, read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("peers.json")
OWN = "Gorgon"


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine: the module of engines/ that drives it, what to run it in, and what to install for it."""

    name: str
    engine: str
    precisions: tuple[str, ...]
    speculation: tuple[str, ...]
    install: tuple[str, ...]  # none: it runs in this interpreter's own environment
    pins: Mapping[str, str]
    build: str | None  # the package that is compiled here


def catalogue(path: Path = FILE) -> dict[str, Peer]:
    """By name, in the file's order."""
    return {
        name: Peer(
            name,
            entry["engine"],
            tuple(entry["precisions"]),
            tuple(entry["speculation"]),
            tuple(entry.get("install", ())),
            entry.get("pins", {}),
            entry.get("build"),
        )
        for name, entry in json.loads(path.read_text("utf-8")).items()
    }
