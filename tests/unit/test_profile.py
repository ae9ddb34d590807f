"""Profiles: what is measured on a session whose clock is known, and where it is kept."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.cost import CostModel
from runtime.fit import fit
from runtime.manifest import Manifest
from runtime.params import EngineConfig
from runtime.profile import _processor_seconds, fingerprint, load_or_measure, measure, path_of, profile
from runtime.session import Batch, Draft, HostResult, Result
from runtime.survey import PATIENCE, SECONDS, Sample, row_points, token_points
from tests.fake import fake_manifest

FILES = {name: {"size": 1, "sha256": name} for name in ("decoder.onnx", "decoder.onnx.data", "heads.onnx")}


def undisturbed() -> tuple[float, float]:
    return 0.0, 0.0


class TimedSession:
    """Its clock moves by a known time with every run; what it computes is nothing."""

    provider = "timed"

    def __init__(self, manifest: Manifest, rows: int, scale: float = 1.0) -> None:
        self.manifest, self.rows, self.scale = manifest, rows, scale
        self.now = 0.0
        self.runs = 0
        self.filled = [0] * rows
        self.released: set[int] = set()
        self.busy: tuple[float, float] = (0.0, 0.0)  # from when to when the machine is five times as slow
        self.shares: np.random.Generator | None = None  # every other run takes three times as long
        self.fail = False

    def clock(self) -> float:
        return self.now

    def seconds(self, nodes: np.ndarray, length: np.ndarray, wanted: int) -> float:
        """1 ms, flat up to 16 tokens, then 40 us a token; and what rows, keys, pairs, padding and logits take."""
        tokens, rows = int(nodes.sum()), len(nodes)
        linear = 1e-3 + 4e-5 * max(0, tokens - 16)
        attention = 1e-4 * rows + 4e-7 * float(length.sum()) + 2e-8 * float((nodes * (length + nodes)).sum())
        return self.scale * (linear + attention + 5e-7 * rows * int(nodes.max()) + 1e-5 * max(0, wanted - 8))

    def drafting(self, rows: int, share: float = 1.0) -> float:
        return self.scale * (2e-4 + 5e-5 * rows) * (0.3 + 0.7 * share)

    def run(self, batch: Batch) -> Result:
        if self.fail:
            raise RuntimeError("out of memory")
        assert (batch.length + batch.count <= self.manifest.capacity).all()
        for row, length in enumerate(batch.length):
            assert length <= self.filled[row], "a run reads what nobody committed"
        self.runs += 1
        self._pass(self.seconds(batch.count, batch.length, len(batch.wanted)))
        return HostResult(np.zeros(0, np.int64), np.zeros((0, self.manifest.vocab), np.float32))

    def heads(self, rows: list[int], depth: int) -> Draft:
        self._pass(self.drafting(len(rows), depth / self.manifest.medusa_heads))
        return Draft(np.zeros((0, 0, 0), np.int64), np.zeros((0, 0, 0), np.float32))

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        self.filled[row] = length + len(path)

    def copy(self, source: int, target: int, length: int) -> None:
        assert length <= self.filled[source]
        self.filled[target] = length

    def release(self, row: int) -> None:
        self.released.add(row)

    def _pass(self, seconds: float) -> None:
        self.now += seconds * (5.0 if self.busy[0] <= self.now < self.busy[1] else 1.0)
        if self.shares is not None and self.shares.random() < 0.5:
            self.now += 2 * seconds


def session(rows: int = 8, scale: float = 1.0, **changes: object) -> TimedSession:
    return TimedSession(fake_manifest(**({"context": 1024, "capacity": 1088, "files": FILES} | changes)), rows, scale)


def quiet(message: str) -> None:
    pass


def errors(cost: CostModel, timed: TimedSession, seed: int = 0, count: int = 300) -> np.ndarray:
    """Relative errors on steps that nobody measured: uneven trees and contexts, some with a prompt."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        rows = int(rng.integers(1, timed.rows + 1))
        nodes, length = rng.integers(2, 17, rows), rng.integers(20, min(900, timed.manifest.context - 64), rows)
        silent = 0
        if rng.random() < 0.3:
            nodes[0] = rng.integers(16, 65)
            silent = int(nodes[0]) - 1
        tokens = int(nodes.sum())
        attended = int((nodes * (length + nodes)).sum())
        predicted = cost.decoder(rows, tokens, int(nodes.max()), attended, silent, int(length.sum()))
        result.append(float(predicted) / timed.seconds(nodes, length, tokens - silent) - 1)
    return np.abs(result)


