"""A model that does not fit into memory is refused with the arithmetic, before it is loaded."""

from pathlib import Path

import pytest

from runtime import memory
from runtime.errors import ConfigurationError
from runtime.params import EngineConfig
from tests.fake import fake_manifest

GIB = 2**30
SIZES = {"decoder.onnx.data": 3 * GIB, "heads.onnx.data": GIB, "tokenizer.json": 5 * GIB}
MODEL = fake_manifest(files={name: {"size": size, "sha256": ""} for name, size in SIZES.items()})


def machine(root: Path, free: int, **groups: tuple[str, int, int]) -> tuple[Path, Path]:
    """`free` bytes on the machine; of each control group, outermost first, its limit, use and copies of files."""
    proc, cgroup = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {free >> 10} kB\n")
    place = cgroup
    for name, (limit, used, cached) in groups.items():
        place /= name
        place.mkdir(parents=True)
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 0\n")
    (proc / "self" / "cgroup").write_text(f"9:name=systemd:/\n0::/{place.relative_to(cgroup)}\n")
    return proc, cgroup


def test_the_narrowest_limit_counts(tmp_path: Path) -> None:
    assert memory.available(*machine(tmp_path / "free", 8 * GIB)) == 8 * GIB
    outer, inner = (str(6 * GIB), 3 * GIB, GIB), ("max", GIB, 0)
    assert memory.available(*machine(tmp_path / "outer", 8 * GIB, pod=outer, box=inner)) == 4 * GIB
    assert memory.available(*machine(tmp_path / "inner", 8 * GIB, pod=inner, box=outer)) == 4 * GIB
    assert memory.available(*machine(tmp_path / "machine", 2 * GIB, pod=outer)) == 2 * GIB
    assert memory.available(tmp_path / "nothing", tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("free", "kv_memory", "advice"),
    [
        (5 * GIB, 2 * GIB, r"4\.0 for weights \+ 2\.0 .* \+ 0\.5 .* = 6\.5 GiB, and 5\.0 .*: take --kv-memory 512M"),
        (4 * GIB, 2 * GIB, "fewer bits"),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch, free: int, kv_memory: int, advice: str) -> None:
    monkeypatch.setattr(memory, "available", lambda: free)
    rows = -(-kv_memory // (MODEL.capacity * MODEL.kv_bytes))
    with pytest.raises(ConfigurationError, match=advice):
        memory.check(MODEL, EngineConfig(rows=rows, kv_memory=kv_memory))


def test_what_fits_or_cannot_be_known_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(rows=1, kv_memory=100 * GIB)  # a row never takes more than its capacity
    for free in (4 * GIB + memory.BESIDE + MODEL.capacity * MODEL.kv_bytes, None):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        memory.check(MODEL, config)
    monkeypatch.setattr(memory, "available", lambda: 4 * GIB)
    with pytest.raises(ConfigurationError):
        memory.check(MODEL, config)
