"""The ragged graph form on ONNX Runtime's CPU provider, with its key-value cache in place.

One anonymous mapping holds keys and values of all layers: untouched pages take no memory, and a freed row's pages may
go back to the system. ONNX Runtime reads and writes this memory itself: the same buffer is bound as a cache input and
as its output, which TreeAttention demands, and which the Scan's body and GroupQueryAttention leave where it is.
"""

import mmap
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime.errors import ArtifactError, ConfigurationError
from runtime.graphs import CPU, compare, load
from runtime.manifest import NATIVE_OPERATORS, STEP_INPUTS, Manifest
from runtime.native.library import BUILD_COMMAND, Library, find
from runtime.session import Batch, Draft, HostResult
from runtime.verify import first_gap

STEP_OUTPUTS = ("logits", "hidden", "argmax")
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's, from Python 3.13 on by name


class RaggedSession:
    """One artifact loaded for `rows` rows; `threads` 0 lets ONNX Runtime use every core; `operators` as EngineConfig's.

    Where all rows fit into `memory` bytes, and nothing reads what is not committed, rows that nobody uses keep their
    pages: to touch a new one takes longer than to compute what goes into it.

    Raises ArtifactError where the graphs are not what the manifest says, ConfigurationError where native operators are
    asked for and not there.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        rows: int,
        threads: int = 0,
        operators: str = "auto",
        memory: int = 0,
    ) -> None:
        self.manifest = manifest
        library = chosen_library(operators)
        self._decoder = load(directory / "decoder.onnx", threads, library=library)
        self._heads = load(directory / "heads.onnx", threads, library=library) if manifest.medusa_heads else None
        takes = self._decoder.get_modelmeta().custom_metadata_map.get(NATIVE_OPERATORS)
        if operators == "native" and takes is None:
            raise ArtifactError(f"{directory / 'decoder.onnx'} is older than the native operators: export it again")
        self.provider = f"{CPU}, {library}" if library and takes else CPU
        self.ordered = library is not None and "TreeAttention" in (takes or "").split(",")
        self._check(directory)
        m = manifest
        self._shape = (2 * m.layers, rows, m.kv_heads, m.capacity, m.head_dim)
        self._memory = _map(m, rows)
        # [layers x (key, value), rows, kv_heads, capacity, head_dim]
        self.cache = np.frombuffer(self._memory, np.float32).reshape(self._shape)
        self._keep = self.ordered and self.cache.nbytes <= memory
        self._state = np.zeros((rows, m.hidden), np.float32)  # each row's hidden state after its last commit
        self._logits = np.empty((0, m.vocab), np.float32)
        self._hidden = np.empty((0, m.hidden), np.float32)
        self._argmax = np.empty(0, np.int64)
        # Binding an array takes longer than a small operator: what can be is kept, by the number of ...
        self._bindings: dict[int, ort.IOBinding] = {}  # rows in use
        self._outputs: dict[int, tuple[list[ort.OrtValue], HostResult]] = {}  # nodes whose logits are wanted
        self._drafts: dict[tuple[int, int], tuple[ort.IOBinding, Draft]] = {}  # rows asked, and heads

    def run(self, batch: Batch) -> HostResult:
        rows, wanted = len(batch.length), len(batch.wanted)
        if (binding := self._bindings.get(rows)) is None:
            binding = self._bindings[rows] = self._bind_cache(rows)
        if (kept := self._outputs.get(wanted)) is None:
            kept = self._outputs[wanted] = self._place_outputs(wanted)
        for name in STEP_INPUTS:
            binding.bind_cpu_input(name, getattr(batch, name))
        for name, value in zip(STEP_OUTPUTS, kept[0], strict=True):
            binding.bind_ortvalue_output(name, value)
        self._decoder.run_with_iobinding(binding)
        return kept[1]

    def heads(self, rows: list[int], depth: int) -> Draft:
        if self._heads is None:
            raise ArtifactError(f"artifact {self.manifest.name} has no heads: export it again with --heads")
        if (kept := self._drafts.get((len(rows), depth))) is None:
            kept = self._drafts[len(rows), depth] = self._place_draft(self._heads, len(rows), depth)
        binding, draft = kept
        binding.bind_cpu_input("hidden", self._state[rows])
        self._heads.run_with_iobinding(binding)
        return draft

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        if (out := first_gap(path)) is not None:  # from there on accepted nodes do not lie in their place
            cache = self.cache[:, row]
            cache[:, :, length + out : length + len(path)] = cache[:, :, [length + slot for slot in path[out:]]]
        if last is not None:
            self._state[row] = self._hidden[last]

    def copy(self, source: int, target: int, length: int) -> None:
        self.cache[:, target, :, :length] = self.cache[:, source, :, :length]
        self._state[target] = self._state[source]

    def release(self, row: int) -> None:
        """Returns the row's whole pages to the system, unless they are kept; they read as zeros from then on."""
        if self._keep:
            return
        size = self.cache[0, row].nbytes
        for i in range(self._shape[0]):
            begin = (i * self._shape[1] + row) * size
            first, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + size) // mmap.PAGESIZE * mmap.PAGESIZE
            if end > first:
                self._memory.madvise(mmap.MADV_DONTNEED, first, end - first)

    def _place_outputs(self, wanted: int) -> tuple[list[ort.OrtValue], HostResult]:
        """The first places of the output buffers, which grow where they are too small."""
        m = self.manifest
        if wanted > len(self._argmax):
            size = max(wanted, 2 * len(self._argmax))
            self._logits, self._hidden = np.empty((size, m.vocab), np.float32), np.empty((size, m.hidden), np.float32)
            self._argmax = np.empty(size, np.int64)
            self._outputs.clear()
        logits, hidden, argmax = self._logits[:wanted], self._hidden[:wanted], self._argmax[:wanted]
        values = [ort.OrtValue.ortvalue_from_numpy(part) for part in (logits, hidden, argmax)]
        return values, HostResult(argmax, logits)

    def _place_draft(self, heads: ort.InferenceSession, rows: int, depth: int) -> tuple[ort.IOBinding, Draft]:
        shape, binding = (rows, depth, self.manifest.draft_top_k), heads.io_binding()
        binding.bind_ortvalue_input("depth", ort.OrtValue.ortvalue_from_numpy(np.array([depth])))
        draft = Draft(np.empty(shape, np.int64), np.empty(shape, np.float32))
        for name, part in (("tokens", draft.tokens), ("logprobs", draft.logprobs)):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(part))
        return binding, draft

    def _bind_cache(self, rows: int) -> ort.IOBinding:
        """Rows 0 .. rows-1 of every layer's keys and values, as input and as output."""
        binding = self._decoder.io_binding()
        shape = (rows, 1, *self._shape[2:])
        for i in range(self._shape[0]):
            name, address = f"{('key', 'value')[i % 2]}_{i // 2}", self.cache[i].ctypes.data
            binding.bind_input(name, "cpu", 0, np.float32, shape, address)
            binding.bind_output(f"new_{name}", "cpu", 0, np.float32, shape, address)
        return binding

    def _check(self, directory: Path) -> None:
        """The graphs' real inputs and outputs against the manifest."""
        m = self.manifest
        cache: list[int | str] = ["rows", 1, m.kv_heads, m.capacity, m.head_dim]
        want: dict[str, list[int | str]] = {
            "tokens": ["tokens"], "depth": ["tokens"], "length": ["rows"], "count": ["rows"],
            "ancestors": ["rows", "nodes", "nodes"], "wanted": ["wanted"],
            "logits": ["wanted", m.vocab], "argmax": ["wanted"], "hidden": ["wanted", m.hidden],
        }  # fmt: skip
        for i in range(m.layers):
            want |= {f"{new}{part}_{i}": cache for new in ("", "new_") for part in ("key", "value")}
        compare(directory / "decoder.onnx", self._decoder, want)
        if self._heads is not None:
            best: list[int | str] = ["rows", f"depth_to_{m.medusa_heads}", m.draft_top_k]
            want = {"hidden": ["rows", m.hidden], "depth": [1], "tokens": best, "logprobs": best}
            compare(directory / "heads.onnx", self._heads, want)


def _map(manifest: Manifest, rows: int) -> mmap.mmap:
    """Address space for every row's whole capacity; memory only where it is touched. Raises ConfigurationError."""
    size = rows * manifest.capacity * manifest.kv_bytes
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"{rows} rows x {manifest.capacity} tokens x {manifest.kv_bytes} bytes = {size} bytes of keys and values"
            f" cannot be mapped ({error}): take fewer rows"
        ) from None


def chosen_library(operators: str) -> Library | None:
    """Raises ConfigurationError if native operators are asked for and not built."""
    library = find() if operators != "stock" else None
    if operators == "native" and library is None:
        raise ConfigurationError(
            f"native operators are not built: build them with `{BUILD_COMMAND}`, or take stock ones"
        )
    return library
