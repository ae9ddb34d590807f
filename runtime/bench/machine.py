"""What a measurement ran on: the machine, the versions, and what else the machine was doing meanwhile."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from runtime import machine

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cores: int  # that this process may use
    memory: int  # bytes
    isa: tuple[str, ...]
    system: str

    @classmethod
    def here(cls) -> "Machine":
        cpu, isa = machine.cpu()
        memory = psutil.virtual_memory().total
        return cls(cpu, machine.usable_cores(), memory, isa, f"{platform.system()} {platform.release()}")


def versions() -> dict[str, str]:
    """Python and the packages that decide the speed, as far as they are installed."""
    return {"python": platform.python_version()} | machine.versions(PACKAGES)


def heading(here: Machine, used: Mapping[str, str]) -> list[str]:
    """The two lines that figures begin with; `used` are versions."""
    return [
        f"machine: {here.cpu}, {here.cores} cores, {here.memory / 2**30:.0f} GiB, {' '.join(here.isa)}",
        "versions: " + ", ".join(f"{name} {number}" for name, number in used.items()),
    ]


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
