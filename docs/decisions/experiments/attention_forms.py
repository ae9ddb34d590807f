"""One Scan a layer against two: rows of trees, with and without a prefill chunk beside them.

one   a single Scan over all rows; its body cuts each row's nodes out of the packed projection and pads the result
two   a Scan over the decode rows and one over the prefill rows, each over inputs padded to its own widest row; without
      a prefill the second runs one scratch row

Run:  .venv/bin/python -m docs.decisions.experiments.attention_forms
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
LAYERS, CAPACITY, RUNS = 4, 1024, 60
CHUNK = 64
node, value = helper.make_node, helper.make_tensor_value_info


class Graph:
    """LAYERS attention layers of one form, on random projections and caches."""

    def __init__(self, form: str, heads: int, kv_heads: int, dim: int) -> None:
        self.form, self.heads, self.kv_heads, self.dim = form, heads, kv_heads, dim
        self.width, self.cache = (heads + 2 * kv_heads) * dim, [1, kv_heads, CAPACITY, dim]
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        for name, numbers in (("zero", [0]), ("one", [1]), ("zeros", [0, 0]), ("axes", [2, 3])):
            tensor = helper.make_tensor(name, INT64, [len(numbers)], numbers)
            self.nodes.append(node("Constant", [], [name], value=tensor))
        self.inputs += [value(n, FLOAT, ["positions", dim // 2]) for n in ("cos", "sin")]
        groups = ("all",) if form == "one" else ("decode", "prefill")
        for g in groups:
            rows, k = f"{g}_rows", f"{g}_nodes"
            shape: list[int | str] = [1, f"{g}_tokens"] if form == "one" else [rows, 1, k]
            self.inputs += [value(f"{g}.qkv", FLOAT, [*shape, self.width]), value(f"{g}.position", INT64, shape)]
            self.inputs += [value(f"{g}.bias", FLOAT, [rows, 1, 1, k, k])]
            sizes = (("begin", [1]), ("end", [1]), ("square", [2]), ("left", [8]), ("right", [6]))
            self.inputs += [value(f"{g}.{n}", INT64, [rows, *s]) for n, s in sizes]
            self.inputs += [value(f"{g}.last", INT32, [rows, 1]), value(f"{g}.total", INT32, [rows])]
            for i in range(LAYERS):
                self._layer(g, i, rows, k)
        graph = helper.make_graph(self.nodes, form, self.inputs, self.outputs)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _layer(self, g: str, i: int, rows: str, k: str) -> None:
        inside = lambda n: f"{g}{i}/{n}"  # noqa: E731
        one = self.form == "one"
        qkv, position = (f"{g}.qkv", f"{g}.position") if one else (inside("qkv"), inside("position"))
        first, last = (inside("begin"), inside("end")) if one else ("zero", inside("count"))
        body = [
            node("Slice", [qkv, first, last, "one"], [inside("q")]),
            node("Slice", [position, first, last, "one"], [inside("p")]),
            node("Slice", [inside("bias"), "zeros", inside("square"), "axes"], [inside("tree")]),
            node("Pad", [inside("tree"), inside("left")], [inside("mask")]),
            node("GroupQueryAttention",
                 [inside("q"), "", "", inside("key"), inside("value"), inside("last"), inside("total"), "cos", "sin",
                  inside("p"), inside("mask")], [inside("y"), inside("new_key"), inside("new_value")],
                 domain="com.microsoft", num_heads=self.heads, kv_num_heads=self.kv_heads, do_rotary=1),
            node("Pad", [inside("y"), inside("right")], [inside("padded")]),
        ]  # fmt: skip
        scanned = ["key", "value", "bias", "begin", "end", "square", "left", "right", "last", "total"]
        kinds: dict[str, tuple[int, Sequence[int | str]]] = {
            "last": (INT32, [1]), "total": (INT32, []), "begin": (INT64, [1]), "end": (INT64, [1]),
            "square": (INT64, [2]), "left": (INT64, [8]), "right": (INT64, [6]), "bias": (FLOAT, [1, 1, k, k]),
            "key": (FLOAT, self.cache), "value": (FLOAT, self.cache), "qkv": (FLOAT, [1, k, self.width]),
            "position": (INT64, [1, k]),
        }  # fmt: skip
        if not one:
            body.insert(0, node("Sub", [inside("end"), inside("begin")], [inside("count")]))
            scanned += ["qkv", "position"]
        caches = [value(inside(n), FLOAT, self.cache) for n in ("new_key", "new_value")]
        graph = helper.make_graph(
            body, f"{g}{i}", [value(inside(n), *kinds[n]) for n in scanned],
            [value(inside("padded"), FLOAT, [1, k, self.heads * self.dim]), *caches],
        )  # fmt: skip
        own = [f"{g}.key{i}", f"{g}.value{i}", *(f"{g}.{n}" for n in scanned[2:])]
        results = [f"{g}.y{i}", f"{g}.new_key{i}", f"{g}.new_value{i}"]
        self.nodes.append(node("Scan", own, results, body=graph, num_scan_inputs=len(own)))
        self.inputs += [value(n, FLOAT, [rows, *self.cache]) for n in own[:2]]
        self.outputs += [value(results[0], FLOAT, None)] + [value(n, FLOAT, [rows, *self.cache]) for n in results[1:]]

    def bind(self, groups: dict[str, list[tuple[int, int]]]) -> Callable[[], None]:
        """`groups`: (past, nodes) of each row. Returns the run."""
        rng, binding, keep = np.random.default_rng(0), self.session.io_binding(), []
        angle = np.arange(CAPACITY + CHUNK)[:, None] / 10000 ** (np.arange(0, self.dim, 2) / self.dim)
        feeds: dict[str, np.ndarray] = {
            "cos": np.cos(angle).astype(np.float32),
            "sin": np.sin(angle).astype(np.float32),
        }
        for g, rows in groups.items():
            past, count = np.array(rows).T
            r, k, end = len(rows), int(count.max()), np.cumsum(count)
            shape = (1, int(count.sum())) if self.form == "one" else (r, 1, k)
            total = (past + count).astype(np.int32)
            left, right = np.zeros((r, 8), np.int64), np.zeros((r, 6), np.int64)
            left[:, 3], right[:, 4] = past, k - count
            feeds |= {
                f"{g}.qkv": rng.standard_normal((*shape, self.width), np.float32),
                f"{g}.position": np.resize(np.arange(k), shape), f"{g}.last": (total - 1)[:, None], f"{g}.total": total,
                f"{g}.bias": np.broadcast_to(np.where(np.tri(k) > 0, 0, -1e9), (r, 1, 1, k, k)).astype(np.float32),
                f"{g}.begin": (end - count)[:, None], f"{g}.end": end[:, None], f"{g}.left": left, f"{g}.right": right,
                f"{g}.square": np.stack([count, count], 1),
            }  # fmt: skip
            for i in range(LAYERS):
                for n in ("key", "value"):
                    a = rng.standard_normal((r, *self.cache), np.float32)
                    keep.append(a)
                    binding.bind_input(f"{g}.{n}{i}", "cpu", 0, np.float32, a.shape, a.ctypes.data)
                    binding.bind_output(f"{g}.new_{n}{i}", "cpu", 0, np.float32, a.shape, a.ctypes.data)
                binding.bind_output(f"{g}.y{i}")
        for name, array in feeds.items():
            array = np.ascontiguousarray(array)
            keep.append(array)
            binding.bind_cpu_input(name, array)

        def run() -> None:
            assert keep
            self.session.run_with_iobinding(binding)

        return run


def main() -> None:
    print(f"{LAYERS} layers, {RUNS} alternating runs; ms a layer: median [quartiles]")
    for name, shape in {"1.1B (32 heads, 4 kv, of 64)": (32, 4, 64), "demo (4 heads, 2 kv, of 64)": (4, 2, 64)}.items():
        one, two = Graph("one", *shape), Graph("two", *shape)
        for rows, nodes, chunk in ((1, 2, 0), (1, 16, 0), (8, 2, 0), (8, 8, 0), (8, 8, CHUNK), (8, 2, CHUNK)):
            decode = [(100 + 50 * i, nodes) for i in range(rows)]
            prefill = [(64, chunk)] if chunk else []
            forms = {
                "one": one.bind({"all": decode + prefill}),
                "two": two.bind({"decode": decode, "prefill": prefill or [(1, 1)]}),
            }
            times: dict[str, list[float]] = {form: [] for form in forms}
            for i in range(RUNS + 5):
                for form, run in forms.items():
                    began = time.perf_counter()
                    run()
                    if i >= 5:
                        times[form].append((time.perf_counter() - began) * 1e3 / LAYERS)
            cells = []
            for form, ms in times.items():
                low, middle, high = np.percentile(ms, [25, 50, 75])
                cells.append(f"{form} {middle:.3f} [{low:.3f}, {high:.3f}]")
            print(f"{name}, {rows} rows of {nodes}, chunk {chunk}: " + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()
