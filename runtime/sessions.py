"""From an artifact to the session that runs it here: graph form and provider are chosen together."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from runtime import machine
from runtime.errors import ConfigurationError
from runtime.graphs import Opener
from runtime.manifest import Manifest
from runtime.padded import PaddedSession
from runtime.params import MAX_NODES, EngineConfig
from runtime.providers import NAMES, choose, tensorrt_options
from runtime.ragged import RaggedSession
from runtime.session import Session

CACHE = ".cache"
TENSORRT_PACKAGES = ("onnxruntime-gpu", "tensorrt", "tensorrt-cu13")


def open_session(artifact: Path, manifest: Manifest, config: EngineConfig, progress: Callable[[str], None]) -> Session:
    """A session of `config.rows` rows on `config.provider`.

    `artifact` is the name as it was given, not what it links to. Raises ArtifactError for graphs that do not load, and
    ConfigurationError for a provider that is not there, or rows whose keys and values exceed `config.kv_memory`.
    """
    directory = artifact.resolve()
    # onnxruntime-gpu has its providers whether or not there is a GPU: what nobody asked for by name needs one
    here = ort.get_available_providers() if config.provider != "auto" or machine.cuda_devices() else [NAMES["cpu"]]
    provider = choose(config.provider, manifest, here)
    if manifest.form == "ragged":
        return RaggedSession(directory, manifest, config.rows, config.threads, config.operators, config.kv_memory)
    check_memory(manifest, config)
    if provider == "tensorrt" and config.chunk > MAX_NODES:
        raise ConfigurationError(
            f"chunk is {config.chunk}: an engine of TensorRT is built for runs of at most {MAX_NODES} nodes a row"
        )
    cache = engine_cache(artifact, manifest, config.rows)
    opener = Opener(manifest, config.rows, provider, config.threads, cache, progress)
    return PaddedSession(directory, manifest, config.rows, provider, opener)


def check_memory(manifest: Manifest, config: EngineConfig) -> None:
    """A padded session's rows are allocated whole: all of them have to fit the budget. Raises ConfigurationError."""
    row = manifest.capacity * manifest.kv_bytes
    if (need := config.rows * row) > config.kv_memory:
        raise ConfigurationError(
            f"{config.rows} rows x {manifest.capacity} tokens x {manifest.kv_bytes} bytes = {need} bytes of keys and"
            f" values, the budget is {config.kv_memory}: take at most {config.kv_memory // row} rows, give more memory"
            " (--kv-memory), or export with a smaller --context"
        )


def cache_of(artifact: Path) -> Path:
    """Where what is derived from an artifact's name is kept: artifacts may be read-only."""
    name = Path(os.path.abspath(artifact))  # not resolved: the name is a link that the next export switches
    return name.parent / CACHE / name.name


def engine_cache(artifact: Path, manifest: Manifest, rows: int) -> Path:
    """A directory for TensorRT's engines and timings, of this artifact, these shapes, this GPU and these versions."""
    identity: dict[str, Any] = {
        "files": {name: file["sha256"] for name, file in sorted(manifest.files.items())},
        "versions": machine.versions(TENSORRT_PACKAGES),
        "gpus": machine.gpus(),
        "options": tensorrt_options(manifest, rows, Path(), whole=True),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache_of(artifact) / f"tensorrt-{digest[:16]}"
