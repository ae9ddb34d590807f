"""Which provider runs what, and the options that GPUs get: data, checked where there is none."""

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from runtime import graphs, sessions
from runtime.buckets import node_buckets, row_buckets
from runtime.errors import ConfigurationError
from runtime.manifest import FORMS, STEP_INPUTS, STEP_OUTPUTS, Manifest, capacity_of
from runtime.params import MAX_NODES, PROVIDERS, EngineConfig
from runtime.providers import INSTALL, NAMES, choose, cuda_options, profile, tensorrt_options
from tests.fake import fake_manifest

CPU, CUDA, TENSORRT = (NAMES[name] for name in ("cpu", "cuda", "tensorrt"))
EVERYTHING = (TENSORRT, CUDA, CPU)
# As onnxruntime-gpu 1.31.1's libraries name them.
KNOWN_OF_CUDA = {
    "device_id", "arena_extend_strategy", "use_tf32", "enable_cuda_graph", "gpu_mem_limit", "cudnn_conv_algo_search",
    "do_copy_in_default_stream", "tunable_op_enable", "prefer_nhwc", "sdpa_kernel",
}  # fmt: skip
KNOWN_OF_TENSORRT = {
    "device_id", "trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable",
    "trt_timing_cache_path", "trt_max_workspace_size", "trt_fp16_enable", "trt_bf16_enable", "trt_detailed_build_log",
    "trt_op_types_to_exclude", "trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes",
}  # fmt: skip


def padded(precision: str = "fp16", **changes: object) -> Manifest:
    cache = ("key_0", "value_0")
    return fake_manifest(
        form="padded", precision=precision, inputs=(*STEP_INPUTS, *cache), kv_heads=2, heads=4,
        outputs=(*STEP_OUTPUTS["padded"], *(f"new_{name}" for name in cache)), **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "form", "precision", "available", "chosen"),
    [
        ("auto", "ragged", "int8", EVERYTHING, "cpu"),
        ("cpu", "ragged", "fp32", EVERYTHING, "cpu"),
        ("auto", "padded", "fp16", EVERYTHING, "cuda"),
        ("auto", "padded", "fp16", (CPU,), "cpu"),
        ("cpu", "padded", "fp32", EVERYTHING, "cpu"),
        ("cuda", "padded", "bf16", EVERYTHING, "cuda"),
        ("tensorrt", "padded", "fp16", EVERYTHING, "tensorrt"),
        ("cuda", "padded", "int4", (CUDA, CPU), "cuda"),
    ],
)
def test_a_provider_is_chosen(asked: str, form: str, precision: str, available: tuple[str, ...], chosen: str) -> None:
    manifest = padded(precision) if form == "padded" else fake_manifest(precision=precision)
    assert choose(asked, manifest, available) == chosen


@pytest.mark.parametrize(
    ("asked", "form", "precision", "available", "words"),
    [
        ("cuda", "padded", "fp16", (CPU,), "no CUDAExecutionProvider: install onnxruntime-gpu in onnxruntime's place"),
        ("cuda", "padded", "fp16", (CPU,), "pip install 'onnxruntime-gpu[cuda,cudnn]"),
        ("tensorrt", "padded", "fp16", (CUDA, CPU), "tensorrt-cu13"),
        ("cpu", "padded", "fp32", (CUDA,), "no CPUExecutionProvider"),
        ("cuda", "ragged", "int8", EVERYTHING, "--form padded"),
        ("tensorrt", "ragged", "int8", EVERYTHING, "runs on CPUs only"),
        ("auto", "padded", "bf16", (CPU,), "no MatMul"),
        ("cpu", "padded", "bf16", EVERYTHING, "--provider cuda"),
        ("tensorrt", "padded", "int4", EVERYTHING, "MatMulNBits"),
    ],
)
def test_a_provider_that_cannot_is_an_error_and_no_fallback(
    asked: str, form: str, precision: str, available: tuple[str, ...], words: str
) -> None:
    manifest = padded(precision) if form == "padded" else fake_manifest(precision=precision)
    with pytest.raises(ConfigurationError) as caught:
        choose(asked, manifest, available)
    assert words in str(caught.value)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("reason", ["", "Please install TensorRT libraries"])
