"""One GroupQueryAttention over keys and values in float32, float16 and int8, where the operator takes them.

`python -m docs.decisions.experiments.cache_precision`: microseconds, median [quartiles], of alternating runs.
"""

import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HEADS, KV_HEADS, DIM, CAPACITY, RUNS = 32, 4, 64, 1152, 200  # TinyLlama-1.1B's shape
WIDTH = (HEADS + 2 * KV_HEADS) * DIM
FLOAT, FLOAT16, BFLOAT16, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8
DTYPES = {FLOAT: np.float32, FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16, INT8: np.int8}
FORMS = {
    "float32": (FLOAT, FLOAT), "float16 cache": (FLOAT, FLOAT16), "all float16": (FLOAT16, FLOAT16),
    "all bfloat16": (BFLOAT16, BFLOAT16), "int8 cache": (FLOAT, INT8),
}  # fmt: skip


def attention(form: str, nodes: int, past: int) -> Callable[[], None]:
    """Raises what ONNX Runtime raises where it refuses."""
    kind, cache = FORMS[form]
    value = helper.make_tensor_value_info
    shapes = {
        "qkv": (kind, [1, nodes, WIDTH]), "key": (cache, [1, KV_HEADS, CAPACITY, DIM]),
        "value": (cache, [1, KV_HEADS, CAPACITY, DIM]), "last": (TensorProto.INT32, [1]),
        "total": (TensorProto.INT32, []), "position": (TensorProto.INT64, [1, nodes]),
        "mask": (kind, [1, 1, nodes, past + nodes]),
    }  # fmt: skip
    angle = np.arange(CAPACITY)[:, None] / 10000 ** (np.arange(0, DIM, 2) / DIM)
    constants = [
        numpy_helper.from_array(table(angle).astype(DTYPES[kind]), name)
        for name, table in (("cos", np.cos), ("sin", np.sin))
    ]
    inputs = ["qkv", "", "", "key", "value", "last", "total", "cos", "sin", "position", "mask"]
    options: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1}
    if cache == INT8:
        scale = np.full((1, KV_HEADS, 1, DIM), 0.02, np.float32)
        constants += [numpy_helper.from_array(scale, name) for name in ("key_scale", "value_scale")]
        inputs += ["", "key_scale", "value_scale"]
        options |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    node = helper.make_node(
        "GroupQueryAttention", inputs, ["y", "new_key", "new_value"], domain="com.microsoft", **options
    )
    outputs = [value("y", kind, [1, nodes, HEADS * DIM])]
    outputs += [value(f"new_{name}", *shapes[name]) for name in ("key", "value")]
    graph = helper.make_graph([node], form, [value(n, *s) for n, s in shapes.items()], outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
    session = ort.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])
    rng, binding = np.random.default_rng(0), session.io_binding()
    feeds = {
        "qkv": rng.standard_normal((1, nodes, WIDTH)).astype(DTYPES[kind]),
        "last": np.array([past + nodes - 1], np.int32), "total": np.array(past + nodes, np.int32),
        "position": np.arange(past, past + nodes)[None], "mask": np.zeros(shapes["mask"][1], DTYPES[kind]),
    }  # fmt: skip
    caches = {name: np.zeros(shapes[name][1], DTYPES[cache]) for name in ("key", "value")}
    y = np.empty((1, nodes, HEADS * DIM), DTYPES[kind])
    for name, array in (feeds | caches).items():
        binding.bind_input(name, "cpu", 0, shapes[name][0], array.shape, array.ctypes.data)
    for name, array in {"y": y, "new_key": caches["key"], "new_value": caches["value"]}.items():
        element = kind if name == "y" else cache
        binding.bind_output(name, "cpu", 0, element, array.shape, array.ctypes.data)

    def run() -> None:
        assert feeds and caches and y.size
        session.run_with_iobinding(binding)

    run()
    return run


def main() -> None:
    for past in (128, 1024):
        for nodes in (2, 8, 64):
            times: dict[str, list[float]] = {}
            runs, refused = {}, {}
            for form in FORMS:
                try:
                    runs[form] = attention(form, nodes, past)
                except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
                    refused[form] = str(error).split("\n")[0]
            for _ in range(RUNS):
                for form, run in runs.items():
                    began = time.perf_counter()
                    run()
                    times.setdefault(form, []).append((time.perf_counter() - began) * 1e6)
            for form, series in times.items():
                low, median, high = np.percentile(series, [25, 50, 75])
                print(f"past {past}, {nodes} nodes, {form}: {median:.0f} [{low:.0f}, {high:.0f}]", flush=True)
    for form, reason in refused.items():
        print(f"{form}: refused: {reason}")


if __name__ == "__main__":
    main()
