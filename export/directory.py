"""Replaces a directory as a whole: NAME is a symlink to .NAME-<number> beside it, and switching it is one rename.

A kill at any moment leaves what NAME was. Each directory is locked while it is being written, so that the next writer
can tell what a killed one left, and removes it, from what another is still writing.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import ArtifactError

LINK = ".link"  # inside the new directory until it becomes NAME


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Gives a fresh directory that becomes `out` when the block ends well, and is removed when it raises.

    Raises ArtifactError if `out` exists and was not made so.
    """
    check(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    fresh, lock = _create(out)
    try:
        try:
            yield fresh
            check(out)  # again: the block may have taken an hour
        except BaseException:
            shutil.rmtree(fresh)
            raise
        (fresh / LINK).symlink_to(fresh.name)
        os.replace(fresh / LINK, out)
    finally:
        os.close(lock)
    _remove_leftovers(out)


def check(out: Path) -> None:
    """Raises ArtifactError unless `out` is free, or a symlink made here."""
    if not out.name or out.name in (".", ".."):
        raise ArtifactError(f"{str(out)!r} names no artifact: expected a path such as artifacts/NAME")
    if out.is_symlink():
        if not _pattern(out).fullmatch(os.readlink(out)):
            raise ArtifactError(
                f"{out} is a symlink to {os.readlink(out)}, which no export made: remove it or choose another"
            )
    elif out.exists():
        raise ArtifactError(f"{out} exists and no export made it: remove it or choose another name")
    elif out.parent.exists() and not out.parent.is_dir():
        raise ArtifactError(f"{out.parent} is not a directory: choose another place")


def _pattern(out: Path) -> re.Pattern[str]:
    return re.compile(rf"\.{re.escape(out.name)}-[0-9a-f]{{8}}")


def _create(out: Path) -> tuple[Path, int]:
    """A fresh directory and the descriptor that locks it."""
    while True:
        fresh = out.parent / f".{out.name}-{secrets.token_hex(4)}"
        try:
            fresh.mkdir()
        except FileExistsError:
            continue
        try:
            lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # taken for a leftover before it was locked
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(fresh):
            return fresh, lock
        os.close(lock)


def _remove_leftovers(out: Path) -> None:
    """Removes the directories of `out` that it does not point to and nobody is writing."""
    for path in out.parent.iterdir():
        if not _pattern(out).fullmatch(path.name):
            continue
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not out.is_symlink() or os.readlink(out) != path.name:
                shutil.rmtree(path)
        except BlockingIOError:
            continue  # being written
        finally:
            os.close(lock)
