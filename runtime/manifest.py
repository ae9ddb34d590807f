"""The artifact's manifest: the one contract between export and runtime."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from runtime.errors import ArtifactError
from runtime.params import MAX_NODES

SCHEMA = 1
FILE = "manifest.json"
FORMS = ("ragged",)
PRECISIONS = ("fp32", "int8", "int4")


def capacity_of(context: int) -> int:
    """Slots of a cache row: the context and the largest tree, in whole pages of every head size used."""
    return -(-(context + MAX_NODES) // 16) * 16


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact holds. Sizes in elements, `files` as {name: {"size": bytes, "sha256": hex}}."""

    schema: int
    name: str
    form: str
    precision: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    capacity: int
    medusa_heads: int  # 0: no heads, no speculation
    draft_top_k: int
    head_accuracy: tuple[tuple[float, ...], ...] | None  # [medusa_heads][top-1, top-2, ... cumulative]
    bos: int | None
    eos: tuple[int, ...]
    chat_template: str | None
    special: Mapping[str, str]  # bos_token, eos_token: for the chat template
    even_tokens: bool  # an even number of packed tokens keeps results bit-equal (int4, block 128)
    files: Mapping[str, Mapping[str, int | str]]

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values a token takes, in fp32."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 4

    @classmethod
    def read(cls, directory: Path, verify: bool = False) -> "Manifest":
        """Reads and checks an artifact's manifest and the sizes (`verify`: also the hashes) of its files."""
        path = directory / FILE
        try:
            raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"{directory} is not an artifact: it has no {FILE}; make one with `python -m export`") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ArtifactError(f"{path} holds a {type(raw).__name__}, not an object")
        if raw.get("schema") != SCHEMA:
            raise ArtifactError(f"{path} has schema {raw.get('schema')!r}, this version reads {SCHEMA}: export again")
        names = {f.name for f in fields(cls)}
        if missing := names - raw.keys():
            raise ArtifactError(f"{path} lacks {', '.join(sorted(missing))}")
        if extra := raw.keys() - names:
            raise ArtifactError(f"{path} has unknown {', '.join(sorted(extra))}")
        accuracy = raw["head_accuracy"]
        raw["head_accuracy"] = None if accuracy is None else tuple(tuple(row) for row in accuracy)
        raw["eos"] = tuple(raw["eos"])
        manifest = cls(**raw)
        manifest._check(path)
        manifest._check_files(directory, verify)
        return manifest

    def write(self, directory: Path) -> None:
        (directory / FILE).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", "utf-8")

    def _check(self, path: Path) -> None:
        positive = ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "context", "capacity", "draft_top_k")
        for name in positive:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ArtifactError(f"{path}: {name} is {value!r}, not a whole number of at least 1")
        if self.form not in FORMS:
            raise ArtifactError(f"{path}: form is {self.form!r}, this version runs {', '.join(FORMS)}")
        if self.precision not in PRECISIONS:
            raise ArtifactError(f"{path}: precision is {self.precision!r}, not one of {', '.join(PRECISIONS)}")
        if self.capacity < self.context + MAX_NODES:
            raise ArtifactError(f"{path}: capacity {self.capacity} is below context {self.context} + {MAX_NODES} nodes")
        if any(not isinstance(t, int) or not 0 <= t < self.vocab for t in self.eos):
            raise ArtifactError(f"{path}: eos is {list(self.eos)}, not token ids below the vocabulary's {self.vocab}")

    def _check_files(self, directory: Path, verify: bool) -> None:
        for name, want in self.files.items():
            file = directory / name
            if not file.is_file():
                raise ArtifactError(f"{file} is missing: export again")
            if (size := file.stat().st_size) != want["size"]:
                raise ArtifactError(f"{file} has {size} bytes, the manifest says {want['size']}: export again")
            if verify and (digest := sha256(file)) != want["sha256"]:
                raise ArtifactError(f"{file} has SHA-256 {digest}, the manifest says {want['sha256']}: export again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
