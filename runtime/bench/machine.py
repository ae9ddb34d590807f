"""What a measurement ran on: the machine, the versions, and what else the machine was doing meanwhile."""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")  # what the matrix kernels choose by


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cores: int  # that this process may use
    memory: int  # bytes
    isa: tuple[str, ...]
    system: str

    @classmethod
    def here(cls) -> "Machine":
        cpuinfo = Path("/proc/cpuinfo")
        text = cpuinfo.read_text() if cpuinfo.is_file() else ""
        name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
        flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
        known = flags[1].split() if flags else []
        return cls(
            cpu=name[1] if name else platform.processor() or platform.machine(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory=psutil.virtual_memory().total,
            isa=tuple(flag for flag in ISA if flag in known),
            system=f"{platform.system()} {platform.release()}",
        )


def versions() -> dict[str, str]:
    """Python and the packages that decide the speed, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ImportError:  # PackageNotFoundError: of the two ONNX Runtimes one is there
            continue
    return found


class OtherLoad:
    """How much of the machine's processor time others used since this was made."""

    def __init__(self) -> None:
        self._busy, self._total, self._own = self._read()

    def share(self) -> float:
        """From 0 to 1, of all cores."""
        busy, total, own = self._read()
        if total <= self._total:
            return 0.0
        return max(0.0, (busy - self._busy) - (own - self._own)) / (total - self._total)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        own = os.times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # guest time is counted in user time already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - idle, total, own.user + own.system
