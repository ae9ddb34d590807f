"""GGUF files: the weights are those that llama.cpp's own package gives, the rest follows from the metadata."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from export.__main__ import main
from export.artifact import Source, export
from export.config import inverse_frequencies
from export.model import Model, open_model
from export.needs import main as needs
from export.quantize import int4_values, int8_block_values
from runtime.errors import CheckpointError, ConfigError, TensorError
from runtime.manifest import Manifest
from tests.checkpoints import medusa_heads, tiny_llama, write_tensors
from tests.gguf_files import Gguf, Kind
from tests.unit.test_pieces import CORPUS, LEARNT

FLOATS = (Kind.F32, Kind.F16, Kind.BF16)
SMALL = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
LARGE = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)  # blocks of 256
PRODUCTS = (
    ("self_attn", "q_proj_k_proj_v_proj"), ("self_attn", "o_proj"), ("mlp", "gate_proj_up_proj"), ("mlp", "down_proj"),
)  # fmt: skip
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1}


def silent(what: str) -> None:
    pass


def shape_of(kind: Kind) -> dict[str, int]:
    return WIDE if kind in LARGE else {}


@pytest.mark.parametrize("kind", FLOATS + SMALL + LARGE, ids=lambda kind: kind.name)
def test_values_are_those_of_llama_cpps_package(tmp_path: Path, kind: Kind) -> None:
    """Nothing stays mapped: what was read of 7 GB would count as memory."""
    made = Gguf(shape_of(kind), kind)
    model = open_model(made.write(tmp_path / "tiny.gguf"))
    assert set(model.checkpoint.dtypes) == set(made.values)
    for name, values in made.values.items():
        np.testing.assert_array_equal(model.checkpoint.tensor(name), values)
        assert "tiny.gguf" not in Path("/proc/self/maps").read_text()
    model.checkpoint.finish()


@pytest.mark.parametrize(
    ("kind", "kv_heads"),
    [*((kind, 2) for kind in FLOATS + SMALL + LARGE), *((kind, n) for kind in (Kind.F16, Kind.Q8_0) for n in (1, 4))],
)
def test_the_artifact_is_that_of_the_same_weights_in_safetensors(tmp_path: Path, kind: Kind, kv_heads: int) -> None:
    """Byte for byte: the order of q's and k's rows with it, and where the type has floats the biases too."""
    biased = {"attention_bias": True, "mlp_bias": True} if kind in FLOATS else {}
    made = Gguf({**shape_of(kind), **biased, "num_key_value_heads": kv_heads}, kind)
    graphs = []
    base = tiny_llama(tmp_path / "base", **made.config)
    write_tensors(base, made.values)
    for number, checkpoint in enumerate((made.write(tmp_path / "tiny.gguf"), base)):
        out = tmp_path / str(number) / "tiny"
        export(Source(checkpoint, None, "int8", self_test=False), out, silent)
        graphs.append([(out / name).read_bytes() for name in ("decoder.onnx", "decoder.onnx.data")])
    assert graphs[0] == graphs[1]


def rotated(x: np.ndarray, pairs: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """x [heads, head_dim], each of `pairs` [2, head_dim / 2] turned by its angle."""
    first, second = x[:, pairs[0]], x[:, pairs[1]]
    turned = np.empty_like(x)
    turned[:, pairs[0]] = first * np.cos(angle) - second * np.sin(angle)
    turned[:, pairs[1]] = first * np.sin(angle) + second * np.cos(angle)
    return turned


def test_rows_are_reordered_so_that_attention_is_the_same(tmp_path: Path) -> None:
    """llama.cpp turns neighbours of the stored rows; Hugging Face turns a head's first half with its second."""
    made = Gguf({"num_key_value_heads": 4})
    model = opened(tmp_path, made)
    angle = inverse_frequencies(model.config)
    x = np.random.default_rng(0).normal(size=(2, 64))
    stored = [made.tensors[f"blk.0.attn_{part}.weight"][0] for part in "qk"]
    read = [model.checkpoint.tensor(f"model.layers.0.self_attn.{part}_proj.weight") for part in "qk"]
    scores = []
    for pairs, (query, key) in ((np.arange(16).reshape(8, 2).T, stored), (np.arange(16).reshape(2, 8), read)):
        turned_query = rotated((query @ x[0]).reshape(4, 16), pairs, 11 * angle)
        turned_key = rotated((key @ x[1]).reshape(4, 16), pairs, 3 * angle)
        scores.append((turned_query * turned_key).sum(axis=1))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)


