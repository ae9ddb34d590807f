"""Synthetic checkpoints: the true shapes, read and exported as a real one is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from export import random_weights, synthetic
from export.artifact import Source, export
from export.checkpoint import Checkpoint, expected_shapes
from export.config import ModelConfig
from export.heads import MedusaHeads
from export.model import open_model
from export.synthetic import FORMS, GGUF_FORMS, SHAPES, main, synthesize
from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams
from runtime.prompts import Prompts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("synthetic") / "tiny"
    synthesize("tiny", directory, shard=100_000)
    return directory


@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [
        # layers, hidden, heads, kv heads, intermediate, vocabulary, context, norm eps; parameters as published
        ("vicuna-7b", 6_738_415_616, (32, 4096, 32, 32, 11008, 32000, 2048, 1e-6)),
        ("vicuna-13b", 13_015_864_320, (40, 5120, 40, 40, 13824, 32000, 2048, 1e-6)),
        ("tinyllama-1.1b", 1_100_048_384, (22, 2048, 32, 4, 5632, 32000, 2048, 1e-5)),
    ],
)
def test_shapes_are_those_published(name: str, parameters: int, published: tuple[float, ...], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[name]))
    config = ModelConfig.read(tmp_path)
    assert published == (
        config.layers, config.hidden, config.heads, config.kv_heads, config.intermediate, config.vocab, config.context,
        config.norm_eps,
    )  # fmt: skip
    assert sum(int(np.prod(shape)) for shape in expected_shapes(config).values()) == parameters
    assert (config.bos, config.eos, config.tied, config.rope_theta) == (1, (2,), False, 10000.0)


def test_heads_have_the_published_size(tmp_path: Path) -> None:
    """vicuna-7b's five heads: 1.48 GB in two bytes a value."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["vicuna-7b"]))
    weights = random_weights.head_weights(ModelConfig.read(tmp_path), 5, 0.02)
    assert 2 * sum(weight.size for weight in weights) == pytest.approx(1.48e9, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_checkpoint_is_exported_and_answers(tiny: Path, tmp_path: Path, precision: str) -> None:
    """The export's self-test passes, with the heads, and the chat template and tokenizer give a prompt."""
    manifest, report = export(Source(tiny, tiny, precision), tmp_path / "artifact", lambda what: None)
    assert manifest.medusa_heads == 5
    assert 0 < report.decoder < report.limit / 4, "weights of a scale that rounding does not turn into noise"
    engine = Engine.from_artifact(tmp_path / "artifact", EngineConfig(rows=1))
    prompt = Prompts(engine.manifest, engine.tokenizer).question("What is abs?")
    [sequence] = engine.generate([prompt], SamplingParams(max_tokens=8, ignore_eos=True))
    assert len(sequence.tokens) == 8


def test_shards_and_their_index_hold_every_tensor(tiny: Path) -> None:
    files = sorted(tiny.glob("model-*.safetensors"))
    index = json.loads((tiny / "model.safetensors.index.json").read_text())
    assert len(files) > 1 and not list(tiny.glob("*.part"))
    tensors = [load_file(file) for file in files]
    assert all(sum(t.nbytes for t in shard.values()) <= 100_000 or len(shard) == 1 for shard in tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for shard in tensors for t in shard.values())
    config = ModelConfig.read(tiny)
    checkpoint = Checkpoint(tiny, config)
    for name in expected_shapes(config):
        checkpoint.tensor(name)
    checkpoint.finish()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_follow_from_the_seed_and_the_name(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same whatever the files are like, others for another seed, and of the asked type."""
    for name, options in (("one", {}), ("many", {"shard": 50_000}), ("bare", {"heads": 0}), ("other", {"seed": 1})):
        synthesize("tiny", tmp_path / name, dtype=dtype, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(random_weights, "PIECE", 992)
    synthesize("tiny", tmp_path / "pieces", dtype=dtype)

    def tensor(directory: str, name: str = "layers.1.mlp.up_proj") -> np.ndarray:
        config = ModelConfig.read(tmp_path / directory)
        return Checkpoint(tmp_path / directory, config).tensor(f"model.{name}.weight")

    for same in ("many", "bare", "pieces"):
        np.testing.assert_array_equal(tensor("one"), tensor(same))
    assert np.abs(tensor("one") - tensor("other")).max() > 0.1
    assert np.abs(tensor("one") - tensor("one", "layers.1.mlp.gate_proj")).max() > 0.1
    std = SHAPES["tiny"]["initializer_range"]
    for name, expected in (("layers.1.mlp.up_proj", std), ("layers.1.mlp.down_proj", std / 2), ("embed_tokens", 1.0)):
        assert tensor("one", name).std() == pytest.approx(expected, rel=0.05), "two layers: half of std"
    heads = MedusaHeads.read(tmp_path / "one", ModelConfig.read(tmp_path / "one"))
    [(weight, _)] = heads.resblock(4)
    assert weight.shape == (64, 64) and heads.count == 5
    assert not (tmp_path / "bare" / "medusa_lm_head.safetensors").exists()


@pytest.mark.parametrize("vocab", [600, 4096, 5000])
def test_the_tokenizer_has_the_vocabulary_of_the_model(tmp_path: Path, vocab: int) -> None:
    synthetic.write_tokenizer(tmp_path, vocab, 128)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocab
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab))
    text = "Ein Käse für os.path.join \U0001f600"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("</s>").ids[-1] == 2


K_QUANTS = [form for form in GGUF_FORMS if form.endswith("_k")]


@pytest.mark.parametrize("form", [form for form in FORMS if form not in K_QUANTS])
def test_every_form_is_the_same_model(form: str, tmp_path: Path) -> None:
    """The values differ by what the form's type rounds; heads, tokenizer and config are there, and it is exported."""
    synthesize("tiny", tmp_path / "safe", dtype="float32")
    synthesize("tiny", tmp_path / form, form=form, dtype="float32", shard=100_000)
    want, found = open_model(tmp_path / "safe"), open_model(tmp_path / form)
    assert np.float32(found.config.norm_eps) == np.float32(want.config.norm_eps)  # GGUF has no doubles
    assert replace(found.config, norm_eps=want.config.norm_eps) == want.config
    largest = {"f16": 1e-3, "bf16": 4e-3, "q8_0": 5e-3, "q5_0": 0.0626, "q4_1": 0.08, "q4_0": 0.126}.get(form[5:], 0.0)
    for name in expected_shapes(want.config):
        values, right = found.checkpoint.tensor(name), want.checkpoint.tensor(name)
        assert np.abs(values - right).max() <= largest * np.abs(right).max()
    question = "What does os.path.join do?"
    ids = [Tokenizer.from_str(model.tokenizer.text).encode(question).ids for model in (found, want)]
    assert ids[0] == ids[1] or form in GGUF_FORMS  # which has no pattern that splits a text first
    assert Tokenizer.from_str(found.tokenizer.text).decode(ids[0]) == question
    manifest, _ = export(Source(tmp_path / form), tmp_path / "artifact", lambda what: None)
    assert manifest.medusa_heads == 5 and manifest.chat_template == want.tokenizer.chat_template


@pytest.mark.parametrize("form", K_QUANTS)
def test_k_quants_spread_as_the_weights_do(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of random content: the same from the same seed, and a model that is exported, with its heads."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4}
    monkeypatch.setattr(synthetic, "SHAPES", {"tiny": SHAPES["tiny"] | wide})
    for name in ("one", "again"):
        synthesize("tiny", tmp_path / name, form=form)
    [one], [again] = (list((tmp_path / name).glob("*.gguf")) for name in ("one", "again"))
    assert one.name == f"tiny.{form[5:].upper()}.gguf" and one.read_bytes() == again.read_bytes()
    checkpoint = open_model(tmp_path / "one").checkpoint
    assert checkpoint.dtypes["lm_head.weight"] == form[5:].upper()
    for name, std in (("layers.0.self_attn.q_proj", 0.15), ("layers.0.mlp.down_proj", 0.15 / 2**0.5)):
        values = checkpoint.tensor(f"model.{name}.weight")
        assert values.std() == pytest.approx(std, rel=0.1) and abs(values.mean()) < 0.1 * std
    manifest, report = export(Source(tmp_path / "one"), tmp_path / "artifact", lambda what: None)
    assert manifest.medusa_heads == 5 and report is not None


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_heads_among_the_tensors_and_pieces_of_sentencepiece(form: str, tmp_path: Path) -> None:
    """Medusa-2's and vicuna's form."""
    synthesize("tiny", tmp_path / "tiny", form=form, joined=True, sentencepiece=True, shard=100_000)
    names = {path.name for path in (tmp_path / "tiny").iterdir()}
    assert "tokenizer.model" in names and "tokenizer.json" not in names
    assert not any(name.startswith("medusa_lm_head") for name in names)
    found = open_model(tmp_path / "tiny")
    heads = MedusaHeads.within(tmp_path / "tiny", found.checkpoint)
    assert heads is not None and heads.count == 5
    assert heads.resblock(4)[0][0].std() == pytest.approx(SHAPES["tiny"]["initializer_range"], rel=0.05)
    text = "What does os.path.join do? 1 Käse \U0001f600"
    tokenizer = Tokenizer.from_str(found.tokenizer.text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.get_vocab_size() == found.config.vocab
    manifest, _ = export(Source(tmp_path / "tiny"), tmp_path / "artifact", lambda what: None)
    assert manifest.medusa_heads == 5


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--out", str(tmp_path / "m"), "--heads", "2", "--dtype", "bfloat16"]) == 0
    assert "2 Medusa heads, 2 files of tensors" in capsys.readouterr().out
    assert main(["tiny", "--out", str(tmp_path / "m")]) == 2
    assert "not an empty directory" in capsys.readouterr().err
    assert main(["tiny", "--out", str(tmp_path / "g"), "--form", "gguf-q4_0"]) == 0
    assert "5 Medusa heads, 2 files of tensors" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == ["medusa_lm_head.safetensors", "tiny.Q4_0.gguf"]
    assert main(["tiny", "--out", str(tmp_path / "k"), "--form", "gguf-q4_k"]) == 2
    assert "Q4_K holds 256 values a block, which do not divide model.embed" in capsys.readouterr().err
    assert not (tmp_path / "k").exists()
    assert main(["tiny", "--out", str(tmp_path / "n"), "--joined", "--heads", "0"]) == 2
    assert "no heads to be among the model's tensors" in capsys.readouterr().err
    assert main(["tiny", "--out", str(tmp_path / "j"), "--form", "gguf-q4_0", "--joined"]) == 2
    assert "has its tokenizer inside and its heads outside" in capsys.readouterr().err
    assert main(["tiny", "--out", str(tmp_path / "v"), "--form", "bin", "--joined", "--sentencepiece"]) == 0
    for wrong in (["--heads", "-1"], ["--shard-gib", "0"], ["--seed", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            main(["tiny", "--out", str(tmp_path / "n"), *wrong])
        assert wrong[0] in capsys.readouterr().err
