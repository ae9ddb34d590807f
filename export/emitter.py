"""Writes an ONNX graph node by node, its weights streamed to one external data file.

The emitter knows operators and files, nothing of models. Values are named by what made them, so that a graph reads
well in a viewer and two builds of one model are byte-identical.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.manifest import NATIVE_OPERATORS

MICROSOFT = "com.microsoft"
IR_VERSIONS = {21: 10, 24: 12}  # the first that has each opset used
GORGON = "gorgon"  # the domain of our own operators, see `call`
OPSET = 21  # of functions, and so of graphs that call them
FUNCTION_OPSETS = (helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1))
INLINE_BYTES = 1024  # smaller tensors stay in the graph file
ALIGN = 4096  # so that weights can be mapped into memory

BFLOAT16, FLOAT16, FLOAT, DOUBLE, INT64, INT32, BOOL, UINT8 = (
    TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64,
    TensorProto.INT32, TensorProto.BOOL, TensorProto.UINT8,
)  # fmt: skip
Shape = Sequence[int | str | None]


class Emitter:
    """One graph. Used as a context manager: leaving it closes the data file, `save` writes the graph beside it."""

    def __init__(self, path: Path, opset: int) -> None:
        self._path, self._opset = path, opset
        self._data = path.with_name(path.name + ".data").open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names: dict[str, int] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._functions: dict[str, onnx.FunctionProto] = {}
        self.scope = ""  # prefixed to the names made from here on

    def __enter__(self) -> "Emitter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()
        data = Path(self._data.name)
        if data.stat().st_size == 0:  # a graph without weights
            data.unlink()

    @staticmethod
    def dtype(kind: int) -> Any:
        """numpy's type for one of ONNX's."""
        return helper.tensor_dtype_to_np_dtype(kind)

    def input(self, name: str, kind: int, shape: Shape) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Shape) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def node(self, op: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        """Adds an operator with one output and returns that output's name: `name`, or one made from the operator's."""
        return self.nodes(op, *inputs, names=(name,), domain=domain, **attributes)[0]

    def nodes(self, op: str, *inputs: str, names: Sequence[str], domain: str = "", **attributes: Any) -> list[str]:
        """As `node`, with one output for each of `names`; "" makes a name, "-" leaves an optional output out."""
        outputs = ["" if name == "-" else name or self._fresh(op) for name in names]
        self._nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs

    def call(self, function: onnx.FunctionProto, *inputs: str, name: str = "", **attributes: Any) -> str:
        """An operator of our own, as `node`; `function` says it in stock operators, which run without the library."""
        return self.calls(function, *inputs, names=(name,), **attributes)[0]

    def calls(self, function: onnx.FunctionProto, *inputs: str, names: Sequence[str], **attributes: Any) -> list[str]:
        """As `call`, with one output for each of `names`; "" makes a name."""
        known = self._functions.setdefault(function.name, function)
        assert known is function, f"two functions are called {function.name}"
        return self.nodes(function.name, *inputs, names=names, domain=GORGON, **attributes)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant inside the graph file; equal ones are shared."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._constants[key] = name
            self._weights.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def weight(self, name: str, array: np.ndarray) -> str:
        """A tensor of the model, written out at once."""
        array = np.ascontiguousarray(array)
        if array.nbytes <= INLINE_BYTES:
            self._weights.append(numpy_helper.from_array(array, name))
            return name
        self._data.write(b"\0" * (-self._data.tell() % ALIGN))
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": Path(self._data.name).name, "offset": self._data.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(array.view(np.uint8).data)
        self._weights.append(tensor)
        return name

    def save(self, graph_name: str) -> None:
        """Writes the graph; its external data is on disk once the emitter is left."""
        graph = helper.make_graph(self._nodes, graph_name, self._inputs, self._outputs, self._weights)
        model = helper.make_model(
            graph,
            ir_version=IR_VERSIONS[self._opset],
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self._domains().items()],
            producer_name="gorgon",
            functions=list(self._functions.values()),
        )
        if self._functions:
            helper.set_model_props(model, {NATIVE_OPERATORS: ",".join(sorted(self._functions))})
        self._path.write_bytes(model.SerializeToString(deterministic=True))

    def _domains(self) -> dict[str, int]:
        return {"": self._opset, MICROSOFT: 1} | ({GORGON: 1} if self._functions else {})

    def _fresh(self, op: str) -> str:
        stem = f"{self.scope}{op.lower()}"
        number = self._names[stem] = self._names.get(stem, 0) + 1
        return stem if number == 1 else f"{stem}_{number}"
