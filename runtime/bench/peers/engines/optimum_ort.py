"""optimum's ORTModelForCausalLM: its own export, and transformers' `generate`; int8 is its dynamic quantization."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForCausalLM, ORTQuantizer

from .pytorch import generate

EXPORT = """import sys
from optimum.onnxruntime import ORTModelForCausalLM
ORTModelForCausalLM.from_pretrained(sys.argv[1], export=True).save_pretrained(sys.argv[2])
"""
Step = Callable[[list[list[int]]], None]


class Engine:
    def prepare(self, checkpoint: str, out: str, precision: str) -> None:
        # in a process of its own: its exporter keeps the model in memory several times over
        subprocess.run([sys.executable, "-c", EXPORT, checkpoint, out], check=True)
        if precision == "int8":
            config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
            ORTQuantizer.from_pretrained(out, file_name="model.onnx").quantize(
                config, out, use_external_data_format=True
            )
            for left in Path(out).glob("model.onnx*"):
                left.unlink()

    def load(
        self, checkpoint: str, prepared: str, precision: str, threads: int, rows: int, length: int, simulated: bool
    ) -> dict[str, Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = "model_quantized.onnx" if precision == "int8" else "model.onnx"
        self.model: Any = ORTModelForCausalLM.from_pretrained(prepared, file_name=file, session_options=options)
        names = ("optimum-onnx", "optimum", "transformers", "onnxruntime")
        return {"versions": {name: importlib.metadata.version(name) for name in names}}

    def run(self, prompts: list[list[int]], new_tokens: int, ignore_eos: bool, speculation: str, step: Step) -> None:
        generate(self.model, prompts, new_tokens, ignore_eos, step)