def test_a_provider_whose_libraries_are_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, provider: str, reason: str
) -> None:
    """onnxruntime-gpu without CUDA names CUDA among its providers, and then makes a session without it; or fails."""
    given: dict[str, object] = {}

    class Dropped:
        def __init__(self, graph: bytes, **options: object) -> None:
            given.update(options)
            if reason:
                raise RuntimeError(f"{reason}\n")

        def get_providers(self) -> list[str]:
            return [CPU]

    monkeypatch.setattr(ort, "get_available_providers", lambda: list(EVERYTHING))
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", Dropped)
    with pytest.raises(ConfigurationError) as caught:
        graphs.check_provider(provider)
    assert f"provider {provider} does not load on this machine" in str(caught.value)
    assert INSTALL[provider] in str(caught.value) and reason in str(caught.value)
    assert given == {"providers": [NAMES[provider]], "enable_fallback": 0}, "ONNX Runtime's own would be silent"


def test_a_provider_that_runs_a_graph_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by a real one, under another's name."""
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setitem(NAMES, "cuda", CPU)
    graphs.check_provider("cuda")


@pytest.mark.parametrize(("provider", "checked"), [("cpu", []), ("cuda", ["cuda"]), ("tensorrt", ["cuda", "tensorrt"])])
def test_what_graphs_need_is_checked_before_they_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, checked: list[str]
) -> None:
    """A graph that must not run on the CPU fails without its provider, and would be taken for a damaged one."""
    found: list[str] = []
    monkeypatch.setattr(graphs, "check_provider", found.append)
    graphs.Opener(padded(), 8, provider, 0, tmp_path, lambda message: None)
    assert found == checked


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every provider were there."""
    monkeypatch.setattr(graphs, "check_provider", lambda provider: None)


def test_tensorrt_is_built_for_short_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run past the profile's largest shape would build another engine in the middle of a request."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(EVERYTHING))
    config = EngineConfig(rows=1, kv_memory=1 << 30, provider="tensorrt", chunk=65)
    with pytest.raises(ConfigurationError, match="chunk is 65: .* at most 64 nodes"):
        sessions.open_session(tmp_path, padded(), config, lambda message: None)


def test_an_unknown_provider_is_no_configuration() -> None:
    assert set(PROVIDERS) == {"auto", *NAMES}
    with pytest.raises(ConfigurationError, match="one of auto, cpu, cuda, tensorrt"):
        EngineConfig(provider="rocm")


@pytest.mark.parametrize("precision", FORMS["padded"])
@pytest.mark.parametrize("whole", [True, False])
def test_options_are_ones_that_onnxruntime_knows(precision: str, whole: bool) -> None:
    cuda = cuda_options(padded(precision), capture=whole)
    assert set(cuda) <= KNOWN_OF_CUDA and cuda["enable_cuda_graph"] == str(int(whole))
    assert cuda["use_tf32"] == "0", "float32 on CUDA is compared with float32 on the CPU"
    tensorrt = tensorrt_options(padded(precision), 8, Path("/cache"), whole)
    assert set(tensorrt) == KNOWN_OF_TENSORRT
    assert all(isinstance(value, str) for value in (*cuda.values(), *tensorrt.values()))
    kinds = {"fp16": ("1", "0"), "int4": ("1", "0"), "bf16": ("0", "1"), "fp32": ("0", "0")}
    assert (tensorrt["trt_fp16_enable"], tensorrt["trt_bf16_enable"]) == kinds[precision]
    assert tensorrt["trt_op_types_to_exclude"] == ("" if whole else "Attention,TensorScatter,RotaryEmbedding")
    assert tensorrt["trt_engine_cache_path"] == tensorrt["trt_timing_cache_path"] == "/cache"


@pytest.mark.parametrize(
    ("library", "names"),
    [
        ("libonnxruntime_providers_cuda.so", {*KNOWN_OF_CUDA, "kSameAsRequested"}),
        ("libonnxruntime_providers_tensorrt.so", KNOWN_OF_TENSORRT),
        ("onnxruntime_pybind11_state", {"gpu_graph_id", *graphs.GPU_ENTRIES, *graphs.TENSORRT_ENTRIES}),
    ],
)
def test_options_are_named_in_the_installed_libraries(library: str, names: set[str]) -> None:
    """A misspelt entry of a session or a run is ignored without a word."""
    found = [path for path in (Path(ort.__file__).parent / "capi").iterdir() if path.name.startswith(library)]
    if not found:
        pytest.skip("onnxruntime-gpu is not installed here")
    content = found[0].read_bytes()
    assert {name for name in names if b"\0" + name.encode() + b"\0" not in content} == set()


def shapes_of(text: str) -> dict[str, tuple[int, ...]]:
    parts = (part.rsplit(":", 1) for part in text.split(","))
    return {name: tuple(int(size) for size in shape.split("x")) for name, shape in parts}


def test_a_profile_names_every_input_and_holds_every_bucket() -> None:
    manifest = padded(context=2048, capacity=capacity_of(2048))
    options = tensorrt_options(manifest, 12, Path("/cache"), True)
    low, usual, high = (shapes_of(options[f"trt_profile_{which}_shapes"]) for which in ("min", "opt", "max"))
    assert list(low) == list(usual) == list(high) == list(manifest.inputs)
    assert low["key_0"] == (1, 2, capacity_of(2048), 64) and high["value_0"] == (12, 2, capacity_of(2048), 64)
    assert low["wanted"] == (1,) and high["wanted"] == (12 * MAX_NODES,)
    for rows in row_buckets(12):
        for nodes in node_buckets():
            for name, shape in shapes_of(profile(manifest, rows, nodes)).items():
                bounds = zip(low[name], shape, high[name], strict=True)
                assert all(least <= size <= most for least, size, most in bounds), (name, shape)
    for name, shape in usual.items():
        assert all(least <= size <= most for least, size, most in zip(low[name], shape, high[name], strict=True))


def test_engines_are_kept_beside_the_artifact_by_what_they_were_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = padded(files={"decoder.onnx": {"size": 1, "sha256": "a"}})
    artifact = tmp_path / "artifacts" / "mine"
    place = sessions.engine_cache(artifact, manifest, 8)
    assert place.parent == tmp_path / "artifacts" / ".cache" / "mine" and place.name.startswith("tensorrt-")
    assert place == sessions.engine_cache(artifact, manifest, 8)
    others = [
        sessions.engine_cache(artifact, replace(manifest, files={"decoder.onnx": {"size": 1, "sha256": "b"}}), 8),
        sessions.engine_cache(artifact, manifest, 16),
        sessions.engine_cache(artifact, replace(manifest, precision="fp32"), 8),
    ]
    monkeypatch.setattr("runtime.machine.gpus", lambda: ("NVIDIA H200",))
    others.append(sessions.engine_cache(artifact, manifest, 8))
    monkeypatch.setattr("runtime.machine.versions", lambda packages: {"tensorrt": "10.16"})
    others.append(sessions.engine_cache(artifact, manifest, 8))
    assert len({place, *others}) == 6


def test_rows_that_do_not_fit_the_budget_are_refused_with_the_arithmetic() -> None:
    manifest = padded(context=2048, capacity=capacity_of(2048))
    row = manifest.capacity * manifest.kv_bytes
    assert manifest.kv_bytes == 2 * 2 * 64 * 2, "two bytes a value in fp16"
    sessions.check_memory(manifest, EngineConfig(rows=4, kv_memory=4 * row))
    with pytest.raises(ConfigurationError, match=f"4 rows x 2112 tokens x 512 bytes = {4 * row} .* at most 3 rows"):
        sessions.check_memory(manifest, EngineConfig(rows=4, kv_memory=4 * row - 1))


class Engine:
    """A session that TensorRT took, but for some kinds of nodes."""

    def __init__(self, others: list[str]) -> None:
        self._others = others

    def get_provider_graph_assignment_info(self) -> list[object]:
        node = lambda kind: type("Node", (), {"op_type": kind})()  # noqa: E731
        part = lambda name, kinds: type(  # noqa: E731
            "Part", (), {"ep_name": name, "get_nodes": lambda self: [node(kind) for kind in kinds]}
        )()
        return [part(TENSORRT, ["MatMul"]), part(CUDA, self._others)]


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("fails", [False, True])
def test_attention_runs_on_cuda_where_the_engine_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    built: list[str] = []

    def load(path: Path, threads: int, providers: list[tuple[str, dict[str, str]]], entries: object) -> Engine:
        assert [name for name, _ in providers] == [TENSORRT, CUDA]
        built.append(providers[0][1]["trt_op_types_to_exclude"])
        if fails and not built[-1]:
            raise graphs.ArtifactError("the parser stopped at KVCacheUpdate")
        return Engine(["Attention", "TensorScatter"] if built[-1] else ["TensorScatter"])

    monkeypatch.setattr(graphs, "load", load)
    told: list[str] = []
    cache = tmp_path / "cache"
    graphs.Opener(padded(), 8, "tensorrt", 0, cache, told.append).decoder(tmp_path / "decoder.onnx")
    assert built == ["", "Attention,TensorScatter,RotaryEmbedding"] and cache.is_dir()
    assert ("the parser stopped at KVCacheUpdate" if fails else "leaves TensorScatter out") in caplog.text
    assert len(told) == 2 and str(cache) in told[0]


@pytest.mark.usefixtures("loads")
def test_a_whole_engine_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(graphs, "load", lambda *rest: built.append(rest) or Engine([]))
    graphs.Opener(padded(), 8, "tensorrt", 0, tmp_path, lambda message: None).decoder(tmp_path / "decoder.onnx")
    assert len(built) == 1


def test_an_engine_that_takes_long_is_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(graphs, "PATIENCE", 0.01)
    told: list[str] = []
    twice = threading.Event()

    def progress(message: str) -> None:
        told.append(message)
        if len(told) == 3:
            twice.set()

    with graphs._Waiting(progress, "building"):
        assert twice.wait(60)
    assert told[0] == "building" and told[1].startswith("building: ")


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(("provider", "captured"), [("cpu", None), ("cuda", "1")])
def test_cuda_captures_the_decoder_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, captured: str | None
) -> None:
    loaded: list[tuple[object, ...]] = []
    monkeypatch.setattr(graphs, "load", lambda *rest: loaded.append(rest))
    opener = graphs.Opener(padded(), 8, provider, 2, tmp_path, lambda message: None)
    opener.decoder(tmp_path / "decoder.onnx")
    opener.small(tmp_path / "commit.onnx")
    if provider == "cpu":
        assert loaded == [(tmp_path / "decoder.onnx", 2), (tmp_path / "commit.onnx", 2)]
        return
    for (_, _, [(name, options)], entries), graph in zip(loaded, (captured, "0"), strict=True):
        assert name == CUDA and options["enable_cuda_graph"] == graph
        assert entries == {"session.disable_cpu_ep_fallback": "1"}, "no node may run on the host unheard"


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(("gpus", "provider"), [(0, CPU), (1, CUDA)])
def test_auto_needs_a_gpu_and_not_only_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, provider: str
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(EVERYTHING))
    monkeypatch.setattr("runtime.machine.cuda_devices", lambda: gpus)
    monkeypatch.setattr(sessions, "PaddedSession", lambda directory, manifest, rows, chosen, opener: NAMES[chosen])
    config = EngineConfig(rows=1, kv_memory=1 << 30)
    assert sessions.open_session(tmp_path, padded(), config, lambda message: None) == provider
