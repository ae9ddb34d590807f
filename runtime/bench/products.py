"""`python -m runtime.bench products`: a matrix product by operator and number of tokens, against reading its weights.

Each operator multiplies by several matrices one after the other, more than a cache holds, in a session of its own. The
operators, and a plain read of as many bytes with as many threads, take turns, so that what else the machine does
meets all of them alike.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from runtime import machine
from runtime.bench.machine import Machine, OtherLoad, versions
from runtime.bench.markdown import table
from runtime.bench.options import counts, positive
from runtime.bench.roofline import bandwidth
from runtime.errors import ConfigurationError
from runtime.native.library import BUILD_COMMAND, PATHS, Library, find

MICROSOFT, GORGON = "com.microsoft", "gorgon"
CACHE = 192 << 20  # bytes of weights at least, so that no cache holds them
Nodes = tuple[list[Any], dict[str, np.ndarray]]  # of one product, and its initializers by name


@dataclass(frozen=True, slots=True)
class Operator:
    """One way to compute y = x W^T. `weight_bytes` is what a pass over one matrix reads of memory."""

    name: str
    native: bool
    bits: float  # a weight takes, scales included
    build: Callable[[int, int, int, np.random.Generator], Nodes]  # of number, inputs, outputs
    against: str | None = None  # the stock operator to compare with

    def weight_bytes(self, inputs: int, outputs: int) -> int:
        return int(inputs * outputs * self.bits / 8)


def int4(block: int, native: bool) -> Callable[[int, int, int, np.random.Generator], Nodes]:
    def build(i: int, inputs: int, outputs: int, rng: np.random.Generator) -> Nodes:
        blocks = -(-inputs // block)
        weights = {
            f"w{i}": rng.integers(0, 256, (outputs, blocks, block // 2), np.uint8),
            f"s{i}": rng.uniform(0.001, 0.01, (outputs, blocks)).astype(np.float16).astype(np.float32),
        }
        more: dict[str, Any] = {} if native else {"bits": 4, "accuracy_level": 4}
        name, domain = ("MatMulInt4", GORGON) if native else ("MatMulNBits", MICROSOFT)
        node = helper.make_node(
            name, ["x", *weights], [f"y{i}"], domain=domain, K=inputs, N=outputs, block_size=block, **more
        )
        return [node], weights

    return build


def int8(i: int, inputs: int, outputs: int, rng: np.random.Generator) -> Nodes:
    node, weights = helper.make_node, int8_weights(i, inputs, outputs, rng)
    weights |= {
        f"zero{i}": np.array(128, np.uint8), f"one{i}": np.array(1, np.float32), f"last{i}": np.array([-1]),
        f"share{i}": np.array(1 / 127, np.float32),
    }  # fmt: skip
    zero, one = f"zero{i}", f"one{i}"
    return [
        node("Abs", ["x"], [f"magnitude{i}"]),
        node("ReduceMax", [f"magnitude{i}", f"last{i}"], [f"largest{i}"], keepdims=1),
        node("Mul", [f"largest{i}", f"share{i}"], [f"token_scale{i}"]),
        node("Div", ["x", f"token_scale{i}"], [f"scaled{i}"]),
        node("QuantizeLinear", [f"scaled{i}", one, zero], [f"q{i}"]),
        node("MatMulIntegerToFloat", [f"q{i}", f"w{i}", one, f"s{i}", zero], [f"sums{i}"], domain=MICROSOFT),
        node("Mul", [f"sums{i}", f"token_scale{i}"], [f"y{i}"]),
    ], weights


def native_int8(i: int, inputs: int, outputs: int, rng: np.random.Generator) -> Nodes:
    weights = int8_weights(i, inputs, outputs, rng)
    return [helper.make_node("MatMulInt8", ["x", *weights], [f"y{i}"], domain=GORGON)], weights


def int8_weights(i: int, inputs: int, outputs: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        f"w{i}": rng.integers(-127, 128, (inputs, outputs), np.int8),
        f"s{i}": rng.uniform(0.001, 0.01, outputs).astype(np.float32),
    }


OPERATORS = (
    Operator("MatMulNBits, block 32", False, 5.0, int4(32, False)),
    Operator("MatMulInt4, block 32", True, 4.5, int4(32, True), "MatMulNBits, block 32"),
    Operator("MatMulNBits, block 128", False, 4.25, int4(128, False)),
    Operator("MatMulInt4, block 128", True, 4.125, int4(128, True), "MatMulNBits, block 128"),
    Operator("int8, stock", False, 8.0, int8),
    Operator("MatMulInt8", True, 8.0, native_int8, "int8, stock"),
)


class Session:
    """One operator's session over `copies` matrices, inputs and outputs bound once for each number of tokens."""

    def __init__(
        self, operator: Operator, inputs: int, outputs: int, copies: int, threads: int, library: Library
    ) -> None:
        rng = np.random.default_rng(0)
        nodes: list[Any] = []
        weights: dict[str, np.ndarray] = {}
        for i in range(copies):
            more, its = operator.build(i, inputs, outputs, rng)
            nodes += more
            weights |= its
        value = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", width])  # noqa: E731
        graph = helper.make_graph(
            nodes, "products", [value("x", inputs)], [value(f"y{i}", outputs) for i in range(copies)],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid(GORGON, 1)]
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or idle sessions take the cores
        if operator.native:
            options.register_custom_ops_library(str(library.file))
        model = helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._sizes, self._copies = (inputs, outputs), copies
        self._bindings: dict[int, Any] = {}

    def seconds(self, tokens: int) -> float:
        """Of one product."""
        if tokens not in self._bindings:
            self._bindings[tokens] = self._bind(tokens)
        began = perf_counter()
        self._session.run_with_iobinding(self._bindings[tokens])
        return (perf_counter() - began) / self._copies

    def _bind(self, tokens: int) -> Any:
        inputs, outputs = self._sizes
        binding = self._session.io_binding()
        x = np.random.default_rng(1).standard_normal((tokens, inputs), np.float32)
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
        for i in range(self._copies):
            y = ort.OrtValue.ortvalue_from_shape_and_type([tokens, outputs], np.float32)
            binding.bind_ortvalue_output(f"y{i}", y)
        self._session.run_with_iobinding(binding)  # the first run sets up what later ones use
        return binding


