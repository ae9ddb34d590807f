"""Export as a whole: what an artifact holds, that it repeats byte for byte, and that a wrong one is not kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export import artifact
from export.artifact import Source
from export.checkpoint import expected_shapes
from export.config import ModelConfig
from export.decoder import build_decoder
from export.draft_heads import build_heads
from export.heads import MedusaHeads
from runtime.engine import Engine
from runtime.errors import ArtifactError, ConfigurationError, SelfTestError, TensorError
from runtime.manifest import FORMS, MOVES, Manifest
from runtime.params import EngineConfig
from tests.checkpoints import CHAT_TEMPLATE, medusa_heads, tiny_llama
from tests.fake import fake_cost

Tensor = Callable[[str], np.ndarray]
RAGGED = [("ragged", precision) for precision in FORMS["ragged"]]
PADDED = [("padded", precision) for precision in FORMS["padded"] if precision != "bf16"]  # which no CPU runs


def silent(what: str) -> None:
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    return Source(tiny_llama(folder / "base"), medusa_heads(folder / "heads"), "fp32")


@pytest.mark.parametrize(("form", "precision"), RAGGED + PADDED)
@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_an_export_repeats_byte_for_byte(
    tmp_path: Path, source: Source, form: str, precision: str, layout: str
) -> None:
    source = replace(source, form=form, precision=precision, heads=medusa_heads(tmp_path / "heads", layout))
    files = []
    for folder in ("one", "two"):
        artifact.export(source, tmp_path / folder / "tiny", silent)
        files.append({path.name: path.read_bytes() for path in (tmp_path / folder / "tiny").iterdir()})
    assert files[0] == files[1]
    names = ["decoder.onnx", "decoder.onnx.data", "heads.onnx", "heads.onnx.data", "manifest.json", "tokenizer.json"]
    assert sorted(files[0]) == sorted([*names, *(MOVES if form == "padded" else ())])


def test_the_manifest(tmp_path: Path, source: Source) -> None:
    written, report = artifact.export(source, tmp_path / "tiny", silent)
    assert report.decoder < 1e-5 and report.heads is not None and report.heads < 1e-5
    manifest = Manifest.read(tmp_path / "tiny", verify=True)
    assert manifest == written
    assert (manifest.name, manifest.precision, manifest.medusa_heads, manifest.draft_top_k) == ("tiny", "fp32", 3, 10)
    assert (manifest.layers, manifest.hidden, manifest.heads, manifest.kv_heads, manifest.head_dim) == (2, 64, 4, 2, 16)
    assert (manifest.vocab, manifest.context, manifest.capacity) == (300, 128, 192)
    assert (manifest.bos, manifest.eos, manifest.chat_template) == (1, (2,), CHAT_TEMPLATE)
    assert manifest.special == {"bos_token": "<s>", "eos_token": "</s>"}
    assert manifest.head_accuracy is None
    assert (tmp_path / "tiny" / "tokenizer.json").read_bytes() == (source.checkpoint / "tokenizer.json").read_bytes()


def test_without_heads_and_with_a_smaller_context(tmp_path: Path, source: Source) -> None:
    manifest, report = artifact.export(replace(source, heads=None, context=32), tmp_path / "tiny", silent)
    assert (manifest.medusa_heads, manifest.context, manifest.capacity, report.heads) == (0, 32, 96, None)
    assert not (tmp_path / "tiny" / "heads.onnx").exists()


@pytest.mark.parametrize(("form", "precision"), RAGGED + PADDED)
def test_odd_widths_and_every_option_at_once(tmp_path: Path, form: str, precision: str) -> None:
    """Widths that are no multiple of a block, tied embeddings, biases, shards, bfloat16, one key head."""
    base = tiny_llama(
        tmp_path / "base", vocab_size=263, intermediate_size=100, hidden_size=48, num_attention_heads=3,
        num_key_value_heads=1, head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        dtype="bfloat16", shards=3,
    )  # fmt: skip
    heads = medusa_heads(tmp_path / "heads", "vllm-shared", layers=2, hidden=48, vocab=263)
    artifact.export(Source(base, heads, precision, form), tmp_path / "tiny", silent)


@pytest.mark.parametrize(
    ("form", "precision", "right"),
    [("ragged", "fp16", "fp32, int8, int8-block32, int4"), ("padded", "int8", "fp32, fp16, bf16, int4")],
)
def test_a_precision_that_the_form_has_not(
    tmp_path: Path, source: Source, form: str, precision: str, right: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"precision {precision} is none of the {form} form: it has {right}"):
        artifact.export(replace(source, form=form, precision=precision), tmp_path / "tiny", silent)


def test_what_no_cpu_runs_is_kept_only_unchecked(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    bf16 = replace(source, form="padded", precision="bf16")
    with pytest.raises(ConfigurationError, match="no MatMul of bf16.*--no-self-test"):
        artifact.export(bf16, tmp_path / "tiny", silent)
    assert list(tmp_path.iterdir()) == []
    manifest, report = artifact.export(replace(bf16, self_test=False), tmp_path / "tiny", silent)
    assert report is None and manifest.values == "bfloat16" and manifest.kv_bytes == 2 * 2 * 2 * 16 * 2
    with pytest.raises(ConfigurationError, match="no MatMul: run it with --provider cuda"):
        Engine.from_artifact(tmp_path / "tiny", EngineConfig(rows=1), fake_cost())


def tensor_names() -> list[str]:
    return sorted(
        expected_shapes(ModelConfig(2, 64, 4, 2, 16, 96, 300, 128, 1e-5, 1e4, None, False, False, False, 1, (2,)))
    )


def shuffled(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(values.ravel()).reshape(values.shape)


@pytest.mark.parametrize(("form", "precision"), [*RAGGED, ("padded", "fp16")])
@pytest.mark.parametrize("wrong", tensor_names())
def test_a_scrambled_tensor_fails_the_self_test(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, wrong: str, form: str, precision: str
) -> None:
    def build(config: ModelConfig, tensor: Tensor, *rest: Any) -> None:
        build_decoder(config, lambda name: shuffled(tensor(name)) if name == wrong else tensor(name), *rest)

    monkeypatch.setattr(artifact, "build_decoder", build)
    with pytest.raises(SelfTestError, match="largest error of the logits"):
        artifact.export(replace(source, form=form, precision=precision, heads=None), tmp_path / "tiny", silent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "form", "precision"),
    [
        ("2.0.linear.bias", "ragged", "fp32"),
        *((name, *kind) for name in ("1.0.linear.weight", "0.1.weight") for kind in RAGGED + PADDED),
    ],
)
def test_a_scrambled_head_fails_the_self_test(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, wrong: str, form: str, precision: str
) -> None:
    assert source.heads is not None
    tensors = load_file(source.heads / "medusa_lm_head.safetensors")
    save_file(tensors | {wrong: shuffled(tensors[wrong])}, tmp_path / "wrong.safetensors")

    def build(config: ModelConfig, heads: Any, *rest: Any) -> None:
        build_heads(config, MedusaHeads.read(tmp_path / "wrong.safetensors", config), *rest)

    monkeypatch.setattr(artifact, "build_heads", build)
    with pytest.raises(SelfTestError, match="of the heads' log-probabilities"):
        artifact.export(replace(source, form=form, precision=precision), tmp_path / "tiny", silent)


@pytest.mark.parametrize(
    "change", [{"rope_theta": 500.0}, {"norm_eps": 0.1}, {"heads": 2, "head_dim": 32, "kv_heads": 1}], ids=str
)
def test_a_config_read_wrong_fails_the_self_test(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(
        artifact, "build_decoder", lambda config, *rest: build_decoder(replace(config, **change), *rest)
    )
    with pytest.raises((SelfTestError, ArtifactError)):
        artifact.export(replace(source, heads=None), tmp_path / "tiny", silent)


def test_a_graph_that_does_not_run_fails_the_self_test(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*rest: object) -> None:
        raise RuntimeError("Non-zero status code")

    monkeypatch.setattr("onnxruntime.InferenceSession.run_with_iobinding", fail)
    with pytest.raises(SelfTestError, match="does not run: Non-zero status code"):
        artifact.export(source, tmp_path / "tiny", silent)


def test_a_tensor_that_the_graph_forgets_fails_the_export(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = "model.layers.1.input_layernorm.weight"
    instead = "model.layers.0.input_layernorm.weight"
    monkeypatch.setattr(
        artifact,
        "build_decoder",
        lambda config, tensor, *rest: build_decoder(config, lambda n: tensor(instead if n == forgotten else n), *rest),
    )
    with pytest.raises(TensorError, match=f"{forgotten} was not used"):
        artifact.export(source, tmp_path / "tiny", silent)


def test_a_failed_export_leaves_the_old_artifact(tmp_path: Path, source: Source) -> None:
    artifact.export(source, tmp_path / "tiny", silent)
    before = (tmp_path / "tiny").resolve()
    bad = tiny_llama(tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, bad / "model.safetensors")
    with pytest.raises(TensorError, match="not finite"):
        artifact.export(replace(source, checkpoint=bad), tmp_path / "tiny", silent)
    assert (tmp_path / "tiny").resolve() == before
    Manifest.read(tmp_path / "tiny", verify=True)


def test_head_accuracies_replace_the_artifact(tmp_path: Path, source: Source) -> None:
    manifest, _ = artifact.export(source, tmp_path / "tiny", silent)
    before = (tmp_path / "tiny").resolve()
    accuracy = ((0.5, 0.6), (0.3, 0.4), (0.1, 0.2))
    artifact.write_head_accuracy(tmp_path / "tiny", manifest, accuracy)
    assert (tmp_path / "tiny").resolve() != before and not before.exists()
    assert Manifest.read(tmp_path / "tiny", verify=True) == replace(manifest, head_accuracy=accuracy)


def test_head_accuracies_of_another_export_are_not_written(tmp_path: Path, source: Source) -> None:
    manifest, _ = artifact.export(source, tmp_path / "tiny", silent)
    artifact.export(replace(source, precision="int8"), tmp_path / "tiny", silent)
    with pytest.raises(ArtifactError, match="was replaced while it was evaluated"):
        artifact.write_head_accuracy(tmp_path / "tiny", manifest, ((0.5,),) * 3)
    assert Manifest.read(tmp_path / "tiny").precision == "int8"
