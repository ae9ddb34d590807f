"""GGUF files: metadata by name, and tensors by their Hugging Face names, read and dequantized one by one.

The container and its types are read by llama.cpp's own package, `gguf`. llama.cpp's rotary form pairs neighbours where
Hugging Face's pairs halves of a head, so its files hold the rows of q_proj and k_proj in another order.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoint import EMBEDDING, LM_HEAD
from export.fields import Fields
from export.tensors import BLOCKS, DTYPES, Stored
from runtime.errors import CheckpointError, TensorError

MAGIC = b"GGUF"
ARCHITECTURE = "llama"
ROPE_FACTORS = "rope_freqs.weight"
_OUTSIDE = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": LM_HEAD}
_INSIDE = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_PART = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One model's file, or all parts of it: the first one's metadata, and every tensor under llama.cpp's name."""

    path: Path
    metadata: Fields
    tensors: dict[str, Stored]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Checks that every tensor is of a type that is read, and lies within its file. Needs gguf."""
        reader = _reader(path)
        raw = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        metadata = Fields(path, raw)
        if raw.get("general.architecture") != ARCHITECTURE:
            metadata.refuse("general.architecture", f'"{ARCHITECTURE}"')
        tensors = _tensors(reader, path)
        for part in _other_parts(metadata):
            tensors |= _tensors(_reader(part), part)
        return cls(path, metadata, tensors)

    def by_hugging_face_names(self, heads: int, kv_heads: int) -> dict[str, Stored]:
        """Every tensor of a model with so many heads; one that no Llama has keeps its name."""
        found = {}
        for name, stored in self.tensors.items():
            if name == ROPE_FACTORS:
                continue  # not a weight: part of the config
            ours = _hugging_face_name(name)
            for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
                if f".{part}." in ours:
                    load = partial(_paired_by_halves, stored.load, count)
                    stored = Stored(stored.file, stored.dtype, stored.shape, load)
            found[ours] = stored
        return found


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of Hugging Face's name."""
    if (found := {ours: theirs for theirs, ours in _OUTSIDE.items()}.get(name)) is not None:
        return found
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{ {ours: theirs for theirs, ours in _INSIDE.items()}[part] }.{kind}"


def paired_by_neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q_proj or k_proj as llama.cpp stores them."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def is_gguf(path: Path) -> bool:
    """Whether it is a file that begins as GGUF does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _reader(path: Path) -> Any:
    """gguf's reader; unlike its own it says which tensor is wrong."""
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            f"{path} takes the gguf package to read: `make export` installs it, or pip install 'gorgon[gguf]'"
        ) from None

    class Reader(gguf.GGUFReader):
        def _build_tensors(self, start: int, fields: list[Any]) -> None:
            for field in fields:
                _, name, _, shape, kind, offset = field.parts
                where = f"{path}: {bytes(name).decode('utf-8', 'replace')}"
                known = {int(member): member for member in gguf.GGMLQuantizationType}
                if int(kind[0]) not in known or known[int(kind[0])].name not in DTYPES + BLOCKS:
                    found = known[int(kind[0])].name if int(kind[0]) in known else f"number {kind[0]}"
                    raise TensorError(f"{where} is of type {found}, expected one of {', '.join(DTYPES + BLOCKS)}")
                block, size = gguf.GGML_QUANT_SIZES[known[int(kind[0])]]
                if int(shape[0]) % block:
                    raise TensorError(
                        f"{where} has rows of {shape[0]} values, expected whole {known[int(kind[0])].name} blocks of"
                        f" {block}"
                    )
                end = start + int(offset[0]) + int(np.prod(shape)) // block * size
                if end > len(self.data):
                    raise TensorError(f"{where} ends at byte {end}, the file at {len(self.data)}: fetch it again")
            super()._build_tensors(start, fields)

    try:
        return Reader(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except TensorError:
        raise
    except Exception as error:  # whatever wrong bytes lead to: ValueError, IndexError, KeyError, MemoryError, ...
        raise CheckpointError(f"{path} is damaged or no GGUF file: {error}; fetch it again") from None


def _other_parts(metadata: Fields) -> list[Path]:
    """The files after the first, where a model was split: model-00001-of-00003.gguf, model-00002-..."""
    count = metadata.raw.get("split.count", 1)
    if not count or count == 1:
        return []
    path = metadata.path
    match = _PART.fullmatch(path.name)
    if match is None or int(match[2]) != count:
        raise CheckpointError(f"{path} is part of {count}: expected the first, NAME-00001-of-{count:05}.gguf")
    return [path.with_name(f"{match[1]}-{part:05}-of-{match[2]}.gguf") for part in range(2, count + 1)]


def _tensors(reader: Any, path: Path) -> dict[str, Stored]:
    return {
        tensor.name: Stored(
            path,
            tensor.tensor_type.name,
            tuple(reversed(tensor.shape.tolist())),
            partial(_values, path, tensor.tensor_type, int(tensor.data_offset), tensor.data.dtype, tensor.data.shape),
        )
        for tensor in reader.tensors
    }


def _values(path: Path, kind: Any, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Mapped for this one tensor: what was read of a file counts as memory for as long as it stays mapped."""
    from gguf.quants import dequantize

    values: np.ndarray = dequantize(np.memmap(path, dtype, "r", offset, shape), kind)
    return values


def _hugging_face_name(name: str) -> str:
    layer = _LAYER.fullmatch(name)
    if layer is None or layer[2] not in _INSIDE:
        return _OUTSIDE.get(name, name)
    return f"model.layers.{layer[1]}.{_INSIDE[layer[2]]}.{layer[3]}"


def _paired_by_halves(load: Any, heads: int) -> np.ndarray:
    """Rows of each head from neighbours paired to halves paired."""
    values: np.ndarray = load()
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
