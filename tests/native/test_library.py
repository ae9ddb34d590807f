"""The library against the installed ONNX Runtime, against one that is too old, and where it cannot be built."""

import ctypes
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.emitter import FUNCTION_OPSETS, GORGON, IR_VERSIONS, OPSET
from export.linear import MATMUL_INT4
from export.quantize import int4
from runtime.errors import ConfigurationError
from runtime.native import library as native
from runtime.native.library import PATHS, Library

API_VERSION = 17
INPUTS, OUTPUTS, BLOCK = 96, 24, 32


def model(function: bool) -> bytes:
    packed, scale = int4(np.random.default_rng(0).standard_normal((OUTPUTS, INPUTS), np.float32), BLOCK)
    node = helper.make_node("MatMulInt4", ["x", "w", "s"], ["y"], domain=GORGON, K=INPUTS, N=OUTPUTS, block_size=BLOCK)
    graph = helper.make_graph(
        [node], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", OUTPUTS])],
        [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scale, "s")],
    )  # fmt: skip
    made = helper.make_model(
        graph, ir_version=IR_VERSIONS[OPSET], opset_imports=[*FUNCTION_OPSETS, helper.make_opsetid(GORGON, 1)]
    )
    if function:
        made.functions.append(MATMUL_INT4)
    return bytes(made.SerializeToString())


def runs(graph: bytes, library: Library | None, optimized: Path) -> tuple[np.ndarray, list[str]]:
    """y, and the operators that computed it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimized)
    if library is not None:
        options.register_custom_ops_library(str(library.file))
    x = np.random.default_rng(1).standard_normal((5, INPUTS), np.float32)
    [y] = ort.InferenceSession(graph, options).run(None, {"x": x})
    return y, [node.op_type for node in onnx.load(optimized).graph.node]


def test_a_registered_operator_goes_before_the_function_of_its_name(library: Library, tmp_path: Path) -> None:
    """An artifact has one graph for both: docs/decisions/0010-native-operators.md rests on this."""
    native_y, native_operators = runs(model(function=True), library, tmp_path / "native.onnx")
    stock_y, stock_operators = runs(model(function=True), None, tmp_path / "stock.onnx")
    assert (native_operators, stock_operators) == (["MatMulInt4"], ["MatMulNBits"])
    np.testing.assert_allclose(native_y, stock_y, atol=1e-4)


def test_without_library_and_without_function_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="MatMulInt4"):
        runs(model(function=False), None, tmp_path / "none.onnx")


class ApiBase(ctypes.Structure):
    _fields_ = [
        ("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("version", ctypes.CFUNCTYPE(ctypes.c_void_p)),
    ]


@pytest.fixture(scope="module")
def base() -> ApiBase:
    """The installed ONNX Runtime's."""
    [file] = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    runtime = ctypes.CDLL(str(file))
    runtime.OrtGetApiBase.restype = ctypes.POINTER(ApiBase)
    return ApiBase.from_buffer_copy(runtime.OrtGetApiBase().contents)


def test_the_installed_version_has_the_api(base: ApiBase) -> None:
    assert ctypes.string_at(base.version()).decode() == ort.__version__
    assert base.get_api(API_VERSION)


def test_too_old_a_version_is_refused_with_both_versions(library: Library, base: ApiBase) -> None:
    old = ApiBase()
    old.get_api = type(old.get_api)(lambda version: 0 if version >= API_VERSION else base.get_api(version))
    text = ctypes.create_string_buffer(b"1.14.2")
    old.version = type(old.version)(lambda: ctypes.addressof(text))
    register = library.functions.RegisterCustomOps
    register.restype = ctypes.c_void_p
    status = register(None, ctypes.byref(old))
    table = ctypes.cast(base.get_api(1), ctypes.POINTER(ctypes.c_void_p))
    message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(table[2])(status).decode()
    assert "1.14.2" in message and f"1.{API_VERSION} or later" in message


def test_a_path_is_forced_by_name(library: Library) -> None:
    fastest = library.path
    assert fastest == [path for path in PATHS if library.has(path)][-1]
    with library.forced("portable"):
        assert library.path == "portable"
    assert library.path == fastest
    with pytest.raises(ConfigurationError, match=f"no path sse: here it is one of auto, portable.*{fastest}"):
        library.force("sse")
    for path in PATHS:
        if not library.has(path):
            with pytest.raises(ConfigurationError, match=f"no {path}"):
                library.force(path)


def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"^native operators are not built, there is no C\+\+ compiler.*$"):
        native.build()


def test_a_failed_build_says_where(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.18)\nproject(x CXX)\nnonsense()\n")
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    monkeypatch.setattr(native, "BUILDS", tmp_path / "builds")
    with pytest.raises(ConfigurationError, match="not built, .*cmake.* failed: .*CMakeLists.txt:3"):
        native.build()
    assert native.find() is None
    assert not list((tmp_path / "builds").iterdir()), "no half-built directory stays"


def test_what_was_built_is_found_again(library: Library) -> None:
    found = native.find()
    assert found is not None and found.path == library.path
    assert native.build() == library.file