@dataclass(frozen=True, slots=True)
class Measured:
    operator: str
    tokens: int
    seconds: tuple[float, ...]  # of one product, one a round
    ratio: float | None  # the stock operator's time over this one's, median of rounds
    floor: float  # share of the bandwidth: time of reading the weights over the time taken

    @property
    def milliseconds(self) -> float:
        return median(self.seconds) * 1e3


def measure(
    inputs: int, outputs: int, tokens: Sequence[int], repeat: int, threads: int, library: Library
) -> tuple[list[Measured], float]:
    """Every operator at every number of tokens, and the bandwidth in bytes a second."""
    copies = -(-CACHE // min(op.weight_bytes(inputs, outputs) for op in OPERATORS))
    sessions = {op.name: Session(op, inputs, outputs, copies, threads, library) for op in OPERATORS}
    taken: dict[tuple[str, int], list[float]] = {(op.name, n): [] for op in OPERATORS for n in tokens}
    read = []
    for round_ in range(repeat + 1):
        speed = bandwidth(CACHE, threads)
        for n in tokens:
            for op in OPERATORS:
                seconds = sessions[op.name].seconds(n)
                if round_:  # the first round warms up
                    taken[op.name, n].append(seconds)
        if round_:
            read.append(speed)
    speed = median(read)
    found = []
    for op in OPERATORS:
        for n in tokens:
            mine, stock = taken[op.name, n], taken.get((op.against or "", n))
            ratio = median(b / a for a, b in zip(mine, stock, strict=True)) if stock else None
            floor = op.weight_bytes(inputs, outputs) / speed / median(mine)
            found.append(Measured(op.name, n, tuple(mine), ratio, floor))
    return found, speed


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "products", help="matrix products by operator and number of tokens", description=__doc__
    )
    add = parser.add_argument
    add("--shape", default="2048x5632", metavar="INxOUT", help="of the matrices (%(default)s)")
    add("--tokens", type=counts, default="1,2,4,8,16,32", metavar="N,...", help="(%(default)s)")
    add("--repeat", type=positive, default=9, help="rounds, the medians of which are shown (%(default)s)")
    add("--threads", type=positive, help="of ONNX Runtime (all cores)")
    add("--path", choices=("auto", *PATHS), default="auto", help="of the native operators (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all figures there as well")
    return parser


def run(options: argparse.Namespace) -> int:
    """Measures and prints. Raises ConfigurationError."""
    library = find()
    if library is None:
        raise ConfigurationError(f"native operators are not built: build them with `{BUILD_COMMAND}`")
    inputs, outputs = shape(options.shape)
    tokens = counts(options.tokens) if isinstance(options.tokens, str) else options.tokens
    threads, load = options.threads or machine.usable_cores(), OtherLoad()
    with library.forced(options.path):
        path = library.path
        found, speed = measure(inputs, outputs, tokens, options.repeat, threads, library)
    here = Machine.here()
    print(f"machine: {here.cpu}, {here.cores} cores, {threads} threads, others used {load.share():.0%}")
    print(f"native operators: {path}; reads {speed / 1e9:.1f} GB/s; {inputs}x{outputs}, ms a product\n")
    print("\n".join(table(rows(found, tokens))))
    if options.json is not None:
        figures = {
            "machine": asdict(here), "versions": versions(), "threads": threads, "path": path, "bandwidth": speed,
            "shape": [inputs, outputs], "products": [asdict(one) for one in found],
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return 0


def rows(found: Sequence[Measured], tokens: Sequence[int]) -> list[list[str]]:
    """Each operator's times; under a native one how many times faster than stock, and its share of the bandwidth."""
    lines = [["tokens", *map(str, tokens)]]
    for operator in OPERATORS:
        mine = [one for one in found if one.operator == operator.name]
        lines.append([operator.name, *(f"{one.milliseconds:.3f}" for one in mine)])
        if operator.native:
            lines.append(["times faster", *("" if one.ratio is None else f"{one.ratio:.2f}" for one in mine)])
        lines.append(["share of the bandwidth", *(f"{one.floor:.0%}" for one in mine)])
    return lines


def shape(text: str) -> tuple[int, int]:
    """Raises ConfigurationError."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ConfigurationError(f"--shape is {text!r}: it has to be inputs and outputs, as 2048x5632")
    return int(parts[0]), int(parts[1])
