"""Products of random shapes under sanitizers and valgrind, every path against the portable one, to the bit.

Where the processor has AVX-512, the AVX-VNNI and AMX paths run too: the instructions it lacks are emulated.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.native.library import COMPILERS, PATHS, SOURCES, Library

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CASES, SECONDS = 40, 900


def built(folder: Path, compiler: str, *options: str) -> Path:
    """gorgon_fuzz."""
    if not shutil.which("cmake") or not shutil.which(compiler):
        pytest.skip(f"no CMake or no {compiler} here")
    configure = ["cmake", "-S", str(SOURCES), "-B", str(folder), f"-DCMAKE_CXX_COMPILER={compiler}", "-DGORGON_FUZZ=ON"]
    build = ["cmake", "--build", str(folder), "--parallel", "2", "--target", "gorgon_fuzz"]
    for command in ([*configure, *options], build):
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "gorgon_fuzz"


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_path_under_sanitizers(library: Library, tmp_path: Path, compiler: str) -> None:
    fuzz = built(tmp_path, compiler, "-DGORGON_EMULATE=ON", "-DGORGON_SANITIZE=address,undefined")
    emulated = ("avx_vnni", "amx") if library.has("avx512_vnni") else ()
    for path in PATHS:
        if library.has(path) or path in emulated:
            done = subprocess.run([fuzz, path, str(CASES), "1"], capture_output=True, text=True, timeout=SECONDS)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), path


def test_valgrind_finds_nothing(library: Library, tmp_path: Path) -> None:
    if not shutil.which("valgrind"):
        pytest.skip("no valgrind here")
    fuzz = built(tmp_path, next(filter(shutil.which, COMPILERS)))
    for path in filter(library.has, ("portable", "avx2")):  # it knows no AVX-512
        command = ["valgrind", "--quiet", "--leak-check=full", "--error-exitcode=9", str(fuzz), path, "6", "2", "90"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{path}: {done.stdout}{done.stderr}"