@pytest.mark.parametrize("rows", [1, 3, 8, 32])
def test_steps_that_were_not_measured_are_predicted(rows: int) -> None:
    timed = session(rows)
    cost = measure(timed, exact=True, even=False, rows=rows, progress=quiet, clock=timed.clock)
    found = errors(cost, timed)
    assert np.median(found) < 0.02 and np.quantile(found, 0.95) < 0.06
    for drafting in range(1, rows + 1):
        assert cost.heads(drafting) == pytest.approx(timed.drafting(drafting), rel=0.02)
        assert cost.heads(drafting, 0.5) == pytest.approx(timed.drafting(drafting, 0.5), rel=0.02)


def test_prices_are_told_apart() -> None:
    timed = session()
    cost = measure(timed, exact=True, even=False, rows=8, progress=quiet, clock=timed.clock)
    assert (cost.key, cost.pair, cost.slot) == pytest.approx((4e-7, 2e-8, 5e-7), rel=0.05)


def test_a_table_is_filled_from_the_next_rows() -> None:
    """8 rows were timed with 16 tokens only: more tokens cost as much more as they do in one row."""
    seconds = {(1, 2): 1.0, (1, 16): 2.0, (1, 64): 5.0, (8, 16): 3.0}
    cost = fit([Sample(r, t, -(-t // r), 0, 0, 10 * r, second) for (r, t), second in seconds.items()])
    assert cost.decoder(8, 64, 0, 0, 0, 0) == pytest.approx(6.0)
    assert cost.decoder(8, 40, 0, 0, 0, 0) == pytest.approx(4.5)


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_what_the_packer_adds_is_counted(exact: bool, even: bool) -> None:
    timed = session()
    cost = measure(timed, exact, even, rows=8, progress=quiet, clock=timed.clock)
    assert np.quantile(errors(cost, timed), 0.95) < 0.06
    one = np.array([1])
    assert cost.decoder(1, 1, 1, 101, 0, 100) == pytest.approx(timed.seconds(one, one * 100, 1), rel=0.05)


def test_a_busy_moment_bends_nothing() -> None:
    timed = session()
    timed.busy = (0.7, 1.2)
    cost = measure(timed, exact=True, even=False, rows=8, progress=quiet, clock=timed.clock)
    assert np.quantile(errors(cost, timed), 0.95) < 0.06


def test_a_fast_model_takes_a_moment_and_a_slow_one_at_most_a_minute() -> None:
    fast = session()
    measure(fast, exact=True, even=False, rows=8, progress=quiet, clock=fast.clock)
    assert SECONDS <= fast.now < 3
    slow, said = session(scale=400), []  # 0.4 s a step of one token, 2 s one of 64
    cost = measure(slow, exact=True, even=False, rows=8, progress=said.append, clock=slow.clock)
    assert PATIENCE / 2 < slow.now < 60
    assert any("round 2" in message for message in said), "fewer kinds of steps rather than each of them once"
    assert np.median(errors(cost, slow)) < 0.05
    hopeless = session(scale=20000)
    cost = measure(hopeless, exact=True, even=False, rows=8, progress=quiet, clock=hopeless.clock)
    assert cost.decoder(1, 2, 2, 100) > 10


def test_an_artifact_without_heads_and_with_a_short_context() -> None:
    timed = session(rows=2, medusa_heads=0, context=32, capacity=96)
    cost = measure(timed, exact=True, even=False, rows=2, progress=quiet, clock=timed.clock)
    assert cost.heads(2) == 0
    nodes, length = np.array([8, 3]), np.array([20, 10])
    predicted = cost.decoder(2, 11, 8, int((nodes * (length + nodes)).sum()), 0, 30)
    assert predicted == pytest.approx(timed.seconds(nodes, length, 11), rel=0.05)


def test_all_rows_are_given_back() -> None:
    timed = session()
    measure(timed, exact=True, even=False, rows=8, progress=quiet, clock=timed.clock)
    assert timed.released == set(range(8))
    broken = session()
    broken.fail = True
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(broken, exact=True, even=False, rows=8, progress=quiet, clock=broken.clock)
    assert broken.released == set(range(8))


def test_a_survey_keeps_to_the_memory_for_keys_and_values(tmp_path: Path) -> None:
    timed = session()
    config = EngineConfig(rows=8, kv_memory=8 * 40 * timed.manifest.kv_bytes)
    profile(tmp_path / "a", timed, config, quiet, clock=timed.clock, processor=undisturbed)
    assert max(timed.filled) == 40


def test_points() -> None:
    assert row_points(1) == [1]
    assert row_points(6) == [1, 2, 4, 6]
    assert token_points(20, even=False) == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert token_points(6, even=False) == [1, 2, 3, 4, 6]
    assert token_points(12, even=True) == [2, 4, 6, 8, 12]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """The name of an artifact: a link to one of its versions."""
    (tmp_path / ".demo-1").mkdir()
    (tmp_path / "demo").symlink_to(".demo-1")
    return tmp_path / "demo"


def load(artifact: Path, timed: TimedSession, **options: object) -> CostModel:
    config = EngineConfig(**({"rows": 2} | options))  # type: ignore[arg-type]
    return load_or_measure(artifact, timed, config, quiet, clock=timed.clock, processor=undisturbed)


def kept(artifact: Path) -> list[Path]:
    return sorted((artifact.parent / ".cache").rglob("*"))


def test_a_profile_is_kept_beside_the_artifact_and_read_again(artifact: Path) -> None:
    first, second = session(2), session(2)
    cost = load(artifact, first)
    [directory, file] = kept(artifact)
    assert directory == artifact.parent / ".cache" / "demo"
    assert file.name.startswith("profile-") and file.suffix == ".json"
    assert not list((artifact.parent / ".demo-1").iterdir()), "artifacts may be read-only"
    again = load(artifact, second)
    assert first.runs > 0 == second.runs
    assert again.to_json() == cost.to_json()


def test_names_are_not_resolved(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is switched by the next export; from inside the directory its name is what `..` and `.` leave."""
    load(artifact, session(2))
    monkeypatch.chdir(artifact.parent)
    for name in ("demo", "demo/", "./demo", "x/../demo"):
        timed = session(2)
        load(Path(name), timed)
        assert timed.runs == 0


@pytest.mark.parametrize("options", [{"rows": 3}, {"threads": 1}, {"exact": False}])
def test_another_configuration_is_measured(artifact: Path, options: dict[str, object]) -> None:
    load(artifact, session(3), rows=2, threads=2)
    timed = session(3)
    load(artifact, timed, **({"rows": 2, "threads": 2} | options))
    assert timed.runs > 0
    assert len(kept(artifact)) == 3, "both are kept"


def test_another_artifact_or_machine_is_measured(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(artifact, session(2))
    for timed in (
        session(2, files=FILES | {"decoder.onnx.data": {"size": 1, "sha256": "other"}}),
        session(2, precision="int8"),
    ):
        load(artifact, timed)
        assert timed.runs > 0
    for name, value in (("cpu", ("Z80", ())), ("usable_cores", 1), ("versions", {"onnxruntime": "0.1"})):
        monkeypatch.setattr(f"runtime.machine.{name}", lambda *arguments, value=value: value)
        timed = session(2)
        load(artifact, timed)
        assert timed.runs > 0


def test_threads_by_default_are_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.machine.usable_cores", lambda: 6)
    timed, config = session(2), EngineConfig(rows=2)
    assert fingerprint(timed, config) == fingerprint(timed, replace(config, threads=6))
    assert fingerprint(timed, config) != fingerprint(timed, replace(config, threads=5))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace('"fingerprint"', '"print"'),
        lambda text: text.replace('"decoder.onnx"', '"decoder"', 1),
        lambda text: json.dumps(json.loads(text) | {"cost": {}}),
        lambda text: json.dumps(json.loads(text) | {"samples": [{"rows": 1}]}),
        lambda text: json.dumps(json.loads(text) | {"samples": 3}),
        lambda text: "\ud800",
    ],
)
def test_a_damaged_profile_is_measured_again(
    artifact: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[str], str]
) -> None:
    load(artifact, session(2))
    [_, file] = kept(artifact)
    file.write_bytes(damage(file.read_text()).encode("utf-8", "surrogatepass"))
    timed = session(2)
    load(artifact, timed)
    assert timed.runs > 0
    [record] = caplog.records
    assert record.levelno == logging.WARNING and str(file) in record.getMessage()
    assert "measuring again" in record.getMessage()
    last = session(2)
    load(artifact, last)
    assert last.runs == 0, "the damaged one was replaced"
    assert kept(artifact) == [file.parent, file]


def test_a_place_that_cannot_be_written_is_named_and_lived_with(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (artifact.parent / ".cache").write_text("in the way")
    timed = session(2)
    assert load(artifact, timed).decoder(1, 2, 2, 100) > 0
    assert timed.runs > 0
    assert str(artifact.parent / ".cache" / "demo") in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_profile_of_a_busy_machine_is_used_and_not_kept(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    timed = session(2)
    timed.shares = np.random.default_rng(4)
    cost = load(artifact, timed)
    assert np.median(errors(cost, timed)) < 0.05
    assert kept(artifact) == []
    assert "busy" in caplog.records[-1].getMessage()
    timed = session(2)
    load(artifact, timed)
    assert timed.runs > 0 and len(kept(artifact)) == 2


@pytest.mark.parametrize(("waited", "keeps"), [(0.3, False), (0.1, True), (0.0, True)])
def test_a_profile_of_a_machine_that_others_use_is_not_kept(waited: float, keeps: bool, artifact: Path) -> None:
    """They make all steps slow alike, so that their times agree."""
    timed = session(2)
    seconds = lambda: ((1 - waited) * timed.now, waited * timed.now)  # noqa: E731
    profile(artifact, timed, EngineConfig(rows=2), lambda _: None, clock=timed.clock, processor=seconds)
    assert bool(kept(artifact)) == keeps


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not count it")
def test_processor_seconds_are_this_process_s() -> None:
    began, before = time.process_time(), _processor_seconds()
    while time.process_time() < began + 0.2:
        pass
    assert 0.15 < _processor_seconds()[0] - before[0] < 1.0


def test_a_fresh_profile_replaces_what_was_kept(artifact: Path) -> None:
    load(artifact, session(2))
    slower, config, said = session(2, scale=2), EngineConfig(rows=2), []
    measured = profile(artifact, slower, config, said.append, fresh=True, clock=slower.clock, processor=undisturbed)
    assert load(artifact, session(2)).to_json() == measured.cost.to_json()
    assert str(path_of(artifact, fingerprint(slower, config))) in said[0]
    assert any("round" in message for message in said)
    read = profile(artifact, slower, config, said.append, clock=slower.clock, processor=undisturbed)
    assert read.samples == measured.samples
