"""A graph opened with the library, and what ONNX Runtime made of it."""

from pathlib import Path

import onnx
import onnxruntime as ort

from runtime.native.library import Library


def opened(file: Path, library: Library | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    options.optimized_model_filepath = str(file.with_suffix(".optimized"))
    if library is not None:
        options.register_custom_ops_library(str(library.file))
    return ort.InferenceSession(str(file), options)


def operators(file: Path) -> list[str]:
    """Those that the session opened last has."""
    return [node.op_type for node in onnx.load(file.with_suffix(".optimized"), load_external_data=False).graph.node]
