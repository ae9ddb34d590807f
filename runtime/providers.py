"""ONNX Runtime's execution providers: which one runs an artifact here, and with which options.

Options are data: what they are is checked without a GPU, and names nothing that onnxruntime-gpu 1.31 does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.buckets import node_bucket, row_bucket
from runtime.errors import ConfigurationError
from runtime.manifest import Manifest
from runtime.params import MAX_NODES

NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
GPU_PACKAGES = "pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]>=1.31'"
INSTALL = {
    "cpu": "pip install onnxruntime",
    "cuda": f"install onnxruntime-gpu in onnxruntime's place, with CUDA 13 and cuDNN 9 ({GPU_PACKAGES})",
    "tensorrt": f"install onnxruntime-gpu in onnxruntime's place ({GPU_PACKAGES}) and TensorRT 10 (pip install "
    "'tensorrt-cu13<11')",
}
TENSORRT_WORKSPACE = 8 << 30  # bytes that building an engine may take
ON_CUDA = ("Attention", "TensorScatter", "RotaryEmbedding")  # where TensorRT does not build the engine whole


@dataclass(frozen=True, slots=True)
class Device:
    """Where a provider keeps memory, how many tokens a run has for the price of its weights, and whether graphs are
    captured. That price is a guess that padding goes by, never a result."""

    name: str
    free: int
    captures: bool


DEVICES = {
    "cpu": Device("cpu", 4, captures=False),
    "cuda": Device("cuda", 128, captures=True),
    "tensorrt": Device("cuda", 128, captures=False),
}


def choose(asked: str, manifest: Manifest, available: Sequence[str]) -> str:
    """The provider that runs the artifact: `asked`, or for "auto" the best of those there are.

    `available` are ONNX Runtime's names. Raises ConfigurationError where the artifact or the machine cannot do it.
    """
    if manifest.form == "ragged":
        if asked not in ("auto", "cpu"):
            raise ConfigurationError(
                f"provider is {asked}: {manifest.name} has the ragged form, which runs on CPUs only: export it again"
                f" with --form padded"
            )
        return "cpu"
    here = [provider for provider in ("cuda", "cpu") if NAMES[provider] in available]
    chosen = here[0] if asked == "auto" and here else asked
    require(chosen if chosen in NAMES else "cpu", available)
    if chosen == "cpu" and manifest.precision == "bf16":
        raise ConfigurationError(
            f"{manifest.name} is in bf16, for which ONNX Runtime's CPU provider has no MatMul:"
            f" run it with --provider cuda ({INSTALL['cuda']}), or export it in fp16 or fp32"
        )
    if chosen == "tensorrt" and manifest.precision == "int4":
        raise ConfigurationError(
            f"{manifest.name} is in int4, whose product (MatMulNBits) TensorRT does not read: run it with"
            f" --provider cuda"
        )
    return chosen


def require(provider: str, available: Sequence[str]) -> None:
    """Raises ConfigurationError, with what to install, unless ONNX Runtime has the provider."""
    if NAMES[provider] not in available:
        raise ConfigurationError(
            f"provider is {provider}, and this ONNX Runtime has no {NAMES[provider]}: {INSTALL[provider]}"
        )


def cuda_options(manifest: Manifest, capture: bool) -> dict[str, str]:
    """Of CUDAExecutionProvider. float32 stays float32, and the arena takes no more than what is asked for."""
    return {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "enable_cuda_graph": "1" if capture else "0",
    }


def tensorrt_options(manifest: Manifest, rows: int, cache: Path, whole: bool) -> dict[str, str]:
    """Of TensorrtExecutionProvider: one profile for every shape there is; `cache` is a directory of its own.

    Unless `whole`, what CUDA can do in TensorRT's place is left to CUDA.
    """
    low, usual, high = (
        profile(manifest, *shape) for shape in ((1, 1), (row_bucket(rows, rows), 16), (rows, MAX_NODES))
    )
    return {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_max_workspace_size": str(TENSORRT_WORKSPACE),
        "trt_fp16_enable": "1" if manifest.values == "float16" else "0",
        "trt_bf16_enable": "1" if manifest.values == "bfloat16" else "0",
        "trt_detailed_build_log": "1",
        "trt_op_types_to_exclude": "" if whole else ",".join(ON_CUDA),
        "trt_profile_min_shapes": low,
        "trt_profile_opt_shapes": usual,
        "trt_profile_max_shapes": high,
    }


def profile(manifest: Manifest, rows: int, nodes: int) -> str:
    """The decoder's inputs in a run of so many rows and nodes, as TensorRT's options write shapes."""
    m, nodes = manifest, node_bucket(nodes)
    shapes: Mapping[str, tuple[int, ...]] = {
        "tokens": (rows, nodes), "depth": (rows, nodes), "length": (rows,), "count": (rows,),
        "ancestors": (rows, nodes, nodes), "wanted": (rows * nodes,),
    }  # fmt: skip
    cache = (rows, m.kv_heads, m.capacity, m.head_dim)
    every = {name: shapes.get(name, cache) for name in m.inputs}
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in every.items())
