"""Tensors in files: safetensors, read one by one, and pickles. What is found is matched against what is expected.

Every error names the file, the tensor, what was found and what was expected.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import ml_dtypes  # noqa: F401 (registers numpy's bfloat16, which safetensors looks up by name)
import numpy as np
from safetensors import SafetensorError, safe_open

from export.parts import in_parts
from runtime.errors import CheckpointError, TensorError

DTYPES = ("F16", "BF16", "F32")
# GGUF's blocks; their loader gives the values that the blocks stand for.
BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
LARGEST_HEADER = 100_000_000  # bytes, of a safetensors file
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file; nothing of it is read until `load`, which gives any float type."""

    file: Path
    dtype: str
    shape: Shape
    load: Callable[[], np.ndarray]


def open_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file by name."""
    try:
        with _safetensors(path) as file:
            entries = {name: file.get_slice(name) for name in file.keys()}
            return {
                name: Stored(path, entry.get_dtype(), tuple(entry.get_shape()), partial(_load_safetensor, path, name))
                for name, entry in entries.items()
            }
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise TensorError(_cut(path) or f"{path} is damaged or no safetensors file: {error}; fetch it again") from None


def _cut(path: Path) -> str | None:
    """What is wrong with a safetensors file that ends too early: which tensor it ends in."""
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(start - 8, LARGEST_HEADER)))
        size = path.stat().st_size
        ends = {name: start + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # its beginning is damaged as well
    name = min((name for name in ends if ends[name] > size), key=ends.__getitem__, default=None)
    return None if name is None else f"{path}: {name} ends at byte {ends[name]}, the file at {size}: fetch it again"


def _safetensors(path: Path) -> Any:
    return safe_open(path, framework="numpy")


def _load_safetensor(path: Path, name: str) -> np.ndarray:
    """Opened for this one tensor: what was read of a file counts as memory for as long as it stays mapped."""
    with _safetensors(path) as file:
        values: np.ndarray = file.get_tensor(name)
        return values


def open_pickle(path: Path) -> dict[str, Stored]:
    """The tensors of a file of torch.save, read without running any code of it. Needs torch."""
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path} is a pickle, which needs torch to read: `make export` installs it, or pip install 'gorgon[export]'"
        ) from None
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    in_parts = is_zipfile(path)  # else the old format, which is read whole
    if not in_parts and _begins_as_zip(path):
        raise TensorError(f"{path} ends before its list of contents, which comes last: fetch it again")
    try:
        raw = _unpickled(path, in_parts)
    except Exception as error:  # whatever the unpickler meets: RuntimeError, EOFError, UnpicklingError, ...
        summary = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TensorError(f"{path} is damaged or holds more than tensors: {summary}") from None
    if not isinstance(raw, dict) or not all(isinstance(value, torch.Tensor) for value in raw.values()):
        raise TensorError(f"{path} holds a {type(raw).__name__}, expected a dictionary of tensors")
    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
    return {
        str(name): Stored(
            path,
            names.get(value.dtype, str(value.dtype)),
            tuple(value.shape),
            partial(_load_pickled, path, name) if in_parts else partial(_float32, value),
        )
        for name, value in raw.items()
    }


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _unpickled(path: Path, in_parts: bool) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True, mmap=in_parts)


def _load_pickled(path: Path, name: str) -> np.ndarray:
    """Opened for this one tensor, as `_load_safetensor` does."""
    return _float32(_unpickled(path, in_parts=True)[name])


def _float32(tensor: Any) -> np.ndarray:
    values: np.ndarray = tensor.float().numpy()
    return values


def match(found: Mapping[str, Stored], expected: Mapping[str, Shape], where: Path) -> None:
    """Raises TensorError unless every expected tensor is there, in its shape and a float type, and no other."""
    for name, shape in expected.items():
        if name not in found:
            missing = sum(n not in found for n in expected)
            raise TensorError(
                f"{where}: {name} is missing ({missing} of {len(expected)} are), expected shape {list(shape)}"
            )
        tensor = found[name]
        if tensor.shape != shape:
            raise TensorError(f"{tensor.file}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype not in DTYPES + BLOCKS:
            raise TensorError(
                f"{tensor.file}: {name} is of type {tensor.dtype}, expected one of {', '.join(DTYPES)}, or in GGUF "
                f"{', '.join(BLOCKS)}"
            )
    if extra := sorted(found.keys() - expected.keys()):
        raise TensorError(
            f"{found[extra[0]].file}: {extra[0]} has no use ({len(extra)} such), expected only the {len(expected)} "
            "tensors that the config and the layout ask for"
        )


def read(name: str, tensor: Stored) -> np.ndarray:
    """The tensor's values as float32, all finite."""
    try:
        stored = tensor.load()
    except (SafetensorError, OSError) as error:
        raise TensorError(f"{tensor.file}: {name} cannot be read: {error}") from None
    values = np.empty(stored.shape, np.float32)

    def widen(rows: slice) -> bool:
        values[rows] = stored[rows]
        return bool(np.isfinite(values[rows]).all())

    if not all(list(in_parts(stored, widen))):
        finite = np.isfinite(values)
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise TensorError(
            f"{tensor.file}: {name} has {int((~finite).sum())} values that are not finite, the first {values[first]} "
            f"at {list(first)}; expected finite numbers"
        )
    return values
