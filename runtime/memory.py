"""Whether a model fits into this machine's memory, said before it is loaded: a machine must not die of one."""

from pathlib import Path

from runtime.errors import ConfigurationError
from runtime.manifest import Manifest
from runtime.params import EngineConfig

BESIDE = 512 << 20  # bytes for the program, its tokenizer and a step's values
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def check(manifest: Manifest, config: EngineConfig) -> None:
    """Raises ConfigurationError if weights, keys and values cannot be held; says nothing where it cannot be known."""
    free = available()
    weights = sum(int(file["size"]) for name, file in manifest.files.items() if name.endswith(".data"))
    cache = min(config.kv_memory, config.rows * manifest.capacity * manifest.kv_bytes)
    need = weights + cache + BESIDE
    if free is None or need <= free:
        return
    left = free - weights - BESIDE
    advice = (
        f"take --kv-memory {left >> 20}M or less"
        if left >= manifest.kv_bytes * manifest.capacity
        else "export it in fewer bits, or take a machine with more memory"
    )
    raise ConfigurationError(
        f"{manifest.name} needs {_gib(weights)} for weights + {_gib(cache)} for keys and values + {_gib(BESIDE)} beside"
        f" them = {_gib(need)} GiB, and {_gib(free)} GiB of memory are free: {advice}"
    )


def available(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that a process may still take before others are swapped out or killed; None where nothing tells."""
    found = []
    try:
        lines = (proc / "meminfo").read_text("ascii").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        [own] = [line[3:] for line in (proc / "self/cgroup").read_text("ascii").splitlines() if line.startswith("0::")]
    except (FileNotFoundError, ValueError):
        own = "/"
    place = cgroup / own.lstrip("/")
    for group in (place, *(p for p in place.parents if p.is_relative_to(cgroup))):
        if (left := _left(group)) is not None:
            found.append(left)
    return min(found, default=None)


def _left(group: Path) -> int | None:
    """Of a control group with a limit: what is neither taken nor only a file's copy."""
    try:
        limit = (group / "memory.max").read_text("ascii").strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text("ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
