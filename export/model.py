"""A checkpoint on disk, whatever its form: what it is, its tokenizer, and its tensors by their Hugging Face names."""

from dataclasses import dataclass
from pathlib import Path

from export.checkpoint import Checkpoint
from export.config import FILE as CONFIG
from export.config import ModelConfig
from export.fields import read_object
from export.gguf_file import is_gguf
from export.gguf_model import open_gguf
from export.tokenizer import TokenizerFiles
from runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Model:
    """What an export starts from. `names`: what the checkpoint is called, to know its chat template by."""

    config: ModelConfig
    tokenizer: TokenizerFiles
    checkpoint: Checkpoint
    names: tuple[str, ...]


def open_model(path: Path, context: int | None = None) -> Model:
    """What `form` finds. `context` asks for another than the checkpoint's own.

    Raises ConfigError, CheckpointError or TensorError for what is missing, broken or not honoured.
    """
    path = form(path)
    if path.is_file():
        return Model(*open_gguf(path, context))
    config = ModelConfig.read(path, context)
    tokenizer = TokenizerFiles.read(path, config)
    return Model(config, tokenizer, Checkpoint(path, config), _names(path))


def form(path: Path) -> Path:
    """The Hugging Face directory, or the GGUF file, which may be alone in a directory."""
    if path.is_file():
        if not is_gguf(path):
            raise CheckpointError(f"{path} is a file, but no GGUF: expected one, or a directory with config.json")
        return path
    if (path / CONFIG).exists():
        return path
    found = sorted(file for file in path.glob("*.gguf") if "-of-" not in file.name or "-00001-of-" in file.name)
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {', '.join(file.name for file in found)}: say which of them")
    return found[0] if found else path


def _names(directory: Path) -> tuple[str, ...]:
    """The directory's name, or in the hub's cache the repository's, and the one that config.json gives."""
    place = directory.resolve()
    own = place.parent.parent.name if place.parent.name == "snapshots" else place.name
    given = read_object(directory / CONFIG).get("_name_or_path")
    return (own, given) if isinstance(given, str) else (own,)
