"""The padded form's graphs, looked at: what CUDA, a captured graph and TensorRT ask of them. No GPU is needed.

KERNELS are those that onnxruntime-gpu 1.31.1's CUDA library has for each type between products.
"""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from export.artifact import Source, export
from export.emitter import BFLOAT16, FLOAT, FLOAT16
from runtime.manifest import FORMS, MOVES
from tests.checkpoints import medusa_heads, tiny_llama

VALUES = {"fp32": FLOAT, "fp16": FLOAT16, "bf16": BFLOAT16, "int4": FLOAT16}
KERNELS = {
    "Add", "And", "Attention", "Cast", "CumSum", "Equal", "Gather", "GreaterOrEqual", "Less", "LogSoftmax", "MatMul",
    "MatMulNBits", "Mul", "Or", "RMSNormalization", "Reshape", "RotaryEmbedding", "Sigmoid", "Split", "Squeeze",
    "TensorScatter", "TopK", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
# Inputs that CUDA's kernels read on the host, by position: they have to be constants of the graph.
ON_THE_HOST = {"Reshape": [1], "Split": [1], "TopK": [1], "CumSum": [1], "Squeeze": [1], "Unsqueeze": [1]}


@pytest.fixture(scope="module", params=FORMS["padded"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny_llama(folder / "base", attention_bias=True)
    source = Source(base, medusa_heads(folder / "heads", layers=2), request.param, "padded", self_test=False)
    export(source, folder / "tiny", lambda message: None)
    return request.param, folder / "tiny"


@pytest.mark.parametrize("name", ["decoder.onnx", "heads.onnx", *MOVES])
def test_types_and_shapes_agree(artifact: tuple[str, Path], name: str) -> None:
    onnx.checker.check_model(artifact[1] / name, full_check=True)


def decoder(artifact: tuple[str, Path]) -> onnx.GraphProto:
    model = onnx.load(artifact[1] / "decoder.onnx", load_external_data=False)
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 24), ("com.microsoft", 1)}
    return model.graph


def test_no_node_of_the_decoder_needs_the_host(artifact: tuple[str, Path]) -> None:
    """Nor values of the step: a captured graph, and CUDA without a node on the CPU, allow neither."""
    graph = decoder(artifact)
    constant = {weight.name for weight in graph.initializer}
    assert {node.op_type for node in graph.node} <= KERNELS
    for node in graph.node:
        for at in ON_THE_HOST.get(node.op_type, []):
            taken = set(node.input[at : at + 1])  # a Split in equal parts has none
            assert taken <= constant, f"{node.op_type} {node.output[0]} takes {taken} from the step"


def test_tensorrt_reads_every_operator_but_an_int4_product(artifact: tuple[str, Path]) -> None:
    others = {node.op_type for node in decoder(artifact).node if node.domain}
    assert others == ({"MatMulNBits"} if artifact[0] == "int4" else set())


def test_keys_and_values_are_written_once_and_in_place(artifact: tuple[str, Path]) -> None:
    """A second reader that writes would copy the cache; TensorRT wants it from a network input to a network output."""
    graph = decoder(artifact)
    for i in range(2):
        for part in ("key", "value"):
            [node] = [node for node in graph.node if f"{part}_{i}" in node.input]
            assert node.op_type == "TensorScatter" and node.input[0] == f"{part}_{i}" and node.input[2] == "length"
            assert list(node.output) == [f"new_{part}_{i}"] and node.attribute[0].i == 2
            assert [value.name for value in graph.output].count(f"new_{part}_{i}") == 1
            for value in (*graph.input, *graph.output):
                if value.name in (f"{part}_{i}", f"new_{part}_{i}"):
                    dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
                    assert dims == ["rows", 2, 192, 16], "TensorRT: a static number of slots; CUDA: a multiple of 4"
                    assert value.type.tensor_type.elem_type == VALUES[artifact[0]]


def test_attention_is_what_both_providers_take(artifact: tuple[str, Path]) -> None:
    graph = decoder(artifact)
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert len(attentions) == 2
    for i, node in enumerate(attentions):
        assert len(node.output) == 1, "TensorRT takes no other"
        assert list(node.input[1:3]) == [f"new_key_{i}", f"new_value_{i}"] and list(node.input[4:6]) == ["", ""]
        assert not node.attribute, "neither causal nor capped: the bias says it all"
    assert len({node.input[3] for node in attentions}) == 1, "one bias for all layers"
    assert len({node.input[6] for node in attentions}) == 1


def test_only_ids_and_their_logits_need_to_leave(artifact: tuple[str, Path]) -> None:
    kinds = {value.name: value.type.tensor_type.elem_type for value in decoder(artifact).output}
    assert kinds["argmax"] == TensorProto.INT64 and kinds["peak"] == kinds["logits"] == TensorProto.FLOAT
    assert kinds["hidden"] == VALUES[artifact[0]]