def embedding_of(node: onnx.NodeProto, weights: Sequence[onnx.TensorProto], vocab: int) -> np.ndarray:
    """Every row of the table that `node` reads [vocab, hidden], as ONNX Runtime gives it."""
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [vocab])
    of_node = [weight for weight in weights if weight.name in node.input]
    rows = helper.make_tensor_value_info(node.output[0], of_node[-1].data_type, None)  # that of scales, where they are
    graph = helper.make_graph([node], "embedding", [tokens], [rows], of_node)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values: np.ndarray = session.run(None, {"tokens": np.arange(vocab)})[0]
    return values


def stored_weights(artifact: Path) -> dict[str, np.ndarray]:
    """What the products of an artifact multiply by, [out, in], by name, but for int8's; and the embedding."""
    graph = onnx.load(artifact / "decoder.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if "embed_tokens" in node.input:
            found["embed_tokens"] = embedding_of(node, graph.initializer, len(tensors["embed_tokens"]))
        if node.op_type.endswith("Int4") or node.op_type == "MatMulNBits":
            attribute = {a.name: a.i for a in node.attribute}
            assert attribute["block_size"] == 32
            values = int8_block_values if node.op_type == "MatMulNBits" else int4_values
            weight, scale = node.input[-2:]
            found[weight] = values(tensors[weight], tensors[scale], attribute["K"])
        elif node.op_type == "MatMul":
            found[node.input[1]] = tensors[node.input[1]].T
    return found


HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("kind", "overrides", "others", "precision", "line"),
    [
        (Kind.Q4_0, {}, {}, "int4", "16 Q4_0 bit for bit"),
        (Kind.Q4_0, TIED, {}, "int4", "15 Q4_0 bit for bit"),
        (Kind.Q4_0, {}, {HEAD: Kind.Q8_0, TABLE: Kind.Q5_0}, "int4", "14 Q4_0 and 1 Q5_0 and 1 Q8_0 bit for bit"),
        (Kind.Q4_0, WIDE, {HEAD: Kind.Q6_K}, "int4", "8 Q4_0 bit for bit, rounds 1 Q6_K again"),
        (Kind.Q4_0, WIDE | TIED, {TABLE: Kind.Q6_K}, "int4", "7 Q4_0 bit for bit, rounds 1 Q6_K again"),
        (Kind.Q4_0, {}, {HEAD: Kind.F16, TABLE: Kind.F16}, "int4", "14 Q4_0 bit for bit"),
        (Kind.Q4_0, {}, {}, "int8-block32", "16 Q4_0 bit for bit"),
        (Kind.Q5_0, {}, {}, "int8-block32", "16 Q5_0 bit for bit"),
        (Kind.Q8_0, {}, {}, "int8-block32", "16 Q8_0 bit for bit"),
        (Kind.Q8_0, TIED, {}, "int8-block32", "15 Q8_0 bit for bit"),
        (Kind.Q8_0, {}, {TABLE: Kind.Q4_1}, "int8-block32", "1 Q4_1 and 15 Q8_0 bit for bit"),
        (Kind.Q8_0, TIED, {TABLE: Kind.Q4_1}, "int8-block32", "14 Q8_0 bit for bit, rounds 1 Q4_1 again"),
        (Kind.Q6_K, WIDE, {}, "fp32", "9 Q6_K bit for bit"),
        (Kind.Q4_1, {}, {}, "fp32", "16 Q4_1 bit for bit"),
    ],
)
def test_blocks_are_kept_to_the_bit(
    tmp_path: Path, kind: Kind, overrides: dict[str, Any], others: dict[str, Kind], precision: str, line: str
) -> None:
    """Every weight of the artifact, dequantized, is what gguf.quants says of the file's blocks."""
    made = Gguf(overrides, kind, others)
    notes: list[str] = []
    export(
        Source(made.write(tmp_path / "tiny.gguf"), None, precision, self_test=False), tmp_path / "tiny", silent,
        notes.append,
    )  # fmt: skip
    assert notes[-1] == f"{precision} keeps the values of {line}"
    found = stored_weights(tmp_path / "tiny")
    for i in range(made.config["num_hidden_layers"]):
        for block, joined in PRODUCTS:
            parts = joined.replace("_proj_", "_proj ").split()
            want = np.concatenate([made.values[f"model.layers.{i}.{block}.{part}.weight"] for part in parts])
            np.testing.assert_array_equal(found[f"model.layers.{i}.{block}.{joined}"], want)
    np.testing.assert_array_equal(found["embed_tokens"], made.values[TABLE])  # a tied one too, as far as it is a table
    head = TABLE if HEAD not in made.values else HEAD
    if others.get(head) in (Kind.Q6_K, Kind.F16):
        assert "lm_head" not in found  # int8
    elif "again" not in line:
        np.testing.assert_array_equal(found["lm_head"], made.values[head])


