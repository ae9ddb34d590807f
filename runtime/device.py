"""Memory where a provider computes: blocks of bytes at fixed addresses, and places in them that graphs are bound to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

ONNX_TYPES = {"float32": 1, "int64": 7, "bool": 9, "float16": 10, "float64": 11, "bfloat16": 16}  # TensorProto.DataType


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a block."""

    device: str
    address: int
    kind: str  # one of ONNX_TYPES
    shape: tuple[int, ...]

    def part(self, first: int, count: int) -> "Place":
        """Entries `first` .. `first + count` of the first dimension."""
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * itemsize(self.kind)
        return Place(self.device, self.address + first * row, self.kind, (count, *self.shape[1:]))


class Block:
    """Zeros on a device (here a cache must not hold NaN where nobody looks: 0 x NaN), for as long as it lives."""

    def __init__(self, device: str, size: int) -> None:
        self.device, self.size = device, size
        self._value = ort.OrtValue.ortvalue_from_numpy(np.zeros(size, np.uint8), device, 0)
        self._address = int(self._value.data_ptr())

    def place(self, offset: int, kind: str, shape: Sequence[int]) -> Place:
        return Place(self.device, self._address + offset, kind, tuple(shape))

    def write(self, content: np.ndarray) -> None:
        """uint8 [size], in one copy."""
        self._value.update_inplace(content)

    def copy(self, other: "Block") -> None:
        """All of another block of the same size and device, without leaving it."""
        self._value.update_inplace(other._value)

    def read(self) -> np.ndarray:
        """uint8 [size], in one copy; on the CPU the memory itself."""
        content: np.ndarray = self._value.numpy()
        return content


def itemsize(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize


def bind(binding: ort.IOBinding, inputs: dict[str, Place], outputs: dict[str, Place]) -> None:
    """Binds a graph's inputs and outputs to places."""
    for name, at in inputs.items():
        binding.bind_input(name, at.device, 0, ONNX_TYPES[at.kind], at.shape, at.address)
    for name, at in outputs.items():
        binding.bind_output(name, at.device, 0, ONNX_TYPES[at.kind], at.shape, at.address)


def layout(
    sizes: Sequence[tuple[str, str, tuple[int, ...]]],
) -> tuple[dict[str, tuple[int, str, tuple[int, ...]]], int]:
    """Tensors (name, kind, shape) one after the other: where each begins, aligned for any type; and their size."""
    places, offset = {}, 0
    for name, kind, shape in sizes:
        places[name] = (offset, kind, shape)
        offset += -(-int(np.prod(shape, dtype=np.int64)) * itemsize(kind) // ALIGN) * ALIGN
    return places, offset


ALIGN = 64
