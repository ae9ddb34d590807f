"""The artifact's manifest: the one contract between export and runtime."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from runtime.errors import ArtifactError
from runtime.params import MAX_NODES

SCHEMA = 2
FILE = "manifest.json"
FORMS: Mapping[str, tuple[str, ...]] = {  # the precisions of each graph form
    "ragged": ("fp32", "int8", "int8-block32", "int4"),
    "padded": ("fp32", "fp16", "bf16", "int4"),
}
PRECISIONS = tuple(dict.fromkeys(precision for precisions in FORMS.values() for precision in precisions))
BEST = 256  # of a node's logits that leave the device where the padded form's tokens are drawn
NATIVE_OPERATORS = "native_operators"  # key of a graph's metadata: the functions that the native library replaces
# of decoder.onnx, beside each layer's cache
STEP_INPUTS = ("tokens", "depth", "length", "count", "ancestors", "wanted")
STEP_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "ragged": ("logits", "argmax", "hidden"),
    "padded": ("logits", "argmax", "peak", "hidden"),
}
FILES = ("decoder.onnx", "decoder.onnx.data", "tokenizer.json")
MOVES = ("commit.onnx", "copy.onnx", "keep.onnx", "best.onnx", "rows.onnx")  # of the padded form
HEAD_FILES = ("heads.onnx", "heads.onnx.data")


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
    inputs: tuple[str, ...]  # of decoder.onnx, in its order
    outputs: tuple[str, ...]
    files: Mapping[str, Mapping[str, int | str]]

    @property
    def values(self) -> str:
        """The type of keys, values and hidden states: float32, float16 or bfloat16."""
        if self.form == "ragged" or self.precision == "fp32":
            return "float32"
        return "bfloat16" if self.precision == "bf16" else "float16"

    @property
    def value_bytes(self) -> int:
        return 4 if self.values == "float32" else 2

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values a token takes."""
        return self.layers * 2 * self.kv_heads * self.head_dim * self.value_bytes

    @classmethod
    def read(cls, directory: Path, verify: bool = False) -> "Manifest":
        """Reads and checks an artifact's manifest and the sizes (`verify`: also the hashes) of its files."""
        path = directory / FILE
        try:
            raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ArtifactError(
                f"{directory} is not an artifact: it has no {FILE}; make one with `python -m export`"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ArtifactError(f"{path} holds a {type(raw).__name__}, not an object")
        if raw.get("schema") != SCHEMA:
            raise ArtifactError(f"{path} has schema {raw.get('schema')!r}, this version reads {SCHEMA}: export again")
        names = {f.name for f in fields(cls)}
        if missing := names - raw.keys():
            raise ArtifactError(f"{path} lacks {', '.join(sorted(missing))}: export again")
        if extra := raw.keys() - names:
            raise ArtifactError(f"{path} has unknown {', '.join(sorted(extra))}")
        _check(raw, path)
        accuracy = raw["head_accuracy"]
        raw["head_accuracy"] = None if accuracy is None else tuple(tuple(row) for row in accuracy)
        for name in ("eos", "inputs", "outputs"):
            raw[name] = tuple(raw[name])
        manifest = cls(**raw)
        manifest._check_files(directory, verify)
        return manifest

    def write(self, directory: Path) -> None:
        (directory / FILE).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", "utf-8")

    def _check_files(self, directory: Path, verify: bool) -> None:
        for name in FILES + (HEAD_FILES if self.medusa_heads else ()) + (MOVES if self.form == "padded" else ()):
            if name not in self.files:
                raise ArtifactError(f"{directory / FILE}: files lacks {name}: export again")
        for name, want in self.files.items():
            file = directory / name
            if not file.is_file():
                raise ArtifactError(f"{file} is missing: export again")
            if (size := file.stat().st_size) != want["size"]:
                raise ArtifactError(f"{file} has {size} bytes, the manifest says {want['size']}: export again")
            if verify and (digest := sha256(file)) != want["sha256"]:
                raise ArtifactError(f"{file} has SHA-256 {digest}, the manifest says {want['sha256']}: export again")


def _check(raw: Mapping[str, Any], path: Path) -> None:
    """Every field's type and range; after it the values fit the class."""

    def whole(value: object, low: int = 1) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    def texts(value: object) -> bool:
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())

    def names(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    def token(value: object) -> bool:
        return whole(value, 0) and int(value) < raw["vocab"]  # type: ignore[call-overload]

    def shares(value: object) -> bool:
        rows = value if isinstance(value, list) else [None]
        good = all(isinstance(row, list) and row and all(isinstance(x, int | float) for x in row) for row in rows)
        return good and len(rows) == raw["medusa_heads"]

    def described(value: object) -> bool:
        files = value.values() if isinstance(value, dict) else [None]
        return all(isinstance(f, dict) and whole(f.get("size"), 0) and isinstance(f.get("sha256"), str) for f in files)

    sizes = ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "context", "capacity", "draft_top_k")
    number = "a whole number of at least 1"
    rules: list[tuple[str, Callable[[Any], bool], str]] = [
        ("name", lambda v: isinstance(v, str), "a string"),
        ("form", lambda v: isinstance(v, str) and v in FORMS, f"one that this version runs: {', '.join(FORMS)}"),
        ("precision", lambda v: v in FORMS[raw["form"]], f"one of {', '.join(FORMS.get(str(raw['form']), ()))}"),
        *((size, whole, number) for size in sizes),
        ("medusa_heads", lambda v: whole(v, 0), "a whole number of at least 0"),
        ("head_accuracy", lambda v: v is None or shares(v), "null, or a list of shares for each Medusa head"),
        ("bos", lambda v: v is None or token(v), f"null, or a token id below {raw['vocab']}"),
        ("eos", lambda v: isinstance(v, list) and all(map(token, v)), f"a list of token ids below {raw['vocab']}"),
        ("chat_template", lambda v: v is None or isinstance(v, str), "null or a string"),
        ("special", texts, "an object of strings"),
        ("even_tokens", lambda v: isinstance(v, bool), "true or false"),
        ("inputs", names, "a list of strings"),
        ("outputs", names, "a list of strings"),
        ("files", described, "an object that gives each file's size and sha256"),
    ]
    for name, good, right in rules:
        if not good(raw[name]):
            raise ArtifactError(f"{path}: {name} is {raw[name]!r}, not {right}: export again")
    if raw["capacity"] < raw["context"] + MAX_NODES:
        raise ArtifactError(
            f"{path}: capacity {raw['capacity']} is below context {raw['context']} + {MAX_NODES} nodes: export again"
        )
    for name, step, new in (("inputs", STEP_INPUTS, ""), ("outputs", STEP_OUTPUTS[raw["form"]], "new_")):
        if len(raw[name]) != (expected := len(step) + 2 * raw["layers"]):
            raise ArtifactError(
                f"{path}: {name} has {len(raw[name])} names, {raw['layers']} layers make it {expected}: export again"
            )
        want = {*step, *(f"{new}{part}_{i}" for i in range(raw["layers"]) for part in ("key", "value"))}
        if missing := want - set(raw[name]):
            raise ArtifactError(f"{path}: {name} lacks {', '.join(sorted(missing))}: export again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
