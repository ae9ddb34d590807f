"""A checkpoint on disk, whatever its form: what it is, its tokenizer, and its tensors by their Hugging Face names."""

from dataclasses import dataclass
from pathlib import Path

from export.checkpoint import Checkpoint
from export.config import FILE as CONFIG
from export.config import ModelConfig
from export.fields import read_object
from export.tokenizer import TokenizerFiles


@dataclass(frozen=True, slots=True)
class Model:
    """What an export starts from. `names`: what the checkpoint is called, to know its chat template by."""

    config: ModelConfig
    tokenizer: TokenizerFiles
    checkpoint: Checkpoint
    names: tuple[str, ...]


def open_model(path: Path, context: int | None) -> Model:
    """A Hugging Face directory. `context` asks for another than the checkpoint's own.

    Raises ConfigError, CheckpointError or TensorError for what is missing, broken or not honoured.
    """
    config = ModelConfig.read(path, context)
    tokenizer = TokenizerFiles.read(path, config)
    return Model(config, tokenizer, Checkpoint(path, config), _names(path))


def _names(directory: Path) -> tuple[str, ...]:
    """The directory's name, or in the hub's cache the repository's, and the one that config.json gives."""
    place = directory.resolve()
    own = place.parent.parent.name if place.parent.name == "snapshots" else place.name
    given = read_object(directory / CONFIG).get("_name_or_path")
    return (own, given) if isinstance(given, str) else (own,)