@pytest.mark.parametrize(
    ("kind", "precision", "line"),
    [
        (Kind.F16, "int8", None),
        (Kind.Q4_0, "int8", "int8 rounds 16 Q4_0 again; --precision int4 keeps more"),
        (Kind.Q8_0, "int8", "int8 rounds 16 Q8_0 again; --precision int8-block32 keeps more"),
        (Kind.Q4_1, "int4", "int4 keeps the values of 1 Q4_1 bit for bit, rounds 15 Q4_1 again"),
        (
            Kind.Q8_0, "int4",
            "int4 keeps the values of 2 Q8_0 bit for bit, rounds 14 Q8_0 again; --precision int8-block32 keeps more",
        ),
        (Kind.Q8_0, "fp32", "fp32 keeps the values of 16 Q8_0 bit for bit"),
    ],
)  # fmt: skip
def test_what_is_rounded_again_is_said(tmp_path: Path, kind: Kind, precision: str, line: str | None) -> None:
    notes: list[str] = []
    made = Gguf({}, kind)
    export(
        Source(made.write(tmp_path / "tiny.gguf"), None, precision, self_test=False), tmp_path / "tiny", silent,
        notes.append,
    )  # fmt: skip
    assert notes == ["chat template: the checkpoint's own", *([line] if line else [])]


@pytest.mark.parametrize(
    ("precision", "overrides", "others"),
    [*((precision, WIDE, {HEAD: Kind.Q6_K}) for precision in ("int4", "int8-block32")),
     ("int4", WIDE, {}), ("int4", WIDE | TIED, {TABLE: Kind.Q8_0})],
)  # fmt: skip
def test_mixed_types_as_llama_cpp_writes_them(
    tmp_path: Path, precision: str, overrides: dict[str, Any], others: dict[str, Kind]
) -> None:
    """Q4_0 with an output of Q6_K, or without, heads beside it; the export's self-test passes."""
    made = Gguf(overrides, Kind.Q4_0, others)
    heads = medusa_heads(tmp_path / "heads", hidden=256, vocab=320)
    source = Source(made.write(tmp_path / "tiny.gguf"), heads, precision)
    manifest, _ = export(source, tmp_path / "tiny", silent)
    assert (manifest.medusa_heads, manifest.vocab, manifest.hidden) == (3, 320, 256)


def opened(tmp_path: Path, made: Gguf, context: int | None = None) -> Model:
    return open_model(made.write(tmp_path / "tiny.gguf"), context)


