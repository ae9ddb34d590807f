"""Medusa heads, in the three layouts in which they are published; how many there are is counted from the tensors.

They are in a file of their own or, with the prefix medusa_head, among the checkpoint's tensors (Medusa-2).

v1     {h}.{l}.linear.weight|bias and {h}.{layers}.weight   FasterDecoding/Medusa, its own vocabulary product
v2     {h}.{l}.linear.weight|bias alone                     FasterDecoding/Medusa, uses the base model's lm_head
vLLM   blocks.{h}.layers.{l}.weight[|bias] and lm_heads.{h}.weight, or one lm_head.weight for all

Head h is x + SiLU(W x + b) for each of its layers, then the vocabulary product: it predicts the token at offset 2 + h
from the hidden state after the final norm (Cai et al., Medusa, 2024).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.checkpoint import FILES, HEADS, Checkpoint, is_pickled, open_file
from export.config import FILE as CONFIG
from export.config import ModelConfig
from export.fields import read_object
from export.tensors import Shape, Stored, match, read
from runtime.errors import CheckpointError, TensorError

OWN = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
NAMES = (*OWN, *FILES)

_MEDUSA_LAYER = re.compile(r"(\d+)\.(\d+)\.linear\.(?:weight|bias)")
_MEDUSA_LM = re.compile(r"\d+\.\d+\.weight")
_VLLM_LAYER = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(?:weight|bias)")


@dataclass(frozen=True, slots=True)
class MedusaHeads:
    """Heads of one base model. `_blocks` [head][layer] names weight and bias, `_lms` [head] the vocabulary product."""

    file: Path
    _tensors: Mapping[str, Stored]
    _blocks: tuple[tuple[tuple[str, str | None], ...], ...]
    _lms: tuple[str | None, ...]

    @classmethod
    def read(cls, path: Path, config: ModelConfig) -> "MedusaHeads":
        """Opens a file or a directory of heads; every tensor has a use and fits the base model, or TensorError."""
        file = locate(path)
        found = open_file(file)
        among = {name: tensor for name, tensor in found.items() if name.startswith(HEADS)}
        return cls._of(among or found, config, file)

    @classmethod
    def within(cls, directory: Path, checkpoint: Checkpoint) -> "MedusaHeads | None":
        """The heads that a checkpoint's directory holds itself, None where it holds none, or is a file."""
        if (own := beside(directory)) is not None:
            return cls.read(own, checkpoint.config)
        return cls._of(checkpoint.heads, checkpoint.config, locate(directory)) if checkpoint.heads else None

    @classmethod
    def _of(cls, given: Mapping[str, Stored], config: ModelConfig, file: Path) -> "MedusaHeads":
        found = {name.removeprefix(HEADS): tensor for name, tensor in given.items()}
        if any(_VLLM_LAYER.fullmatch(name) for name in found):
            heads = _vllm(found, file)
        elif any(_MEDUSA_LAYER.fullmatch(name) for name in found):
            heads = _medusa(found, file)
        else:
            some = ", ".join(sorted(found)[:3]) or "no tensors"
            raise TensorError(
                f"{file} holds {some}: expected Medusa heads, such as 0.0.linear.weight or blocks.0.layers.0.weight"
            )
        match(found, heads._expected(config), file)
        return heads

    @property
    def count(self) -> int:
        return len(self._blocks)

    @property
    def shared(self) -> bool:
        """Whether all heads have one vocabulary product, their own or the base model's."""
        return len(set(self._lms)) == 1

    def resblock(self, head: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weight [hidden, hidden] and bias [hidden] of each layer, float32; read anew each time."""
        layers = []
        for weight, bias in self._blocks[head]:
            values = self._value(weight)
            layers.append((values, np.zeros(len(values), np.float32) if bias is None else self._value(bias)))
        return layers

    def lm(self, head: int) -> np.ndarray | None:
        """The head's vocabulary product [vocab, hidden], float32, or None for the base model's."""
        name = self._lms[head]
        return None if name is None else self._value(name)

    def _value(self, name: str) -> np.ndarray:
        return read(name, self._tensors[name])

    def _expected(self, config: ModelConfig) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for layers in self._blocks:
            for weight, bias in layers:
                shapes[weight] = (config.hidden, config.hidden)
                if bias is not None:
                    shapes[bias] = (config.hidden,)
        return shapes | {name: (config.vocab, config.hidden) for name in self._lms if name is not None}


def misstated(heads: MedusaHeads) -> str | None:
    """What to tell people where the config.json beside the heads gives another number of them."""
    config = heads.file.with_name(CONFIG)
    stated = read_object(config).get("medusa_num_heads", heads.count) if config.is_file() else heads.count
    if stated == heads.count:
        return None
    return f"{config} says medusa_num_heads {stated}, {heads.file.name} holds {heads.count} heads: all of them are used"


def known_accuracy(path: Path, heads: int) -> tuple[tuple[float, ...], ...] | None:
    """[heads][top-1, top-2, ... cumulative] on held-out text, from the .json that train_heads writes beside its heads;
    None where there is no such file."""
    heads_file = locate(path)
    file = heads_file.with_suffix(".json")
    if file == heads_file or not file.exists():  # an index has nothing beside it
        return None
    accuracy = read_object(file).get("accuracy")
    rows = accuracy.get("held_out") if isinstance(accuracy, dict) else None
    if not isinstance(rows, list) or len(rows) != heads or not all(map(_shares, rows)):
        raise CheckpointError(
            f"{file}: accuracy.held_out is {rows!r}, expected for each of {heads} heads a list of shares from 0 to 1"
        )
    return tuple(tuple(row) for row in rows)


def _shares(row: object) -> bool:
    return isinstance(row, list) and bool(row) and all(isinstance(x, int | float) and 0 <= x <= 1 for x in row)


def locate(path: Path) -> Path:
    """The file of the heads: `path` itself, or the first of NAMES in it."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist: expected a file of Medusa heads or a directory with one")
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} holds no Medusa heads: expected one of {', '.join(NAMES)}")


