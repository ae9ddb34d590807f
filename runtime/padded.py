"""The padded graph form on any provider: buffers where it computes, graphs bound to places in them.

A run writes its inputs with one copy, and its best tokens with their logits come back in one. Keys, values, bias,
hidden states and logits stay; of logits, nodes that tokens are drawn at send the largest, or whole rows on demand.
What was accepted is moved, and hidden states are kept, just before the next thing that needs it. On the CPU provider
the device is this process's memory, and all of it the same. Why so: docs/decisions/0013-the-padded-form.md.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime.buckets import Run, node_bucket, plan, row_bucket
from runtime.device import Block, Place, bind, layout
from runtime.errors import ArtifactError, ConfigurationError, StepError
from runtime.graphs import Opener, compare
from runtime.manifest import Manifest
from runtime.padding import pad, shapes
from runtime.params import MAX_NODES
from runtime.providers import DEVICES, NAMES
from runtime.sampling import Best
from runtime.session import Batch, DeviceResult, Draft
from runtime.verify import first_gap

LEAST_PATH = 8  # nodes of a path that is moved: shorter ones are padded to as many


@dataclass(frozen=True, slots=True)
class _Shape:
    """A run's shape, ready: its inputs' block, their host copy, and the graph bound to it."""

    binding: ort.IOBinding
    options: ort.RunOptions
    block: Block
    host: np.ndarray  # uint8, all inputs
    arrays: dict[str, np.ndarray]  # views of it


class PaddedSession:
    """One artifact loaded for `rows` rows, all of whose keys and values are allocated at once."""

    ordered = False

    def __init__(self, directory: Path, manifest: Manifest, rows: int, provider: str, opener: Opener) -> None:
        """`provider` is a name of `providers.NAMES`. Raises ArtifactError, or ConfigurationError for lack of memory."""
        m = self.manifest = manifest
        self.provider = NAMES[provider]
        self._rows, self._device = rows, DEVICES[provider]
        self._decoder = opener.decoder(directory / "decoder.onnx")
        self._graphs = {name: opener.small(directory / f"{name}.onnx") for name in ("commit", "copy", "keep", "best")}
        self._graphs["rows"] = opener.small(directory / "rows.onnx")
        self._heads = opener.small(directory / "heads.onnx") if m.medusa_heads else None
        self._check(directory)
        cache = (rows, m.kv_heads, m.capacity, m.head_dim)
        size = int(np.prod(cache)) * m.value_bytes
        try:
            self._blocks = [self._block(size) for _ in range(2 * m.layers)]
            self._state_block = self._block(rows * m.hidden * m.value_bytes)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own; also MemoryError
            raise ConfigurationError(
                f"{rows} rows x {m.capacity} tokens x {m.kv_bytes} bytes = {rows * m.capacity * m.kv_bytes} bytes of"
                f" keys and values cannot be allocated ({error}): take fewer rows, or export with a smaller context"
            ) from None
        names = [f"{part}_{i}" for i in range(m.layers) for part in ("key", "value")]
        self._cache = {n: block.place(0, m.values, cache) for n, block in zip(names, self._blocks, strict=True)}
        self._state = self._state_block.place(0, m.values, (rows, m.hidden))
        self._shapes: dict[tuple[Run, int], _Shape] = {}
        self._bindings: dict[tuple[str, int], ort.IOBinding] = {}  # of small graphs, by rows
        self._captured = self._room = 0  # graphs captured so far; slots for outputs
        self._make_room(rows * MAX_NODES * 3 // 2)  # a narrow run of half as wide trees, and each row alone
        self._slots: list[int] = []  # of the last run's wanted nodes
        self._moves: dict[int, tuple[int, list[int]]] = {}  # row: committed length, path with gaps
        self._last: dict[int, int] = {}  # row: slot of its new hidden state

    def run(self, batch: Batch) -> DeviceResult:
        self._settle()
        least = min(2, batch.ancestors.shape[1])
        runs, own = plan(batch.count.tolist(), self._rows, least, self._device.free)
        wanted = self._place(batch, runs, np.array(own))
        begin = 0
        for number, run in enumerate(runs):
            self._check_room(batch, run)
            shape = self._shape(run, len(wanted[number]), begin)
            pad(batch, run, np.array(own) == number, self.manifest.capacity, shape.arrays)
            shape.arrays["wanted"][:] = wanted[number]
            shape.block.write(shape.host)
            self._decoder.run_with_iobinding(shape.binding, shape.options)
            begin += len(wanted[number])
        found = self._answers.read()
        argmax, peaks = (found[at : at + n].view(kind) for at, n, kind in self._answer_parts)
        bests = {} if batch.temperature is None else self._bests(batch.temperature)
        return DeviceResult(argmax[self._slots], peaks[self._slots], bests, self._fetch, self._slots)

    def heads(self, rows: list[int], depth: int) -> Draft:
        if self._heads is None:
            raise ArtifactError(f"artifact {self.manifest.name} has no heads: export it again with --heads")
        self._settle()
        asked = np.zeros(row_bucket(len(rows), self._rows), np.int64)
        asked[: len(rows)] = rows
        tokens, logprobs = self._call(self._heads, {"asked": asked}, {"state": self._state}, ("tokens", "logprobs"))
        return Draft(tokens[: len(rows), :depth], logprobs[: len(rows), :depth])  # all heads run at once

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        if first_gap(path) is not None:
            self._moves[row] = (length, path)
        if last is not None:
            self._last[row] = self._slots[last]

    def copy(self, source: int, target: int, length: int) -> None:
        self._settle()
        places = {"from_state": self._state.part(source, 1)}
        outputs = {"new_state": self._state.part(target, 1)}
        for name, place in self._cache.items():
            places |= {f"from_{name}": place.part(source, 1), name: place.part(target, 1)}
            outputs[f"new_{name}"] = place.part(target, 1)
        self._change("copy", 0, {"length": np.array([length])}, places, outputs)

    def release(self, row: int) -> None:
        """Its memory is there for the next sequence: all of it was allocated at once."""
        self._moves.pop(row, None)
        self._last.pop(row, None)

    def cache(self, name: str) -> np.ndarray:
        """A copy of one layer's keys or values (`key_0`) on the host, [rows, kv_heads, capacity, head_dim] as bytes."""
        block = self._blocks[list(self._cache).index(name)]
        return block.read().reshape(*self._cache[name].shape, -1).copy()

    def _place(self, batch: Batch, runs: list[Run], own: np.ndarray) -> list[np.ndarray]:
        """Which of its nodes each run gives logits of; makes room for them, and notes where each wanted one will be.

        A narrow run gives all, whatever the step wants: its graph is captured. A wide one gives the one node wanted, or
        all.
        """
        start = np.cumsum(batch.count) - batch.count
        row = np.searchsorted(start, batch.wanted, side="right") - 1  # [wanted]
        node, run_of = batch.wanted - start[row], own[row]
        slots, chosen, begin = np.empty(len(row), np.int64), [], 0
        for number, run in enumerate(runs):
            mine = run_of == number
            flat = (row[mine] - run.first) * run.nodes + node[mine]
            one = not run.narrow and len(flat) <= 1
            chosen.append(flat if one and len(flat) else np.arange(1 if one else run.rows * run.nodes))
            slots[mine] = begin + (0 if one else flat)
            begin += len(chosen[-1])
        self._make_room(begin)
        self._slots = slots.tolist()
        return chosen

    def _check_room(self, batch: Batch, run: Run) -> None:
        """A write past a row's end is clamped onto its last slots by CUDA, without a word."""
        longest = int(batch.length[run.first : run.first + run.rows].max())
        if longest + run.nodes > self.manifest.capacity:
            raise StepError(
                f"a row of {longest} committed tokens and {run.nodes} nodes does not fit {self.manifest.capacity} slots"
            )

    def _make_room(self, slots: int) -> None:
        """For the outputs of so many nodes. What was bound before is bound to memory that is given up."""
        if slots <= self._room:
            return
        m, self._room = self.manifest, slots
        self._shapes.clear()
        self._bindings.clear()
        parts, size = layout([("argmax", "int64", (slots,)), ("peak", "float32", (slots,))])
        self._answers = self._block(size)
        self._spare = [self._block(slots * m.vocab * 4), self._block(slots * m.hidden * m.value_bytes)]
        logits, hidden = self._spare
        self._outputs = {
            "logits": logits.place(0, "float32", (slots, m.vocab)),
            "hidden": hidden.place(0, m.values, (slots, m.hidden)),
            **{name: self._answers.place(at, kind, shape) for name, (at, kind, shape) in parts.items()},
        }
        self._answer_parts = [(parts["argmax"][0], 8 * slots, np.int64), (parts["peak"][0], 4 * slots, np.float32)]

    def _shape(self, run: Run, wanted: int, begin: int) -> _Shape:
        """A run's graph, its outputs from slot `begin` on: always 0 in a narrow run, which comes first."""
        if (kept := self._shapes.get((run, wanted))) is None:
            kept = self._shapes[run, wanted] = self._bind(run, wanted)
        outputs = {name: place.part(begin, wanted) for name, place in self._outputs.items()}
        if begin or not run.narrow:
            bind(kept.binding, {}, outputs)
        return kept

    def _bind(self, run: Run, wanted: int) -> _Shape:
        parts, size = layout(shapes(run.rows, run.nodes, wanted))
        block, host = self._block(size), np.zeros(size, np.uint8)
        arrays = {}
        for name, (at, kind, shape) in parts.items():
            length = int(np.prod(shape)) * np.dtype(kind).itemsize
            arrays[name] = host[at : at + length].view(kind).reshape(shape)
        inputs = {name: block.place(at, kind, shape) for name, (at, kind, shape) in parts.items()}
        caches = {name: place.part(run.first, run.rows) for name, place in self._cache.items()}
        outputs = {name: place.part(0, wanted) for name, place in self._outputs.items()}
        binding, options = self._decoder.io_binding(), ort.RunOptions()
        bind(binding, inputs | caches, outputs | {f"new_{name}": place for name, place in caches.items()})
        if self._device.captures:
            self._captured += run.narrow
            options.add_run_config_entry("gpu_graph_id", str(self._captured) if run.narrow else "-1")
        return _Shape(binding, options, block, host, arrays)

    def _settle(self) -> None:
        """Moves what was accepted into place, and keeps hidden states, before anything else reads or writes them."""
        if self._moves:
            rows = row_bucket(max(self._moves) + 1, self._rows)
            path = max(LEAST_PATH, node_bucket(max(len(path) for _, path in self._moves.values())))
            length = np.zeros(rows, np.int64)
            slots = np.tile(np.arange(path), (rows, 1))  # rows that stay put: their first slots to where they are
            for row, (committed, nodes) in self._moves.items():
                length[row] = committed
                slots[row] += committed
                slots[row, : len(nodes)] = np.array(nodes) + committed
            places = {name: place.part(0, rows) for name, place in self._cache.items()}
            outputs = {f"new_{name}": place for name, place in places.items()}
            self._change("commit", rows, {"length": length, "slots": slots}, places, outputs)
            self._moves.clear()
        if self._last and self._heads is not None:
            last, kept = np.zeros(self._rows, np.int64), np.zeros(self._rows, bool)
            last[list(self._last)], kept[list(self._last)] = list(self._last.values()), True
            places = {"hidden": self._outputs["hidden"], "state": self._state}
            self._change("keep", self._rows, {"last": last, "kept": kept}, places, {"new_state": self._state})
        self._last.clear()

    def _bests(self, temperature: np.ndarray) -> dict[int, Best]:
        """Of all nodes that a token may be drawn at."""
        nodes = np.flatnonzero(temperature).tolist()
        slots = np.array([self._slots[node] for node in nodes])
        given = {"node": slots, "temperature": temperature[nodes]}
        logits = {"logits": self._outputs["logits"]}
        ids, values, mass = self._call(self._graphs["best"], given, logits, ("ids", "values", "mass"))
        vocab = self.manifest.vocab
        return {node: Best(ids[i], values[i], float(mass[i]), vocab) for i, node in enumerate(nodes)}

    def _fetch(self, slots: list[int]) -> np.ndarray:
        logits = {"logits": self._outputs["logits"]}
        [rows] = self._call(self._graphs["rows"], {"node": np.array(slots, np.int64)}, logits, ("rows",))
        return rows

    def _call(
        self, graph: ort.InferenceSession, given: dict[str, np.ndarray], places: dict[str, Place],
        wanted: tuple[str, ...],
    ) -> list[np.ndarray]:  # fmt: skip
        """Runs a small graph whose outputs come to the host."""
        binding = graph.io_binding()
        bind(binding, places, {})
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        for name in wanted:
            binding.bind_output(name)
        graph.run_with_iobinding(binding)
        found: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return found

    def _change(
        self, name: str, rows: int, given: dict[str, np.ndarray], places: dict[str, Place], outputs: dict[str, Place]
    ) -> None:
        """Runs a small graph that changes what lies on the device; for so many rows its places are always the same, but
        for 0, which is any."""
        graph = self._graphs[name]
        if (binding := self._bindings.get((name, rows))) is None:
            binding = graph.io_binding()
            bind(binding, places, outputs)
            if rows:
                self._bindings[name, rows] = binding
        for part, array in given.items():
            binding.bind_cpu_input(part, array)
        graph.run_with_iobinding(binding)

    def _block(self, size: int) -> Block:
        return Block(self._device.name, size)

    def _check(self, directory: Path) -> None:
        """The graphs' real inputs and outputs against the manifest."""
        m = self.manifest
        cache: list[int | str] = ["rows", m.kv_heads, m.capacity, m.head_dim]
        want: dict[str, list[int | str]] = {
            "tokens": ["rows", "nodes"], "depth": ["rows", "nodes"], "length": ["rows"], "count": ["rows"],
            "ancestors": ["rows", "nodes", "nodes"], "wanted": ["wanted"], "logits": ["wanted", m.vocab],
            "argmax": ["wanted"], "peak": ["wanted"], "hidden": ["wanted", m.hidden],
        }  # fmt: skip
        for i in range(m.layers):
            want |= {f"{new}{part}_{i}": cache for new in ("", "new_") for part in ("key", "value")}
        compare(directory / "decoder.onnx", self._decoder, want)
        if self._heads is not None:
            best: list[int | str] = ["rows", m.medusa_heads, m.draft_top_k]
            want = {"state": ["slots", m.hidden], "asked": ["rows"], "tokens": best, "logprobs": best}
            compare(directory / "heads.onnx", self._heads, want)
