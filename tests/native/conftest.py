"""The library, built once from the sources as they are."""

import shutil

import pytest

from runtime.native.library import COMPILERS, Library, build


@pytest.fixture(scope="session")
def library() -> Library:
    if not shutil.which("cmake") or not any(map(shutil.which, COMPILERS)):
        pytest.skip("no CMake or no C++ compiler here")
    return Library.load(build())
