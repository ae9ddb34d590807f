"""The library's products by way of its C functions."""

import ctypes
from dataclasses import dataclass

import numpy as np

from export.quantize import int4
from runtime.native.library import Library

POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t
INT4_TYPES = [POINTER, SIZE, POINTER, POINTER, SIZE, SIZE, SIZE, POINTER, ctypes.c_int]
INT8_TYPES = [POINTER, SIZE, POINTER, POINTER, SIZE, SIZE, POINTER, ctypes.c_int]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Of 4 bits, in MatMulNBits' layout."""

    packed: np.ndarray  # uint8 [outputs, blocks, block / 2]
    scale: np.ndarray  # float32 [outputs, blocks]
    inputs: int

    @property
    def block(self) -> int:
        return int(self.packed.shape[2] * 2)

    def values(self) -> np.ndarray:
        """[outputs, blocks, block] float64, the unused end of the last block included."""
        nibbles = np.stack([self.packed & 15, self.packed >> 4], axis=-1).reshape(*self.packed.shape[:2], -1)
        return (nibbles.astype(np.float64) - 8) * self.scale[..., None]


def matrix(rng: np.random.Generator, inputs: int, outputs: int, block: int, half: bool = True) -> Matrix:
    """Weights of a normal distribution; `half`: with scales that are float16."""
    packed, scale = int4(rng.standard_normal((outputs, inputs), np.float32), block)
    return Matrix(packed, scale.astype(np.float16).astype(np.float32) if half else scale, inputs)


def multiply(library: Library, x: np.ndarray, weights: Matrix, threads: int = 1) -> np.ndarray:
    outputs = len(weights.packed)
    y = np.full((len(x), outputs), np.nan, np.float32)
    function = library.functions.gorgon_matmul_int4
    function.argtypes = INT4_TYPES
    x = np.ascontiguousarray(x, np.float32)
    done = function(
        x.ctypes.data, len(x), weights.packed.ctypes.data, weights.scale.ctypes.data, weights.inputs, outputs,
        weights.block, y.ctypes.data, threads,
    )  # fmt: skip
    assert done == 0, library.functions.gorgon_error()
    return y


def multiply_int8(
    library: Library, x: np.ndarray, weights: np.ndarray, scale: np.ndarray, threads: int = 1
) -> np.ndarray:
    """x [tokens, inputs] by int8 weights [inputs, outputs] with a scale per output."""
    y = np.full((len(x), weights.shape[1]), np.nan, np.float32)
    function = library.functions.gorgon_matmul_int8
    function.argtypes = INT8_TYPES
    x = np.ascontiguousarray(x, np.float32)
    done = function(
        x.ctypes.data, len(x), weights.ctypes.data, scale.ctypes.data, *weights.shape, y.ctypes.data, threads
    )
    assert done == 0, library.functions.gorgon_error()
    return y
