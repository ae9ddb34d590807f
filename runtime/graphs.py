"""Graphs on disk as ONNX Runtime sessions: options, which provider really took them, and what they take and give."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runtime.errors import ArtifactError, ConfigurationError
from runtime.manifest import Manifest
from runtime.native.library import Library
from runtime.providers import DEVICES, INSTALL, NAMES, ON_CUDA, cuda_options, require, tensorrt_options

CPU = NAMES["cpu"]
WEIGHTS_IN = "session.model_external_initializers_file_folder_path"  # ONNX Runtime's name
# No node may quietly run on the host: a captured graph cannot, and keys and values would cross the bus.
GPU_ENTRIES = {"session.disable_cpu_ep_fallback": "1"}
TENSORRT_ENTRIES = GPU_ENTRIES | {"session.record_ep_graph_assignment_info": "1"}
PATIENCE = 10.0  # seconds between words on an engine that is being built

log = logging.getLogger(__name__)

Provider = str | tuple[str, Mapping[str, str]]
Shape = list[int | str]


def load(
    path: Path,
    threads: int = 0,
    providers: Sequence[Provider] = (CPU,),
    entries: Mapping[str, str] | None = None,
    part: bytes | None = None,
    library: Library | None = None,
) -> ort.InferenceSession:
    """A graph, or a `part` of it, on these providers, and no other; `threads` 0 lets ONNX Runtime use every core.

    Raises ArtifactError.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3  # errors: warnings are about the graph, which is ours
    # Idle threads must not spin: decoder and heads have a pool each, and the service an event loop beside them
    # (docs/decisions/0003-threads.md).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library is not None:
        options.register_custom_ops_library(str(library.file))
    if part is not None:
        options.add_session_config_entry(WEIGHTS_IN, str(path.parent))
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    try:
        # without its fallback, with which ONNX Runtime would go on by other providers
        return ort.InferenceSession(part or path, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise ArtifactError(f"{path} does not load: {error}") from error


def check_provider(provider: str) -> None:
    """Raises ConfigurationError, with what to install, unless a graph runs on the provider here.

    Of libraries that are missing ONNX Runtime only logs which, and makes the session without their provider: a graph
    that must not run on the CPU is then refused for that, as if it were the graph's fault.
    """
    require(provider, ort.get_available_providers())
    if provider == "cpu":
        return
    ort.preload_dlls()  # CUDA's and cuDNN's libraries as pip's packages carry them
    try:
        session = ort.InferenceSession(_addition(), providers=[NAMES[provider]], enable_fallback=0)
        if NAMES[provider] in session.get_providers():
            session.run(None, {"x": np.ones(1, np.float32)})
            return
        reason = ""
    except Exception as error:  # as above
        reason = f" ({str(error).strip()})"
    raise ConfigurationError(
        f"provider {provider} does not load on this machine{reason}, it needs a GPU with its driver and libraries:"
        f" {INSTALL[provider]}"
    )


def _addition() -> bytes:
    """The smallest graph: x + x."""
    import onnx  # only here: serving on a CPU does without it

    value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])  # noqa: E731
    add = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    graph = onnx.helper.make_graph([add], "addition", [value("x")], [value("y")])
    opset = onnx.helper.make_opsetid("", 21)
    content: bytes = onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset]).SerializeToString()
    return content


def compare(path: Path, session: ort.InferenceSession, want: Mapping[str, Shape]) -> None:
    """A graph's real inputs and outputs against what the manifest says. Raises ArtifactError."""
    have = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    for name in dict.fromkeys([*want, *have]):
        if want.get(name) != have.get(name):
            raise ArtifactError(
                f"{path}: {name} is {have.get(name)}, the manifest makes it {want.get(name)}: export again"
            )


class Opener:
    """Opens the graphs of one padded artifact on one provider."""

    def __init__(
        self, manifest: Manifest, rows: int, provider: str, threads: int, cache: Path,
        progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`cache` is where TensorRT's engines are kept. Raises ConfigurationError where the provider does not load."""
        for needed in {"cpu": (), "cuda": ("cuda",), "tensorrt": ("cuda", "tensorrt")}[provider]:
            check_provider(needed)
        self._manifest, self._rows, self._provider, self._threads = manifest, rows, provider, threads
        self._cache, self._progress = cache, progress

    def decoder(self, path: Path) -> ort.InferenceSession:
        if self._provider == "tensorrt":
            return self._engine(path)
        return self._load(path, DEVICES[self._provider].captures)

    def small(self, path: Path) -> ort.InferenceSession:
        """A graph beside the decoder's; with TensorRT it runs on the CUDA provider, on the same memory."""
        return self._load(path, capture=False)

    def _load(self, path: Path, capture: bool) -> ort.InferenceSession:
        if self._provider == "cpu":
            return load(path, self._threads)
        return load(path, 1, [(NAMES["cuda"], cuda_options(self._manifest, capture))], GPU_ENTRIES)

    def _engine(self, path: Path) -> ort.InferenceSession:
        """TensorRT's, whole if it can be built so, else with attention on CUDA."""
        try:
            session = self._build(path, whole=True)
            others = _elsewhere(session)
            reason = f"TensorRT leaves {', '.join(others)} out" if others else ""
        except ArtifactError as error:
            session, reason = None, str(error)
        if session is not None and not reason:
            return session
        log.warning(
            "the engine cannot be built whole (%s): %s run on CUDA, between engines", reason, ", ".join(ON_CUDA)
        )
        return self._build(path, whole=False)

    def _build(self, path: Path, whole: bool) -> ort.InferenceSession:
        self._cache.mkdir(parents=True, exist_ok=True)
        options = tensorrt_options(self._manifest, self._rows, self._cache, whole)
        providers = [(NAMES["tensorrt"], options), (NAMES["cuda"], cuda_options(self._manifest, capture=False))]
        with _Waiting(self._progress, f"TensorRT builds its engine, or reads it from {self._cache}"):
            return load(path, 1, providers, TENSORRT_ENTRIES)


def _elsewhere(session: ort.InferenceSession) -> list[str]:
    """Kinds of nodes that TensorRT did not take."""
    parts = session.get_provider_graph_assignment_info()
    return sorted({node.op_type for part in parts if part.ep_name != NAMES["tensorrt"] for node in part.get_nodes()})


class _Waiting:
    """Says every few seconds what is waited for, and how long already."""

    def __init__(self, progress: Callable[[str], None], what: str) -> None:
        self._progress, self._what, self._done = progress, what, threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> None:
        self._progress(self._what)
        self._began = time.monotonic()
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._thread.join()

    def _tell(self) -> None:
        while not self._done.wait(PATIENCE):
            self._progress(f"{self._what}: {time.monotonic() - self._began:.0f} s so far")
