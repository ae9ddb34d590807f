"""Medusa heads: three layouts, counted from the tensors, strict about every one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.draft_heads import build_heads
from export.heads import MedusaHeads, known_accuracy, locate, misstated
from export.needs import main as needs
from export.progress import unheard
from runtime import graphs
from runtime.errors import CheckpointError, TensorError
from tests.checkpoints import medusa_heads, medusa_tensors, save_pickle, tiny_llama

Tensors = dict[str, np.ndarray]


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return ModelConfig.read(tiny_llama(tmp_path / "base"))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("layout", ["v1", "v2", "vllm", "vllm-shared"])
def test_layouts(tmp_path: Path, config: ModelConfig, layout: str, layers: int) -> None:
    heads = MedusaHeads.read(medusa_heads(tmp_path / layout, layout, count=4, layers=layers), config)
    want = medusa_tensors("vllm", count=4, layers=layers)
    assert heads.count == 4
    for h in range(4):
        block = heads.resblock(h)
        assert len(block) == layers
        for i, (weight, bias) in enumerate(block):
            assert np.array_equal(weight, want[f"blocks.{h}.layers.{i}.weight"])
            assert np.array_equal(bias, want[f"blocks.{h}.layers.{i}.bias"])
        lm = heads.lm(h)
        if layout == "v2":
            assert lm is None
        else:
            assert lm is not None
            assert np.array_equal(lm, want[f"lm_heads.{0 if layout == 'vllm-shared' else h}.weight"])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_vocabulary_product_that_all_heads_share_is_kept_once(
    tmp_path: Path, config: ModelConfig, precision: str, layers: int
) -> None:
    """They draft as heads do that have a copy each, and the first ones alone as in all."""
    one = medusa_tensors("vllm-shared", layers=layers, hidden=config.hidden, vocab=config.vocab)
    copies = {f"lm_heads.{h}.weight": one["lm_head.weight"] for h in range(3)}
    hidden = np.random.default_rng(0).standard_normal((4, config.hidden), np.float32)
    drafts, sizes = [], []
    for name, lms in (("one", {}), ("copies", copies)):
        folder = tmp_path / name
        folder.mkdir()
        save_file(
            {key: value for key, value in one.items() if key != "lm_head.weight"} | (lms or one),
            folder / "model.safetensors",
        )
        heads = MedusaHeads.read(folder, config)
        build_heads(config, heads, lambda: one["lm_head.weight"], "ragged", precision, 5, folder, unheard)
        session = graphs.load(folder / "heads.onnx")
        every, few = (
            session.run(["tokens", "logprobs"], {"hidden": hidden, "depth": np.array([depth])}) for depth in (3, 2)
        )
        assert few[0].shape == (4, 2, 5)
        assert all(np.array_equal(part, whole[:, :2]) for part, whole in zip(few, every, strict=True))
        drafts.append(every)
        sizes.append((folder / "heads.onnx.data").stat().st_size)
    assert np.array_equal(drafts[0][0], drafts[1][0])
    np.testing.assert_allclose(drafts[0][1], drafts[1][1], atol=1e-5)
    vocabulary = one["lm_head.weight"].size * (4 if precision == "fp32" else 0.5)
    assert sizes[1] - sizes[0] >= 2 * vocabulary


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles(tmp_path: Path, config: ModelConfig, legacy: bool) -> None:
    """vicuna-7b's heads are bfloat16 in a file of torch.save."""
    tensors = {name: torch.from_numpy(value).bfloat16() for name, value in medusa_tensors("v1").items()}
    path = tmp_path / "medusa_lm_head.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    heads = MedusaHeads.read(tmp_path, config)
    assert heads.count == 3
    assert np.array_equal(heads.resblock(1)[0][0], tensors["1.0.linear.weight"].float().numpy())


def test_vllm_heads_without_bias(tmp_path: Path, config: ModelConfig) -> None:
    """vLLM's medusa_fc_bias is off by default."""
    tensors = {name: value for name, value in medusa_tensors("vllm").items() if not name.endswith(".bias")}
    save_file(tensors, tmp_path / "model.safetensors")
    ((_, bias),) = MedusaHeads.read(tmp_path, config).resblock(0)
    assert not bias.any()


