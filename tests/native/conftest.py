"""The native library, and its kernels with each instruction set that this processor has."""

import ctypes

import pytest

from tests.native.attention import ISAS, Kernel


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return ctypes.CDLL("/tmp/libatt.so")


@pytest.fixture(params=ISAS)
def kernel(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Kernel:
    if not library.gorgon_has_isa(ctypes.c_int64(ISAS[request.param])):
        pytest.skip(f"this processor has no {request.param}")
    return Kernel(library, request.param)
