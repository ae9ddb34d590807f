"""From a checkpoint to loaded engines: each one's environment, its own form of the checkpoint, its process.

HOME/environments/PEER        what is installed for it
HOME/models/CHECKPOINT-HASH/  what it made of the checkpoint, PEER-PRECISION-HASH each
HOME/logs/                    what its processes said
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.bench.peers.catalogue import OWN, Peer
from runtime.bench.peers.install import NotInstalled, install
from runtime.bench.peers.process import Failed, Process
from runtime.errors import ConfigurationError

Progress = Callable[[str], object]
PREPARATION = 3600.0  # seconds, of one form of a checkpoint
LOADING = 1800.0
ROOT = Path(__file__).parents[3]
HOST = Path(__file__).with_name("host.py")  # what a peer's interpreter runs


@dataclass(frozen=True, slots=True)
class Given:
    """What all engines are given."""

    checkpoint: Path
    heads: Path | None  # of use to us alone
    home: Path
    threads: int


@dataclass(slots=True)
class Entries:
    """The engines that take part: interpreter and form of the checkpoint of each (peer, precision), and what failed."""

    given: Given
    ready: dict[tuple[str, str], tuple[Peer, Path, Path]] = field(default_factory=dict)
    loaded: dict[tuple[str, str], Process] = field(default_factory=dict)
    versions: dict[str, Mapping[str, str]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)  # resident bytes after loading
    notes: list[str] = field(default_factory=list)

    def prepare(self, peers: Mapping[str, Peer], wanted: Iterable[tuple[str, str]], progress: Progress) -> None:
        """Installs the peers and lets each make its own form of the checkpoint, unless both are there."""
        home = self.given.home
        (home / "environments").mkdir(parents=True, exist_ok=True)
        (home / ".gitignore").write_text("*\n")
        pythons: dict[str, Path | None] = {}
        for name, precision in wanted:
            peer = peers[name]
            if name not in pythons:
                pythons[name] = None
                try:
                    pythons[name] = install(peer, home / "environments", progress)
                except NotInstalled as error:
                    self.notes.append(f"{name} could not be installed: {error}")
            if (python := pythons[name]) is None:
                continue
            try:
                self.ready[name, precision] = peer, python, self._form(peer, precision, python, progress)
            except Failed as error:
                self.notes.append(f"{name} {precision} could not read the checkpoint: {error}")

    def load(self, rows: int, length: int, simulated: bool, progress: Progress) -> None:
        """Starts and loads what is ready, and pauses it. `length`: tokens of prompt and answer at most."""
        for (name, precision), (peer, python, form) in self.ready.items():
            progress(f"loading {name} {precision}")
            process = self._start(peer, precision, python)
            message = {"do": "load", "checkpoint": str(self.given.checkpoint), "prepared": str(form), "rows": rows}
            message |= {"precision": precision, "threads": self.given.threads, "length": length, "simulated": simulated}
            try:
                reply = process.ask(message, LOADING)
            except Failed as error:
                process.close()
                self.notes.append(f"{name} {precision} could not be loaded: {error}")
                continue
            process.pause()
            self.loaded[name, precision] = process
            self.versions[name] = reply["versions"]
            self.memory[f"{name} {precision}"] = process.memory()
            self.notes += [note for said in reply.get("notes", ()) if (note := f"{name}: {said}") not in self.notes]

    def close(self) -> None:
        for process in self.loaded.values():
            process.close()

    def _form(self, peer: Peer, precision: str, python: Path, progress: Progress) -> Path:
        made_from = json.dumps([peer.pins, _sources() if peer.name == OWN else "", str(self.given.heads)])
        digest = hashlib.sha256(made_from.encode()).hexdigest()[:8]
        checkpoint = self.given.checkpoint
        place = self.given.home / "models" / f"{checkpoint.name}-{fingerprint(checkpoint, self.given.heads)}"
        form = place / f"{peer.name}-{precision}-{digest}"
        if form.is_dir():
            return form
        progress(f"{peer.name} {precision} reads the checkpoint")
        part = form.with_name(form.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        process = self._start(peer, precision, python)
        try:
            message = {"do": "prepare", "checkpoint": str(checkpoint), "out": str(part), "precision": precision}
            process.ask(message, PREPARATION)
        except Failed:
            shutil.rmtree(part)
            raise
        finally:
            process.close()
        return part.rename(form)

    def _start(self, peer: Peer, precision: str, python: Path) -> Process:
        if peer.name == OWN:
            heads = [] if self.given.heads is None else [str(self.given.heads)]
            command = [sys.executable, "-m", "runtime.bench.peers.gorgon", *heads]
        else:  # -P: the host's own directory is no place to look for its engine's packages
            command = [str(python), "-P", str(HOST), peer.engine]
        logs = self.given.home / "logs"
        logs.mkdir(exist_ok=True)
        return Process(f"{peer.name} {precision}", command, self.given.threads, logs / f"{peer.name}-{precision}.log")


def fingerprint(checkpoint: Path, heads: Path | None) -> str:
    """Of the files' names, sizes and times. Raises ConfigurationError where there is no checkpoint."""
    if not (checkpoint / "config.json").is_file():
        raise ConfigurationError(f"{checkpoint} holds no config.json: expected a Hugging Face directory")
    files = [*checkpoint.iterdir(), *([heads] if heads is not None else [])]
    try:
        parts = sorted((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{error.filename} does not exist: expected a checkpoint's or its heads' file"
        ) from None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _sources() -> Any:
    """What our own exporter is made of: another one makes another artifact."""
    files = sorted((ROOT / "export").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
