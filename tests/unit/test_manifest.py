"""Artifacts that are missing, damaged, of another version, or not what their manifest says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from export.artifact import Source, export
from runtime.engine import Engine
from runtime.errors import ArtifactError, ConfigurationError
from runtime.manifest import STEP_INPUTS, STEP_OUTPUTS, Manifest, capacity_of
from runtime.params import EngineConfig
from tests.checkpoints import medusa_heads, tiny_llama
from tests.fake import fake_cost


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    source = Source(tiny_llama(folder / "model"), medusa_heads(folder / "heads"), "fp32")
    export(source, folder / "tiny", lambda message: None)
    return folder / "tiny"


@pytest.fixture
def artifact(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "tiny")
    return tmp_path / "tiny"


def change(artifact: Path, **values: Any) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text()) | values
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def load(artifact: Path, **config: Any) -> Engine:
    return Engine.from_artifact(artifact, EngineConfig(**({"rows": 1, "kv_memory": 1 << 24} | config)), fake_cost())


def test_a_whole_artifact_loads(artifact: Path) -> None:
    assert load(artifact, verify=True).manifest == Manifest.read(artifact)


def names_of(layers: int) -> dict[str, list[str]]:
    cache = [f"{part}_{i}" for i in range(layers) for part in ("key", "value")]
    return {"inputs": [*STEP_INPUTS, *cache], "outputs": [*STEP_OUTPUTS["ragged"], *(f"new_{name}" for name in cache)]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schema": 1}, "schema 1, this version reads 2"),
        ({"form": "packed"}, "form is 'packed'"),
        ({"form": ["padded"]}, "form is "),
        ({"form": "padded"}, "outputs has 7 names, 2 layers make it 8"),
        ({"form": "padded", "precision": "int8"}, "precision is 'int8', not one of fp32, fp16, bf16, int4"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"layers": 0}, "layers is 0"),
        ({"vocab": "300"}, "vocab is '300'"),
        ({"capacity": 128}, "capacity 128 is below context 128 [+] 64 nodes"),
        ({"eos": [300]}, r"eos is \[300\]"),
        ({"context": 64, "capacity": capacity_of(64)}, r"decoder.onnx: (new_)?key_0 is .* the manifest makes it"),
        ({"layers": 3} | names_of(3), r"decoder.onnx: .* is None, the manifest makes it"),
        ({"layers": 1} | names_of(1), r"decoder.onnx: .* the manifest makes it None"),
        ({"layers": 3}, "inputs has 10 names, 3 layers make it 12"),
        ({"layers": 10**12}, "inputs has 10 names"),
        ({"layers": 1, "inputs": names_of(1)["inputs"]}, "outputs has 7 names, 1 layers make it 5"),
        ({"inputs": "tokens"}, "inputs is 'tokens', not a list of strings"),
        ({"outputs": [0]}, r"outputs is \[0\], not a list of strings"),
        ({"inputs": [*names_of(2)["inputs"][:-1], "value_7"]}, "inputs lacks value_1"),
        ({"inputs": [*names_of(2)["inputs"][:-1], "tokens"]}, "inputs lacks value_1"),
        ({"outputs": ["logit", *names_of(2)["outputs"][1:]]}, "outputs lacks logits"),
        ({"vocab": 299}, r"decoder.onnx: logits is .*300"),
        ({"draft_top_k": 9}, r"heads.onnx: (tokens|logprobs) is"),
        ({"medusa_heads": 2}, r"heads.onnx: (tokens|logprobs) is"),
        ({"colour": "red"}, "unknown colour"),
        ({"head_accuracy": [[0.5]]}, "head_accuracy"),
        ({"eos": 2}, "eos"),
        ({"files": []}, "files"),
        ({"files": {}}, "files lacks decoder.onnx"),
    ],
)
def test_a_manifest_that_does_not_fit(artifact: Path, values: dict[str, Any], words: str) -> None:
    change(artifact, **values)
    with pytest.raises(ArtifactError, match=words):
        load(artifact)


def test_a_ragged_graph_is_no_padded_one(artifact: Path) -> None:
    names = json.loads((artifact / "manifest.json").read_text())
    names["outputs"].append("peak")
    change(artifact, form="padded", outputs=names["outputs"])
    with pytest.raises(ArtifactError, match="files lacks commit.onnx"):
        load(artifact)


FILES = ("decoder.onnx", "decoder.onnx.data", "heads.onnx", "heads.onnx.data", "tokenizer.json")


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_to_be_in_the_manifest(artifact: Path, name: str) -> None:
    files = dict(Manifest.read(artifact).files)
    assert tuple(sorted(files)) == FILES
    del files[name]
    change(artifact, files=files)
    with pytest.raises(ArtifactError, match=f"files lacks {name}"):
        load(artifact)


def test_without_heads_their_files_are_not_asked_for(artifact: Path) -> None:
    change(artifact, medusa_heads=0, files={n: f for n, f in Manifest.read(artifact).files.items() if "heads" not in n})
    assert load(artifact).manifest.medusa_heads == 0


def test_the_names_are_those_of_the_graph_in_its_order(artifact: Path) -> None:
    graph = onnx.load(artifact / "decoder.onnx", load_external_data=False).graph
    manifest = Manifest.read(artifact)
    assert manifest.inputs == tuple(value.name for value in graph.input)
    assert manifest.outputs == tuple(value.name for value in graph.output)


def remove_field(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    del manifest["vocab"]
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def flip_byte(artifact: Path) -> None:
    data = bytearray((artifact / "decoder.onnx.data").read_bytes())
    data[-1] ^= 1
    (artifact / "decoder.onnx.data").write_bytes(data)


def cut(name: str) -> Callable[[Path], None]:
    return lambda artifact: (artifact / name).write_bytes((artifact / name).read_bytes()[:-1]) and None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_field, "lacks vocab"),
        (cut("decoder.onnx.data"), r"decoder.onnx.data has \d+ bytes, the manifest says"),
        (cut("tokenizer.json"), r"tokenizer.json has \d+ bytes"),
        (lambda artifact: (artifact / "heads.onnx").unlink(), "heads.onnx is missing"),
        (lambda artifact: (artifact / "manifest.json").unlink(), "has no manifest.json"),
        (lambda artifact: (artifact / "manifest.json").write_text("{"), "is not JSON"),
        (lambda artifact: (artifact / "manifest.json").write_bytes(b"\xff"), "is not JSON"),
        (lambda artifact: (artifact / "manifest.json").write_text("[]"), "not an object"),
        (flip_byte, "decoder.onnx.data has SHA-256"),
    ],
)
def test_damaged_files(artifact: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(artifact)
    with pytest.raises(ArtifactError, match=words):
        load(artifact, verify=True)


def test_hashes_are_checked_only_when_asked(artifact: Path) -> None:
    flip_byte(artifact)
    assert load(artifact).manifest.name == "tiny"


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="python -m export"):
        load(tmp_path / "nothing")


def test_a_graph_that_is_no_graph(artifact: Path) -> None:
    size = (artifact / "decoder.onnx").stat().st_size
    (artifact / "decoder.onnx").write_bytes(b"\0" * size)
    with pytest.raises(ArtifactError, match="decoder.onnx does not load"):
        load(artifact)


def test_a_context_beyond_the_exported_one(artifact: Path) -> None:
    with pytest.raises(ConfigurationError, match="context is 129: tiny was exported for 128"):
        load(artifact, context=129)


def test_more_rows_than_the_address_space_holds(artifact: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"rows x 192 tokens x 512 bytes = \d+ bytes of keys and values"):
        load(artifact, rows=10**12)


def test_a_loaded_engine_leaves_the_cores_to_its_session(artifact: Path) -> None:
    """docs/decisions/0003-threads.md: threads of numpy's BLAS spin where the session's want to run."""
    threadpool_limits(2, user_api="blas")
    load(artifact)
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert pools and set(pools) == {1}