def test_vllm_heads_that_store_one_product_under_the_first_head(tmp_path: Path, config: ModelConfig) -> None:
    tensors = medusa_tensors("vllm")
    del tensors["lm_heads.1.weight"], tensors["lm_heads.2.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TensorError, match=r"lm_heads\.1\.weight is missing"):
        MedusaHeads.read(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps({"original_lm_head": True, "num_heads": 5}))
    heads = MedusaHeads.read(tmp_path, config)
    last = heads.lm(2)
    assert last is not None and np.array_equal(last, tensors["lm_heads.0.weight"])


@pytest.mark.parametrize("layout", ["v1", "v2"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("pickled", [False, True])
def test_heads_among_the_checkpoints_tensors(tmp_path: Path, layout: str, shards: int, pickled: bool) -> None:
    """Medusa-2 trains base and heads together and saves them together."""
    base = tiny_llama(tmp_path / "both", heads=layout, shards=shards, pickled=pickled)
    config = ModelConfig.read(base)
    want = medusa_tensors(layout)
    for heads in (MedusaHeads.within(base, Checkpoint(base, config)), MedusaHeads.read(base, config)):
        assert heads is not None and heads.count == 3
        assert np.array_equal(heads.resblock(2)[0][0], want["2.0.linear.weight"])
        lm = heads.lm(1)
        assert np.array_equal(lm, want["1.1.weight"]) if lm is not None else layout == "v2"
        assert known_accuracy(heads.file, 3) is None


def test_heads_beside_the_checkpoints_tensors(tmp_path: Path, config: ModelConfig) -> None:
    base = tmp_path / "base"
    assert MedusaHeads.within(base, Checkpoint(base, config)) is None
    medusa_heads(base, count=2)
    heads = MedusaHeads.within(base, Checkpoint(base, config))
    assert heads is not None and (heads.count, heads.file) == (2, base / "medusa_lm_head.safetensors")


def test_heads_among_the_tensors_have_to_fit_too(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "both", heads="v1")
    tensors = load_file(base / "model.safetensors")
    del tensors["medusa_head.1.0.linear.bias"]
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(TensorError, match=r"model.safetensors: 1\.0\.linear\.bias is missing"):
        MedusaHeads.within(base, Checkpoint(base, ModelConfig.read(base)))


def test_the_tensors_say_how_many_heads_there_are(tmp_path: Path, config: ModelConfig) -> None:
    """vicuna-7b-v1.3's config.json says two, its file holds five."""
    directory = medusa_heads(tmp_path / "heads", count=5)
    heads = MedusaHeads.read(directory, config)
    assert heads.count == 5 and misstated(heads) is None
    for stated, line in ((5, None), (2, f"{directory / 'config.json'} says medusa_num_heads 2, ")):
        (directory / "config.json").write_text(json.dumps({"medusa_num_heads": stated, "medusa_num_layers": 1}))
        found = misstated(MedusaHeads.read(directory, config))
        assert found == line or (found is not None and line is not None and found.startswith(line))
    assert found is not None and found.endswith("medusa_lm_head.safetensors holds 5 heads: all of them are used")


BAD: dict[str, tuple[str, Callable[[Tensors], object], list[str]]] = {
    "a head missing": (
        "v1",
        lambda t: [t.pop(n) for n in list(t) if n.startswith("1.")],
        ["1.0.linear.weight is missing"],
    ),
    "a bias missing": ("v1", lambda t: t.pop("2.0.linear.bias"), ["2.0.linear.bias is missing", "[64]"]),
    "one product missing": ("v1", lambda t: t.pop("1.1.weight"), ["1.1.weight is missing", "[300, 64]"]),
    "a layer missing": (
        "v2",
        lambda t: t.update({"0.2.linear.weight": t["0.0.linear.weight"]}),
        ["0.1.linear.weight is missing"],
    ),
    "another hidden size": (
        "v1",
        lambda t: t.update({"0.0.linear.weight": np.ones((32, 32), np.float32)}),
        ["[32, 32]", "[64, 64]"],
    ),
    "another vocabulary": (
        "v1",
        lambda t: t.update({"0.1.weight": t["0.1.weight"][:256].copy()}),
        ["[256, 64]", "[300, 64]"],
    ),
    "a truncated vocabulary": ("vllm", lambda t: t.update(token_map=np.arange(4)), ["token_map has no use"]),
    "a stranger": ("v1", lambda t: t.update(extra=np.ones(2, np.float32)), ["extra has no use"]),
    "two layouts": ("v1", lambda t: t.update(medusa_tensors("vllm")), ["0.0.linear.bias has no use"]),
    "both kinds of product": (
        "vllm-shared",
        lambda t: t.update({"lm_heads.0.weight": t["lm_head.weight"]}),
        ["lm_heads.0"],
    ),
    "NaN": ("v1", lambda t: t["1.1.weight"].fill(np.nan), ["1.1.weight has 19200 values that are not finite"]),
    "no heads": ("v1", lambda t: [t.pop(n) for n in list(t) if "linear" in n], ["expected Medusa heads"]),
    "almost nothing": (
        "v1",
        lambda t: [t.pop(n) for n in list(t) if n != "0.0.linear.bias"],
        ["0.0.linear.weight is missing"],
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("pickled", [False, True])
def test_bad_heads(tmp_path: Path, config: ModelConfig, name: str, pickled: bool) -> None:
    layout, edit, messages = BAD[name]
    tensors = medusa_tensors(layout)
    edit(tensors)
    path = tmp_path / ("heads.pt" if pickled else "heads.safetensors")
    if pickled:
        save_pickle(tensors, path)
    else:
        save_file(tensors, path)
    with pytest.raises(TensorError) as caught:
        heads = MedusaHeads.read(path, config)
        for h in range(heads.count):
            heads.resblock(h), heads.lm(h)
    for message in messages:
        assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is damaged or holds more than tensors"), (b"\x80\x02nonsense", "is damaged or holds more than tensors"),
        (b"PK\x03\x04 cut short", "ends before its list of contents, which comes last: fetch it again"),
    ],
)  # fmt: skip
def test_damaged_pickles(tmp_path: Path, config: ModelConfig, content: bytes, says: str) -> None:
    (tmp_path / "heads.pt").write_bytes(content)
    with pytest.raises(TensorError, match=f"heads.pt {says}"):
        MedusaHeads.read(tmp_path / "heads.pt", config)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a pickle ran')",)


def test_a_pickle_runs_no_code(tmp_path: Path, config: ModelConfig) -> None:
    torch.save({"0.0.linear.weight": Attack()}, tmp_path / "heads.pt")
    with pytest.raises(TensorError, match="holds more than tensors"):
        MedusaHeads.read(tmp_path / "heads.pt", config)


def test_a_pickle_of_something_else(tmp_path: Path, config: ModelConfig) -> None:
    torch.save([torch.ones(2)], tmp_path / "heads.pt")
    with pytest.raises(TensorError, match="holds a list, expected a dictionary of tensors"):
        MedusaHeads.read(tmp_path / "heads.pt", config)


def test_without_torch_the_error_says_what_installs_it(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "heads.pt"
    save_pickle(medusa_tensors("v1"), path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match="needs torch to read: `make export` installs it"):
        MedusaHeads.read(path, config)


def test_where_heads_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no Medusa heads: expected one of medusa_lm_head.safetensors"):
        locate(tmp_path)
    for name in ("pytorch_model.bin", "model.safetensors", "medusa_lm_head.pt", "medusa_lm_head.safetensors"):
        (tmp_path / name).write_bytes(b"")
        assert locate(tmp_path) == tmp_path / name


def test_needs_prints_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, heads = str(tiny_llama(tmp_path / "base")), str(medusa_heads(tmp_path / "heads"))
    assert needs([base]) == 0 and needs([base, heads]) == 0
    assert capsys.readouterr().out == ""
    save_pickle(medusa_tensors("v1"), tmp_path / "heads.pt")
    pickled = [str(tiny_llama(tmp_path / f"pickled-{shards}", shards=shards, pickled=True)) for shards in (1, 2)]
    for arguments in ([base, str(tmp_path / "heads.pt")], [pickled[0]], [pickled[1], heads]):
        assert needs(arguments) == 0
        assert capsys.readouterr().out == "export\n"
    bare = tiny_llama(tmp_path / "bare")
    (bare / "tokenizer.model").touch()
    assert needs([str(bare)]) == 0 and capsys.readouterr().out == ""
    (bare / "tokenizer.json").unlink()
    assert needs([str(bare), str(tmp_path / "heads.pt")]) == 0
    assert capsys.readouterr().out == "export\nsentencepiece\n"
    both = tiny_llama(tmp_path / "both")
    save_pickle(medusa_tensors("v1"), both / "medusa_lm_head.pt")
    assert needs([str(both)]) == 0 and capsys.readouterr().out == "export\n"
    assert needs([str(both), heads]) == 0 and capsys.readouterr().out == ""
    tiny_llama(tmp_path / "pickled-1")  # safetensors beside the pickle: that is what an export reads
    assert needs(pickled[:1]) == 0
    assert capsys.readouterr().out == ""
    assert needs([base, str(tmp_path / "nowhere")]) == CheckpointError.exit_code
    assert "nowhere does not exist" in capsys.readouterr().err


def test_heads_are_read_anew_each_time(tmp_path: Path, config: ModelConfig) -> None:
    """Five heads of a 7B model weigh 3 GB in float32: none is kept."""
    heads = MedusaHeads.read(medusa_heads(tmp_path / "heads"), config)
    first, again = heads.lm(0), heads.lm(0)
    assert first is not again and np.array_equal(first, again)  # type: ignore[arg-type]
    assert np.array_equal(first, load_file(tmp_path / "heads" / "medusa_lm_head.safetensors")["0.1.weight"])  # type: ignore[arg-type]


def test_accuracies_lie_beside_the_heads(tmp_path: Path) -> None:
    heads = medusa_heads(tmp_path / "heads", count=2)
    assert known_accuracy(heads, 2) is None
    beside = heads / "medusa_lm_head.json"
    beside.write_text(json.dumps({"accuracy": {"held_out": [[0.5, 0.75], [0.25, 0.5]], "trained": None}}))
    assert known_accuracy(heads, 2) == ((0.5, 0.75), (0.25, 0.5))
    for bad in ({"accuracy": 1}, {"accuracy": {"held_out": [[0.5]]}}, {"accuracy": {"held_out": [[0.5], [2]]}}):
        beside.write_text(json.dumps(bad))
        with pytest.raises(CheckpointError, match="medusa_lm_head.json: accuracy.held_out is"):
            known_accuracy(heads, 2)