def beside(directory: Path) -> Path | None:
    """The file of heads in a checkpoint's directory, None where there is none."""
    return next((directory / name for name in OWN if (directory / name).is_file()), None)


def needs_torch(path: Path) -> bool:
    """Whether reading these heads takes torch."""
    return is_pickled(locate(path))


def _extent(found: Mapping[str, Stored], pattern: re.Pattern[str]) -> tuple[int, int]:
    """Numbers of heads and of layers that the names imply; a gap then shows as a missing tensor."""
    indices = [tuple(map(int, m.groups())) for m in map(pattern.fullmatch, found) if m]
    return max(head for head, _ in indices) + 1, max(layer for _, layer in indices) + 1


def _medusa(found: Mapping[str, Stored], file: Path) -> MedusaHeads:
    count, layers = _extent(found, _MEDUSA_LAYER)
    names = [[f"{h}.{i}.linear" for i in range(layers)] for h in range(count)]
    own = any(_MEDUSA_LM.fullmatch(name) for name in found)  # v1; v2 has none
    return MedusaHeads(
        file,
        found,
        tuple(tuple((f"{name}.weight", f"{name}.bias") for name in head) for head in names),
        tuple(f"{h}.{layers}.weight" if own else None for h in range(count)),
    )


def _vllm(found: Mapping[str, Stored], file: Path) -> MedusaHeads:
    count, layers = _extent(found, _VLLM_LAYER)
    names = [[f"blocks.{h}.layers.{i}" for i in range(layers)] for h in range(count)]
    biased = any(name.startswith("blocks.") and name.endswith(".bias") for name in found)
    if "lm_head.weight" in found:
        lms = ("lm_head.weight",) * count
    elif _shares_first(file.with_name("config.json")):
        lms = ("lm_heads.0.weight",) * count
    else:
        lms = tuple(f"lm_heads.{h}.weight" for h in range(count))
    return MedusaHeads(
        file,
        found,
        tuple(tuple((f"{name}.weight", f"{name}.bias" if biased else None) for name in head) for head in names),
        lms,
    )


def _shares_first(config: Path) -> bool:
    """vLLM's original_lm_head: only lm_heads.0.weight is stored, and every head uses it."""
    return config.is_file() and read_object(config).get("original_lm_head") is True
