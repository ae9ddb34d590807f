"""A Llama checkpoint's tensors: checked against the config when opened, read one at a time when asked for."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from export.config import ModelConfig
from export.fields import read_object
from export.tensors import Shape, Stored, match, open_pickle, open_safetensors, read
from runtime.errors import CheckpointError, TensorError

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILES = (FILE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")  # the first that is there is read
PICKLES = (".pt", ".pth", ".bin")
HEADS = "medusa_head."  # prefixed to the heads' names where they are in the checkpoint itself
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Written by older versions of transformers; follows from the config.
_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The name and shape of every tensor that a checkpoint of this config holds."""
    hidden, inner, vocab = config.hidden, config.intermediate, config.vocab
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, Shape] = {EMBEDDING: (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.tied:
        shapes[LM_HEAD] = (vocab, hidden)
    attention = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    for i in range(config.layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for block, parts, bias in (("self_attn", attention, config.attention_bias), ("mlp", mlp, config.mlp_bias)):
            for part, shape in parts.items():
                shapes[f"{layer}.{block}.{part}.weight"] = shape
                if bias:
                    shapes[f"{layer}.{block}.{part}.bias"] = shape[:1]
    return shapes


class Checkpoint:
    """The tensors of a model, by their Hugging Face names; opening it checks names, shapes and types.

    `heads` are those of Medusa heads among them, which are matched by who reads them.
    """

    def __init__(self, where: Path, config: ModelConfig, found: Mapping[str, Stored] | None = None) -> None:
        """`found` in the file `where`, by default what is in the directory `where`."""
        self.config = config
        if found is None:
            where = find(where)
            found = open_file(where)
        self._where = where
        self.heads = {name: tensor for name, tensor in found.items() if name.startswith(HEADS)}
        self._tensors = {
            name: tensor for name, tensor in found.items() if name not in self.heads and not _DERIVED.fullmatch(name)
        }
        head = self._tensors.pop(LM_HEAD, None) if config.tied else None
        match(self._tensors, expected_shapes(config), where)
        if head is not None:
            self._check_tied(head)
        self._used: set[str] = set()

    def tensor(self, name: str) -> np.ndarray:
        """The tensor as float32, finite; read anew each time. A tied lm_head.weight is the embedding."""
        name = EMBEDDING if self.config.tied and name == LM_HEAD else name
        self._used.add(name)
        return read(name, self._tensors[name])

    @property
    def dtypes(self) -> dict[str, str]:
        """The stored type of each tensor."""
        return {name: tensor.dtype for name, tensor in self._tensors.items()}

    def finish(self) -> None:
        """Raises TensorError if a tensor of the checkpoint was never asked for."""
        if unused := sorted(self._tensors.keys() - self._used):
            raise TensorError(
                f"{self._where}: {unused[0]} was not used ({len(unused)} such), expected every tensor to be"
            )

    def _check_tied(self, head: Stored) -> None:
        if not np.array_equal(read(LM_HEAD, head), read(EMBEDDING, self._tensors[EMBEDDING])):
            raise TensorError(
                f"{head.file}: {LM_HEAD} differs from {EMBEDDING}, expected the same values, or no such tensor, where "
                "tie_word_embeddings is true"
            )


def find(directory: Path) -> Path:
    """The file or the index of a directory's tensors; safetensors before pickles."""
    for name in FILES:
        if (directory / name).is_file():
            return directory / name
    raise CheckpointError(f"{directory} has no tensors: expected one of {', '.join(FILES)}")


def is_pickled(path: Path) -> bool:
    """Whether reading a file of tensors, or the files of an index, takes torch."""
    return Path(path.name.removesuffix(".index.json")).suffix in PICKLES


def open_file(path: Path) -> dict[str, Stored]:
    """Every tensor of a file, or of the files that an index lists."""
    opener = open_pickle if is_pickled(path) else open_safetensors
    if path.suffix != ".json":
        return opener(path)
    places = _places(path)
    found: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        try:
            opened = opener(path.with_name(file))
        except CheckpointError as error:
            held = [name for name, place in places.items() if place == file]
            others = f" and {len(held) - 1} more" if len(held) > 1 else ""
            raise type(error)(f"{error}; by {path.name} it holds {held[0]}{others}") from None
        for name, tensor in opened.items():
            if places.get(name) != file:
                raise TensorError(f"{path}: {name} is in {file}, the index says {places.get(name, 'nothing of it')}")
            found[name] = tensor
    if missing := places.keys() - found.keys():
        name = min(missing)
        raise TensorError(f"{path}: {name} is not in {places[name]}, where the index says it is")
    return found


def _places(path: Path) -> dict[str, str]:
    """Which file holds each tensor, as an index says."""
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) and Path(p).name == p for p in places.values()):
        raise CheckpointError(f"{path}: weight_map has to be an object of tensor names and names of files beside it")
    return places