def test_the_metadata_are_the_config(tmp_path: Path) -> None:
    made = Gguf({"num_attention_heads": 2, "head_dim": 32, "rms_norm_eps": 0.25})
    made.metadata |= {
        "llama.rope.freq_base": 500.0, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0,
        "tokenizer.ggml.eot_token_id": 7, "llama.attention.key_length": 32, "llama.attention.value_length": 32,
        "llama.expert_count": 0,
    }  # fmt: skip
    config = opened(tmp_path, made, 500).config
    base = tiny_llama(
        tmp_path / "base", **made.config | {"rope_theta": 500.0, "eos_token_id": [2, 7],
        "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    )  # fmt: skip
    assert config == open_model(base, 500).config


def test_tied_embeddings(tmp_path: Path) -> None:
    made = Gguf(TIED)
    model = opened(tmp_path, made)
    assert "output.weight" not in made.tensors and model.config.tied
    np.testing.assert_array_equal(model.checkpoint.tensor("lm_head.weight"), made.values["model.embed_tokens.weight"])


def test_llama_3s_frequencies_are_divided_by_factors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    base = tiny_llama(tmp_path / "base", vocab_size=320, rope_scaling=scaling)
    want = inverse_frequencies(open_model(base).config)
    made = Gguf()
    plain = inverse_frequencies(opened(tmp_path, made).config)
    made.tensors["rope_freqs.weight"] = (plain / want).astype(np.float32), Kind.F32
    model = opened(tmp_path, made)
    np.testing.assert_allclose(inverse_frequencies(model.config), want, rtol=1e-6)
    made.tensors["rope_freqs.weight"] = np.ones(4, np.float32), Kind.F32
    with pytest.raises(TensorError, match=r"tiny.gguf: rope_freqs.weight has shape \[4\], expected \[8\]"):
        opened(tmp_path, made)
    made.tensors["rope_freqs.weight"] = np.ones(8, np.float32), Kind.F32
    made.metadata["llama.rope.scaling.factor"] = 2.0
    with pytest.raises(CheckpointError, match="either rope_freqs.weight or llama.rope.scaling.factor"):
        opened(tmp_path, made)


def test_the_tokenizer(tmp_path: Path) -> None:
    """Pieces by score, bytes, a space before each part, special tokens in the text; and back."""
    made = Gguf()
    made.tokens[-1] = ("<|user|>", 0.0, 4)
    model = opened(tmp_path, made)
    tokenizer = Tokenizer.from_str(model.tokenizer.text)
    assert tokenizer.encode("the  inn").tokens == ["<s>", "▁the", "▁▁", "in", "n"]
    assert tokenizer.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("a</s>b<|user|>").tokens == ["<s>", "▁a", "</s>", "▁", "b", "<|user|>"]
    for text in ("the  inn", " x", "é\n🙂", "  "):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.decode([319]) == "<|user|>"
    assert model.tokenizer.special == {"bos_token": "<s>", "eos_token": "</s>"}
    assert model.tokenizer.chat_template == made.metadata["tokenizer.chat_template"]


def llama_3(made: Gguf) -> Tokenizer:
    """Gives the file a small tokenizer of Llama 3's kind; the tokenizer it was made from."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=318, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LEARNT.splitlines(), trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    ids = tokenizer.get_vocab()
    kinds = dict.fromkeys(("<|begin_of_text|>", "<|eot_id|>"), 3)
    made.tokens = [(text, 0.0, kinds.get(text, 1)) for text in sorted(ids, key=ids.__getitem__)]
    made.metadata |= {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": 318,
        "tokenizer.ggml.eos_token_id": 319,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]],
    }  # fmt: skip
    return tokenizer


def test_llama_3s_tokenizer(tmp_path: Path) -> None:
    made = Gguf()
    right = llama_3(made)
    model = opened(tmp_path, made)
    tokenizer = Tokenizer.from_str(model.tokenizer.text)
    for text in CORPUS:
        ids = right.encode(text).ids
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)
        assert tokenizer.encode(text).ids == [318, *ids]
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a<|eot_id|>b", add_special_tokens=False).tokens == ["a", "<|eot_id|>", "b"]
    assert (model.config.bos, model.config.eos) == (318, (319,))
    made.metadata["tokenizer.ggml.merges"].append("a 🙂")
    with pytest.raises(
        CheckpointError, match="tokenizer.ggml.merges has 'a 🙂', expected two tokens that make a third"
    ):
        opened(tmp_path, made)


@pytest.mark.parametrize(("key", "value", "tokens"), [
    ("add_bos_token", False, ["▁a"]), ("add_eos_token", True, ["<s>", "▁a", "</s>"]),
    ("add_space_prefix", False, ["<s>", "a"]),
])  # fmt: skip
def test_tokenizer_flags(tmp_path: Path, key: str, value: bool, tokens: list[str]) -> None:
    made = Gguf()
    made.metadata[f"tokenizer.ggml.{key}"] = value
    assert Tokenizer.from_str(opened(tmp_path, made).tokenizer.text).encode("a").tokens == tokens


def test_a_template_by_the_models_name(tmp_path: Path) -> None:
    made = Gguf()
    del made.metadata["tokenizer.chat_template"]
    notes: list[str] = []
    for path, name in ((tmp_path / "tiny.gguf", "Vicuna 7B v1.5"), (tmp_path / "vicuna-7b-v1.3.Q4_0.gguf", "tiny")):
        made.metadata["general.name"] = name
        export(Source(made.write(path), None, "fp32"), tmp_path / "tiny", silent, notes.append)
    assert notes == [
        "chat template: vicuna, since the checkpoint is called Vicuna 7B v1.5",
        "chat template: vicuna, since the checkpoint is called vicuna-7b-v1.3.Q4_0",
    ]


def test_a_model_in_parts(tmp_path: Path) -> None:
    """As llama-gguf-split leaves it: metadata in the first, tensors in all."""
    made, rest = Gguf(), Gguf()
    names = list(made.tensors)
    rest.tensors = {name: made.tensors.pop(name) for name in names[5:]}
    made.metadata |= {"split.no": 0, "split.count": 2}
    rest.metadata = {"split.no": 1, "split.count": 2}
    first = made.write(tmp_path / "tiny-00001-of-00002.gguf")
    with pytest.raises(CheckpointError, match="tiny-00002-of-00002.gguf is missing"):
        open_model(first)
    rest.write(tmp_path / "tiny-00002-of-00002.gguf")
    for path in (first, tmp_path):
        model = open_model(path)
        for name, values in made.values.items():
            np.testing.assert_array_equal(model.checkpoint.tensor(name), values)
    with pytest.raises(CheckpointError, match="tiny.gguf is part of 2: expected the first, NAME-00001-of-00002.gguf"):
        open_model(first.rename(tmp_path / "tiny.gguf"))


def test_where_a_file_is_looked_for(tmp_path: Path) -> None:
    one = Gguf().write(tmp_path / "one" / "tiny.gguf")
    assert open_model(one.parent).config == open_model(one).config
    Gguf().write(tmp_path / "one" / "other.gguf")
    with pytest.raises(CheckpointError, match="one holds other.gguf, tiny.gguf: say which of them"):
        open_model(one.parent)
    (tmp_path / "x").write_text("x")
    with pytest.raises(CheckpointError, match="x is a file, but no GGUF"):
        open_model(tmp_path / "x")
    with pytest.raises(CheckpointError, match="nowhere.gguf/config.json is missing"):
        open_model(tmp_path / "nowhere.gguf")


def test_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Gguf().write(tmp_path / "tiny.gguf")
    for given in (path, tmp_path):
        assert needs([str(given)]) == 0 and capsys.readouterr().out == "gguf\n"
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert main([str(path), "--out", str(tmp_path / "tiny")]) == CheckpointError.exit_code
    assert "takes the gguf package to read: `make export` installs it" in capsys.readouterr().err


def metadata(**changes: Any) -> Callable[[Gguf], object]:
    """Fields with their dots as double underscores; None deletes one."""

    def change(made: Gguf) -> None:
        for key, value in changes.items():
            made.metadata[key.replace("__", ".")] = value
        made.metadata = {key: value for key, value in made.metadata.items() if value is not None}

    return change


def tensors(**changes: tuple[np.ndarray, Kind] | None) -> Callable[[Gguf], object]:
    def change(made: Gguf) -> None:
        for key, value in changes.items():
            if value is None:
                del made.tensors[key.replace("__", ".")]
            else:
                made.tensors[key.replace("__", ".")] = value

    return change


def array(*shape: int, kind: Kind = Kind.F32, dtype: Any = np.float32) -> tuple[np.ndarray, Kind]:
    return np.ones(shape, dtype), kind


def token(*entry: Any) -> Callable[[Gguf], object]:
    return lambda made: made.tokens.__setitem__(9, entry)


K = "blk__0__attn_k__weight"
BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"llama__attention__scale": 0.5}, "llama.attention.scale is 0.5, it has to be absent"),
    "experts": ({"llama__expert_count": 8}, "llama.expert_count is 8, it has to be 0"),
    "yarn": ({"llama__rope__scaling__type": "yarn"}, 'llama.rope.scaling.type is "yarn"'),
    "no depth": ({"llama__block_count": None}, "llama.block_count is missing"),
    "heads that differ": ({"llama__attention__key_length": 32}, "llama.attention.key_length is 32"),
    "heads that do not divide": ({"llama__attention__head_count": 3}, "num_key_value_heads is 2"),
    "an adapter": ({"general__type": "adapter"}, 'general.type is "adapter"'),
    "another tokenizer": ({"tokenizer__ggml__model": "bert"}, 'tokenizer.ggml.model is "bert"'),
    "no tokenizer": ({"tokenizer__ggml__model": None}, "tokenizer.ggml.model is missing"),
    "another way to cut": ({"tokenizer__ggml__model": "gpt2"}, 'tokenizer.ggml.pre is "default", it has to be one of'),
    "spaces removed": ({"tokenizer__ggml__remove_extra_whitespaces": True}, "remove_extra_whitespaces is true"),
    "no beginning": ({"tokenizer__ggml__bos_token_id": None}, "bos_token_id is missing"),
    "a beginning out of range": ({"tokenizer__ggml__bos_token_id": 320}, "bos_token_id is 320"),
    "a template that is none": ({"tokenizer__chat_template": 3}, "tokenizer.chat_template is 3"),
}
BAD_PARTS: dict[str, tuple[Callable[[Gguf], object], str]] = {
    "tokens too few": (lambda made: made.tokens.pop(), "tokenizer.ggml.tokens has 319 entries, the rows of token_embd"),
    "a kind of token": (token("x", 0.0, 9), "tokenizer.ggml.token_type has 9"),
    "a token twice": (token("<s>", 0.0, 1), "'<s>' is there twice"),
    "a missing tensor": (tensors(blk__1__ffn_up__weight=None), "model.layers.1.mlp.up_proj.weight is missing"),
    "no embedding": (tensors(token_embd__weight=None), "token_embd.weight is missing"),
    "one too many": (tensors(blk__0__ffn_gate_inp__weight=array(8, 64)), "blk.0.ffn_gate_inp.weight has no use"),
    "a shape": (
        tensors(**{K: array(64, 64)}),
        "model.layers.0.self_attn.k_proj.weight has shape [64, 64], expected [32, 64]",
    ),
    "whole numbers": (
        tensors(**{K: array(32, 64, kind=Kind.I8, dtype=np.int8)}),
        "blk.0.attn_k.weight is of type I8, expected one of F16, BF16, F32, Q4_0",
    ),
    "a type that is not read": (
        tensors(**{K: array(32, 36, kind=Kind.IQ4_NL, dtype=np.uint8)}),
        "blk.0.attn_k.weight is of type IQ4_NL",
    ),
    "not finite": (
        tensors(output_norm__weight=(np.full(64, np.nan, np.float32), Kind.F32)),
        "model.norm.weight has 64 values that are not finite",
    ),
}
BAD = {name: (metadata(**fields), ConfigError, message) for name, (fields, message) in BAD_FIELDS.items()} | {
    name: (damage, CheckpointError if "token" in name else TensorError, message)
    for name, (damage, message) in BAD_PARTS.items()
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    damage, kind, message = BAD[name]
    made = Gguf()
    damage(made)
    with pytest.raises(CheckpointError) as caught:
        model = opened(tmp_path, made)
        for tensor in model.checkpoint.dtypes:
            model.checkpoint.tensor(tensor)
    assert type(caught.value) is kind
    assert message in str(caught.value) and str(tmp_path / "tiny.gguf") in str(caught.value)


def test_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='general.architecture is "falcon", it has to be "llama"'):
        open_model(Gguf().write(tmp_path / "tiny.gguf", "falcon"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short(tmp_path: Path, share: float) -> None:
    path = Gguf().write(tmp_path / "tiny.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: max(4, int(len(content) * share))])
    with pytest.raises(
        CheckpointError, match="tiny.gguf(: .* ends at byte .*| is damaged or no GGUF file: .*)fetch it again"
    ):
        open_model(path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [(99, "is of type number 99"), (Kind.Q4_K, "has rows of 64 values, expected whole Q4_K blocks of 256")],
)
def test_a_type_that_cannot_be(tmp_path: Path, kind: int, says: str) -> None:
    path = Gguf().write(tmp_path / "tiny.gguf")
    content = bytearray(path.read_bytes())
    name = b"blk.0.attn_v.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8  # dimensions, their number before them
    content[place : place + 4] = int(kind).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(TensorError, match=f"tiny.gguf: blk.0.attn_v.weight {says}"):
        open_model(path)


def test_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Gguf({}, Kind.Q8_0).write(tmp_path / "tiny.gguf")
    assert main([str(path), "--precision", "int8-block32", "--out", str(tmp_path / "tiny")]) == 0
    assert "int8-block32 keeps the values of 16 Q8_0 bit for bit" in capsys.readouterr().err
    manifest = Manifest.read(tmp_path / "tiny", verify=True)
    assert (manifest.precision, manifest.bos, manifest.eos, manifest.context) == ("int8-block32", 1, (2,), 128)
    assert json.loads((tmp_path / "tiny" / "tokenizer.json").read_text())["model"]["byte_fallback"] is True
