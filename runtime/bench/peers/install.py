"""An environment for each peer, outside the project's own, with pinned versions; llama.cpp is compiled for this CPU."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from runtime.bench.peers.catalogue import Peer

STAMP = ".installed"  # what an environment was made from
CLANG = 16  # the first that is known to get AMX right; gcc 12 miscompiles its tile configuration

# CMake option of llama.cpp and the names in /proc/cpuinfo that it needs, all of them
FEATURES: Mapping[str, tuple[str, ...]] = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_AVX2": ("avx2",),
    "GGML_FMA": ("fma",),
    "GGML_F16C": ("f16c",),
    "GGML_BMI2": ("bmi2",),
    "GGML_AVX_VNNI": ("avx_vnni",),
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
    "GGML_AMX_TILE": ("amx_tile",),
    "GGML_AMX_INT8": ("amx_int8",),
}
SPARED = ("LLAVA_BUILD", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER")

Progress = Callable[[str], object]


class NotInstalled(Exception):
    """A peer's environment cannot be made; the message says why."""


def cpu_flags() -> frozenset[str]:
    """What this machine's processor can do, as Linux names it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*: (.*)$", cpuinfo.read_text() if cpuinfo.is_file() else "", re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def cmake_arguments(flags: frozenset[str], clang: str | None) -> list[str]:
    """How llama.cpp is configured: all that the processor has, named one by one, so that it can be printed.

    `clang` is the compiler's path, None for the system's own. Raises NotInstalled for AMX without clang.
    """
    chosen = [f"-DGGML_NATIVE={'OFF' if flags else 'ON'}", "-DGGML_OPENMP=OFF", "-DGGML_LLAMAFILE=ON"]
    chosen += [f"-D{name}=OFF" for name in SPARED]
    if flags:
        chosen += [f"-D{name}={'ON' if flags >= {*needed} else 'OFF'}" for name, needed in FEATURES.items()]
    amx = {"amx_tile", "amx_int8"} <= flags
    if amx and clang is None:
        raise NotInstalled(f"its AMX kernels need clang {CLANG} or later: apt-get install clang-{CLANG}")
    if clang is not None:
        define = "-D__AMX_INT8__=1" if amx else ""
        for language, compiler in (("C", clang), ("CXX", clang.replace("clang", "clang++"))):
            chosen.append(f"-DCMAKE_{language}_COMPILER={compiler}")
            if define:
                chosen.append(f"-DCMAKE_{language}_FLAGS={define}")
    return chosen


def find_clang() -> str | None:
    """The name of a clang of at least CLANG that is on the path, with its clang++."""
    for name in (f"clang-{CLANG}", *(f"clang-{version}" for version in range(CLANG + 1, CLANG + 8)), "clang"):
        if shutil.which(name) is None or shutil.which(name.replace("clang", "clang++")) is None:
            continue
        said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"version (\d+)", said)
        if found is not None and int(found[1]) >= CLANG:
            return name
    return None


def install(peer: Peer, root: Path, progress: Progress) -> Path:
    """The interpreter of the peer's environment under `root`, which is made first where it is not there or is old.

    Raises NotInstalled with pip's reason.
    """
    if not peer.install:
        return Path(sys.executable)
    arguments = cmake_arguments(cpu_flags(), find_clang()) if peer.build else []
    made_from = hashlib.sha256(json.dumps([asdict(peer), arguments, sys.version]).encode()).hexdigest()
    home = root / peer.name
    python, stamp, log = home / "bin" / "python", home / STAMP, root / f"{peer.name}.log"
    if stamp.is_file() and stamp.read_text() == made_from:
        return python
    progress(f"installing {peer.name}" + (f", compiling {peer.build} takes minutes" if peer.build else ""))
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    pins = home / "constraints.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in peer.pins.items()))
    log.write_text("")
    _run([sys.executable, "-m", "venv", "--without-pip", str(home)], log)  # this interpreter's pip serves all
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check"]
    pip += ["--constraint", str(pins)]
    if peer.build:  # not from pip's cache: it may hold what was compiled for other flags
        build = [*pip, "--no-cache-dir", "--no-binary", peer.build, "--verbose", peer.build]
        _run(build, log, {"CMAKE_ARGS": " ".join(arguments)})
    _run([*pip, *peer.install], log)
    stamp.write_text(made_from)
    return python


def _run(command: list[str], log: Path, extra: Mapping[str, str] | None = None) -> None:
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)} {dict(extra or {})}\n".encode())
        file.flush()
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | dict(extra or {}))
    if done.returncode:
        raise NotInstalled(f"{last_error(log)} ({log})")


def last_error(log: Path) -> str:
    """The last line of a log that speaks of an error, or else its last line."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error", line, re.IGNORECASE)]
    return (errors or lines or ["no output"])[-1]
