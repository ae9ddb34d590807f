"""What a step cannot be faster than: reading the weights once, and multiplying each token by them.

The weights are those that the decoder's products read. The bandwidth is that of reading as many bytes with as many
threads, so that weights which fit a cache are read from it; the throughput is that of one large product with ONNX
Runtime's operator for this precision.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# Their attributes K and N say how many weights they have.
SIZED = ("MatMulNBits", "MatMulInt4", "NormMatMulInt4", "NormGatedInt4")
PRODUCTS = ("MatMul", "MatMulIntegerToFloat", "MatMulInt8", "NormMatMulInt8", "NormGatedInt8", *SIZED)
TOKENS, INPUT, OUTPUT = 256, 2048, 4096  # of the large product
BLOCK = 32  # of its int4 weights
REPEATS = 7
MOST = 1 << 30  # bytes to read at most: beyond any cache
LEAST = 1 << 26  # bytes a thread reads at a time, all its share over and over


@dataclass(frozen=True, slots=True)
class Roofline:
    weight_bytes: int
    parameters: int
    bandwidth: float  # bytes a second
    throughput: float  # multiplications and additions a second

    @property
    def floor(self) -> float:
        """Seconds of reading the weights once."""
        return self.weight_bytes / self.bandwidth

    @property
    def token(self) -> float:
        """Seconds of a token's products."""
        return 2 * self.parameters / self.throughput

    @classmethod
    def measure(cls, artifact: Path, precision: str, threads: int) -> "Roofline":
        size, parameters = weights(artifact / "decoder.onnx")
        return cls(size, parameters, bandwidth(min(size, MOST), threads), throughput(precision, threads))


def weights(decoder: Path) -> tuple[int, int]:
    """Bytes and number of the weights that the graph's products read; embeddings are looked up, not read."""
    graph = onnx.load(decoder, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    size = parameters = 0
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        read = [tensors[name] for name in node.input if name in tensors]
        size += sum(_bytes(tensor) for tensor in read)
        width = {a.name: a.i for a in node.attribute}
        matrix = max(read, key=_bytes)
        parameters += width["K"] * width["N"] if node.op_type in SIZED else int(np.prod(matrix.dims))
    return size, parameters


def bandwidth(size: int, threads: int) -> float:
    """Bytes a second that `threads` threads read of `size` bytes together, over and over."""
    parts = np.array_split(np.zeros(max(size // 8, threads), np.int64), threads)
    for part in parts:
        part[:] = 1  # memory of its own, not the page of zeros
    times = max(1, LEAST // parts[0].nbytes)

    def read(part: np.ndarray) -> None:
        for _ in range(times):
            np.bitwise_or.reduce(part)

    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(read, parts)))
    return sum(part.nbytes for part in parts) * times / seconds


def throughput(precision: str, threads: int) -> float:
    """Multiplications and additions a second in a large product."""
    rng = np.random.default_rng(0)
    nodes, initializers = _product(precision, rng)
    value = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", width])  # noqa: E731
    graph = helper.make_graph(
        nodes, precision, [value("x", INPUT)], [value("y", OUTPUT)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = rng.standard_normal((TOKENS, INPUT), np.float32)
    return 2 * TOKENS * INPUT * OUTPUT / _best(lambda: session.run(None, {"x": x}))


def _product(precision: str, rng: np.random.Generator) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """One product as the export writes it: the same operators, random weights."""
    node = helper.make_node
    if precision == "fp32":
        return [node("MatMul", ["x", "w"], ["y"])], {"w": rng.standard_normal((INPUT, OUTPUT), np.float32)}
    if precision == "int4":
        blocks = INPUT // BLOCK
        packed = rng.integers(0, 256, (OUTPUT, blocks, BLOCK // 2), np.uint8)
        product = node("MatMulNBits", ["x", "w", "scale"], ["y"], domain="com.microsoft", K=INPUT, N=OUTPUT, bits=4,
                       block_size=BLOCK, accuracy_level=4)  # fmt: skip
        return [product], {"w": packed, "scale": np.full((OUTPUT, blocks), 0.01, np.float32)}
    nodes = [
        node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        node("MatMulIntegerToFloat", ["q", "w", "one", "scale", "zero"], ["y"], domain="com.microsoft"),
    ]
    return nodes, {
        "one": np.array(0.03, np.float32),
        "zero": np.array(128, np.uint8),
        "w": rng.integers(-127, 128, (INPUT, OUTPUT), np.int8),
        "scale": np.full(OUTPUT, 0.01, np.float32),
    }


def _best(run: Callable[[], object]) -> float:
    """Seconds of the quickest of some runs: a roof is what is possible."""
    return min(_times(run))


def _times(run: Callable[[], object]) -> Iterator[float]:
    run()
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        yield time.perf_counter() - began


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
