"""The machine and the packages that decide how long a step takes."""

import ctypes
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")  # what the matrix kernels choose by


def cpu() -> tuple[str, tuple[str, ...]]:
    """The processor's name, and which of ISA it has."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    known = flags[1].split() if flags else []
    return name[1] if name else platform.processor() or platform.machine(), tuple(x for x in ISA if x in known)


def gpus() -> tuple[str, ...]:
    """Models of NVIDIA's GPUs, as the driver tells them."""
    told = [file.read_text() for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    return tuple(found[1] for text in told if (found := re.search(r"^Model:\s*(.*)$", text, re.MULTILINE)))


def cuda_devices() -> int:
    """GPUs that CUDA's driver can use; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    usable = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if usable else 0


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except ImportError:  # PackageNotFoundError: of the two ONNX Runtimes one is there
            continue
    return found
