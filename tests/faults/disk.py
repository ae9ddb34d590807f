"""Exports onto a disk that fills up: on a small file system, or, where none may be mounted, by a limit on files."""

import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

from tests.checkpoints import medusa_heads, tiny_llama
from tests.faults.tally import Tally

ROOT = Path(__file__).parents[2]
SPACE = ["unshare", "--user", "--map-root-user", "--mount"]  # a mount of one's own needs no rights
FULL = ("No space left on device", "File too large")
BLOCK = 4096


def may_mount() -> bool:
    done = subprocess.run([*SPACE, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True)
    return done.returncode == 0


def full_disk(directory: Path, exports: int, seed: int, mount: bool) -> Tally:
    """Exports with room for a random part of what they write; the artifact that was there has to stay, whole."""
    heads = medusa_heads(directory / "heads")
    old, new = (tiny_llama(directory / str(i), seed=i, num_hidden_layers=6) for i in (0, 1))
    made = directory / "made"
    subprocess.run(_export(old, heads, made / "tiny"), check=True, cwd=ROOT, capture_output=True)
    files = [file for file in made.rglob("*") if file.is_file() and ".cache" not in file.parts]
    written = sum(-(-file.stat().st_size // BLOCK) * BLOCK for file in files)
    largest = max(file.stat().st_size for file in files)
    tally, rng = Tally(), random.Random(seed)
    for _ in range(exports):
        tally.requests += 1
        tally.faults["disk full" if mount else "file too large"] += 1
        done = (
            _on_small_disk(made, written, rng.random(), _export(new, heads, directory / "disk" / "tiny"))
            if mount
            else _with_small_files(int(rng.random() * largest), _export(new, heads, made / "tiny"))
        )
        said = done.stderr.splitlines()[-1]
        if done.returncode == 1 and any(words in said for words in FULL) and "Traceback" not in done.stderr:
            tally.stated += 1
        else:
            tally.lost.append(f"export ended with code {done.returncode}: {done.stderr[-300:]}")
        if not mount:
            tally.wrong += _damage(made)
        elif "whole" not in done.stdout:
            tally.wrong.append(f"the artifact that was there is damaged: {done.stdout[-300:]}")
    return tally


def _on_small_disk(made: Path, written: int, part: float, export: list[str]) -> "subprocess.CompletedProcess[str]":
    """On a file system that has room for `made` and a part as much again."""
    disk = made.parent / "disk"
    disk.mkdir(exist_ok=True)
    size = written + max(8 * BLOCK, int(part * 0.9 * written))
    check = [sys.executable, "-m", "tests.faults.disk", str(disk)]
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(disk))} && cp -a {shlex.quote(str(made))}/.tiny-*"
        f" {shlex.quote(str(made))}/tiny {shlex.quote(str(disk))} && {{ {shlex.join(export)}; code=$?; }}"
        f" && {shlex.join(check)} && exit $code"
    )
    return subprocess.run([*SPACE, "sh", "-c", script], capture_output=True, text=True, cwd=ROOT)


def _with_small_files(size: int, export: list[str]) -> "subprocess.CompletedProcess[str]":
    """No file may be larger than `size`."""
    return subprocess.run(["prlimit", f"--fsize={size}", *export], capture_output=True, text=True, cwd=ROOT)


def _export(base: Path, heads: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "export", str(base), "--heads", str(heads), "--out", str(out)]


def _damage(directory: Path) -> list[str]:
    """What is wrong with what a failed export left: the artifact is whole, and nothing lies beside it."""
    from runtime.errors import ArtifactError
    from runtime.manifest import Manifest

    try:
        Manifest.read(directory / "tiny", verify=True)
    except ArtifactError as error:
        return [str(error)]
    beside = set(os.listdir(directory)) - {"tiny", ".cache", os.readlink(directory / "tiny")}
    return [f"left behind: {sorted(beside)}"] if beside else []


if __name__ == "__main__":
    print(_damage(Path(sys.argv[1])) or "whole")
