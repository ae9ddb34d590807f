"""The library of native operators: builds it, finds it, loads it.

It is built with CMake into a directory of its own for each state of the sources and compiler, and found by the sources
alone, so that a machine without a compiler can use what another step of its set-up built. Nothing here is needed to
serve: without the library an artifact's functions run on ONNX Runtime's own operators.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ConfigurationError

SOURCES = Path(__file__).parent
BUILDS = SOURCES / ".build"
NAME = "libgorgon.so"
COMPILERS = ("c++", "g++", "clang++")
BUILD_SECONDS = 600
PATHS = ("portable", "avx2", "avx_vnni", "avx512_vnni", "amx")  # from the plainest to the fastest
BUILD_COMMAND = "python -m runtime.native"


@dataclass(frozen=True, slots=True)
class Library:
    """The library in this process. What it is told goes for all sessions made from then on."""

    file: Path
    functions: ctypes.CDLL

    @classmethod
    def load(cls, file: Path) -> "Library":
        """Raises ConfigurationError if the system does not load it."""
        try:
            functions = ctypes.CDLL(str(file))
        except OSError as error:
            raise ConfigurationError(f"{file} does not load ({error}): build it again with `{BUILD_COMMAND}`") from None
        for name in ("gorgon_error", "gorgon_path"):
            getattr(functions, name).restype = ctypes.c_char_p
        return cls(file, functions)

    def __str__(self) -> str:
        """What decides how long a step takes, for reports and for what is kept of earlier measurements."""
        return f"native {self.path} {self.file.parent.name[:8]}"

    @property
    def path(self) -> str:
        """The instructions that kernels made now will use: one of PATHS."""
        return str(self.functions.gorgon_path().decode())

    def has(self, path: str) -> bool:
        """Whether this processor has the instructions of one of PATHS."""
        return bool(self.functions.gorgon_has(path.encode()) == 1)

    def force(self, path: str) -> None:
        """Makes kernels use one of PATHS, or "auto": the fastest. Raises ConfigurationError if there is none such."""
        if self.functions.gorgon_force_path(path.encode()):
            raise ConfigurationError(self.functions.gorgon_error().decode())

    @contextmanager
    def forced(self, path: str) -> Iterator[None]:
        """One of PATHS for the kernels made inside."""
        self.force(path)
        try:
            yield
        finally:
            self.force("auto")


def find() -> Library | None:
    """The library built from these sources, the newest if there are several; None if none was built."""
    built = list(BUILDS.glob(f"{source_hash()}-*/{NAME}"))
    return Library.load(max(built, key=lambda file: file.stat().st_mtime)) if built else None


def build(sanitize: str = "") -> Path:
    """Builds the library, if that was not done before, and returns its file; `sanitize` is for tests.

    Raises ConfigurationError, in one line, if there is no compiler or no CMake, or if the build fails.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    cmake = shutil.which("cmake")
    if compiler is None or cmake is None:
        missing = "CMake" if compiler else "C++ compiler"
        raise ConfigurationError(f"native operators are not built, there is no {missing}: stock operators will serve")
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(f"{compiler}\n{said}\n{sanitize}".encode()).hexdigest()[:8]
    # a sanitized library needs its sanitizer loaded before all else: `find` must not come upon it
    home = BUILDS / f"{'sanitized-' if sanitize else ''}{source_hash()}-{key}"
    if (home / NAME).is_file():
        return home / NAME
    try:
        BUILDS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS, prefix="unfinished-") as folder:
            given = f"-DCMAKE_CXX_COMPILER={compiler}", f"-DGORGON_SANITIZE={sanitize}"
            _run(cmake, "-S", str(SOURCES), "-B", folder, *given)
            _run(cmake, "--build", folder, "--parallel", str(len(os.sched_getaffinity(0))))
            home.mkdir(exist_ok=True)
            (Path(folder) / NAME).replace(home / NAME)  # in one go: whoever looks finds all of it or nothing
    except OSError as error:
        raise ConfigurationError(f"native operators are not built, {BUILDS} cannot be written: {error}") from None
    return home / NAME


def source_hash() -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in SOURCES.iterdir() if file.suffix in (".cc", ".h", ".txt")):
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"native operators are not built: no end of it after {BUILD_SECONDS} seconds"
        ) from None
    if done.returncode:
        why = next((line for line in done.stdout.splitlines() if "rror" in line), f"exit code {done.returncode}")
        raise ConfigurationError(f"native operators are not built, {' '.join(command)} failed: {why.strip()}")
