"""The driver of the peers, with fake engines in processes of their own."""

import argparse
import ast
import contextlib
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from export.synthetic import synthesize
from runtime.bench.machine import Machine
from runtime.bench.peers import catalogue, command, entry, process
from runtime.bench.peers.catalogue import Peer
from runtime.bench.peers.contest import Contest, Run, Setting, Task, fast, steady
from runtime.bench.peers.entry import Entries, Given
from runtime.bench.peers.install import FEATURES, NotInstalled, cmake_arguments, install
from runtime.bench.peers.process import Died, Failed, Process
from runtime.bench.peers.report import Report, summarize
from runtime.errors import ConfigurationError

PEERS = Path(catalogue.__file__).parent
# An engine whose answers are easy to foretell; `speculation` says how it behaves.
FAKE = """
import os, subprocess, sys, time
print("a library that prints")

class Engine:
    def prepare(self, checkpoint, out, precision):
        if precision == "bad":
            raise ValueError("no such precision")
        open(out + "/form", "w").write(precision)

    def load(self, checkpoint, prepared, precision, threads, rows, length, simulated):
        if precision == "unloadable":
            raise MemoryError("too large")
        self.delay = {"slow": 0.02}.get(precision, 0.002)
        print("loaded", open(prepared + "/form").read())
        return {"versions": {"fake": "1.0"}, "notes": ["fakes nothing"]}

    def run(self, prompts, new_tokens, ignore_eos, speculation, step):
        print("runs", len(prompts))
        if speculation == "refuse" and len(prompts) > 1:
            raise NotImplementedError("one sequence at a time")
        if speculation == "die":
            print("fatal error: out of patience", file=sys.stderr, flush=True)
            os._exit(3)
        if speculation == "hang":
            time.sleep(60)
        if speculation == "child":
            print(subprocess.Popen(["sleep", "60"]).pid, file=sys.stderr, flush=True)
            time.sleep(60)
        if speculation == "mute":
            return
        for i in range(new_tokens):
            time.sleep(self.delay)
            step([[p[0] + i] for p in prompts])
"""


def fake_peer(name: str = "fake", *, precisions: tuple[str, ...] = ("fp32",), install: tuple[str, ...] = ()) -> Peer:
    return Peer(name, "fake", precisions, ("off",), install, {}, None)


@pytest.fixture(scope="module")
def fake_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("host")
    shutil.copy(PEERS / "host.py", home)
    (home / "engines").mkdir()
    (home / "engines" / "fake.py").write_text(FAKE)
    return home / "host.py"


@pytest.fixture
def start(fake_host: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """start(precision): a loaded fake."""
    running: list[Process] = []

    def make(precision: str = "fp32") -> Process:
        log = tmp_path / f"{len(running)}.log"
        running.append(Process(precision, [sys.executable, "-P", str(fake_host), "fake"], 1, log))
        place = {"checkpoint": "", "precision": precision}
        running[-1].ask({"do": "prepare", "out": str(tmp_path), **place}, 30)
        options = {"threads": 1, "rows": 2, "length": 9, "simulated": False}
        running[-1].ask({"do": "load", "prepared": str(tmp_path), **place, **options}, 30)
        return running[-1]

    yield make
    for one in running:
        one.close()


def run_message(speculation: str = "off", rows: int = 2) -> dict[str, object]:
    prompts = [[10 * row] for row in range(rows)]
    return {"do": "run", "prompts": prompts, "new_tokens": 3, "ignore_eos": True, "speculation": speculation}


def status(one: Process) -> str:
    return str(psutil.Process(one._process.pid).status())


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "it goes on"
            time.sleep(0.01)


def test_an_engine_answers_whatever_its_libraries_print(start: Callable[..., Process]) -> None:
    reply = start().ask(run_message(), 30)
    assert reply["tokens"] == [[0, 1, 2], [10, 11, 12]]
    assert [new for _, new in reply["steps"]] == [[1, 1]] * 3
    times = [at for at, _ in reply["steps"]]
    assert 0 < times[0] < times[1] < times[2] < 30


def test_a_refusal_leaves_the_engine_running(start: Callable[..., Process]) -> None:
    one = start()
    with pytest.raises(Failed, match="NotImplementedError: one sequence at a time") as refusal:
        one.ask(run_message("refuse"), 30)
    assert not isinstance(refusal.value, Died)
    assert one.ask(run_message("refuse", rows=1), 30)["tokens"] == [[0, 1, 2]]


def test_a_death_is_told_with_its_last_words(start: Callable[..., Process]) -> None:
    one = start()
    with pytest.raises(Died, match="exit code 3: fatal error: out of patience"):
        one.ask(run_message("die"), 30)
    assert not one.alive
    with pytest.raises(Died):
        one.ask(run_message(), 30)
    one = start()
    one._process.kill()
    with pytest.raises(Died, match="signal SIGKILL"):
        one.ask(run_message(), 30)


def test_an_engine_that_hangs_or_takes_all_memory_is_ended(
    start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = start(), start()
    with pytest.raises(Died, match="no answer within 0 seconds"):
        one.ask(run_message("hang"), 0.1)
    assert not one.alive
    monkeypatch.setattr(process, "MEMORY_LEFT", 1 << 60)
    with pytest.raises(Died, match="MiB of memory left"):
        other.ask(run_message("hang"), 30)
    assert not other.alive


def test_what_an_engine_started_ends_with_it(start: Callable[..., Process], tmp_path: Path) -> None:
    with pytest.raises(Died, match="no answer"):
        start().ask(run_message("child"), 1)
    await_end(int((tmp_path / "0.log").read_text().split()[-1]))


@pytest.mark.skipif(sys.platform != "linux", reason="there a stopped process outlives its driver")
def test_a_killed_driver_leaves_nobody_behind(fake_host: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from runtime.bench.peers.process import Died, Process\n"
        "one = Process('x', [sys.executable, '-P', sys.argv[1], 'fake'], 1, Path(sys.argv[2]))\n"
        "one.ask({'do': 'prepare', 'checkpoint': '', 'out': sys.argv[3], 'precision': 'fp32'}, 30)\n"
        "one.pause(); print(one._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(fake_host), str(tmp_path / "log"), str(tmp_path)]
    driver = subprocess.run(command, cwd=PEERS.parents[2], capture_output=True, text=True)
    assert driver.returncode == -signal.SIGKILL
    await_end(int(driver.stdout))


def test_a_paused_engine_stands_still(start: Callable[..., Process]) -> None:
    one = start()
    one.pause()
    assert status(one) == psutil.STATUS_STOPPED
    one.resume()
    assert one.ask(run_message(), 30)["tokens"][0] == [0, 1, 2]
    one.pause()
    one.close()
    assert not one.alive


def test_only_the_engine_whose_turn_it_is_runs(start: Callable[..., Process]) -> None:
    """Settings come in rotating order, each once a round, and nobody runs beside another."""
    engines = {("fake", precision): start(precision) for precision in ("fp32", "int8")}
    for one in engines.values():
        one.pause()
    settings = [Setting("fake", precision, "off", n) for n in (1, 2) for precision in ("fp32", "int8")]
    awake: list[list[str]] = []
    asked = Process.ask

    def ask(self: Process, message: dict[str, object], timeout: float) -> dict[str, object]:
        awake.append([key[1] for key, one in engines.items() if status(one) != psutil.STATUS_STOPPED])
        return asked(self, message, timeout)

    task = Task([[0], [7], [50], [70]], 1, 3, True, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Process, "ask", ask)
        patch.setattr("runtime.bench.peers.contest.SLOW", 0.0)
        runs = Contest(engines, 2).play(settings, task, 2, lambda text: None)
    order = [(run.repeat, settings.index(run.setting)) for run in runs]
    assert order == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 0), (2, 2), (2, 3), (2, 0), (2, 1)]
    assert awake == [[settings[i].precision] for _, i in order for _ in range(2)], "a warm run and one that counts"
    assert {run.tokens for run in runs if run.setting.concurrency == 2} == {4}, "two rows, two tokens after the first"
    assert all(status(one) == psutil.STATUS_STOPPED for one in engines.values())


def test_what_fails_is_noted_and_the_others_go_on(
    start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = {("fake", name): start(name) for name in ("fp32", "int8")}
    cases = (("fp32", "off", 1), ("fp32", "refuse", 2), ("fp32", "die", 1), ("int8", "off", 1), ("int8", "mute", 1))
    settings = [Setting("fake", *case) for case in cases]
    contest = Contest(engines, 2)
    runs = contest.play(settings, Task([[0], [7]], 1, 3, True, [[0, 1, 2], [7, 7, 7]]), 2, lambda text: None)
    assert [(run.setting.precision, run.repeat) for run in runs] == [("fp32", 0), ("int8", 0), ("int8", 1), ("int8", 2)]
    assert [run.same_texts for run in runs] == [1, 1, 0, 1], "the prompts take turns, one expects other tokens"
    refused, died, mute = contest.notes
    monkeypatch.setattr("runtime.bench.peers.contest.PATIENCE", 0.0)
    assert not contest.play(settings[3:4], Task([[0]], 1, 3, True, None), 1, lambda text: None)
    assert contest.notes.pop() == f"{settings[3]}: 3 tokens took 0 seconds: not run further"
    assert refused.startswith("fake fp32, speculation refuse, 2 at a time: NotImplementedError")
    assert died.startswith("fake fp32, speculation die, 1 at a time: its process ended, exit code 3")
    assert mute.startswith("fake int8, speculation mute, 1 at a time: no step had 1 sequences decoding")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(1.0, [1]), (3.0, [1]), (4.0, [2])], (3, 3.0, 2)),
        ([(1.0, [1, 0]), (2.0, [1, 1]), (5.0, [3, 2]), (6.0, [1, 1])], (7, 4.0, 2)),
        ([(1.0, [1, 1]), (2.0, [0, 4]), (4.0, [1, 1]), (9.0, [1, 0])], (6, 3.0, 2)),  # the second row ends at 4
        ([(1.0, [1, 0]), (2.0, [0, 1]), (3.0, [0, 1])], (0, 0.0, 0)),  # the first row ended before the second began
        ([(1.0, [1, 1])], (0, 0.0, 0)),
        ([], (0, 0.0, 0)),
    ],
)
def test_decoding_is_steady_from_the_last_first_token_to_the_first_last_one(
    steps: list[tuple[float, list[int]]], expected: tuple[int, float, int]
) -> None:
    assert steady(steps) == expected


def run_of(setting: Setting, repeat: int, tokens_per_second: float, same: int | None = None) -> Run:
    return Run(setting, repeat, 4, 200, 200 / tokens_per_second, 100 // setting.concurrency, same, 0.1)


def test_settings_far_from_their_engines_best_are_not_repeated() -> None:
    """Speculating and plain ones are compared among themselves, and each concurrency for itself."""
    cases = (("int8", "off", 1, 100.0), ("fp32", "off", 1, 69.0), ("int4", "off", 1, 71.0), ("int8", "auto", 1, 300.0))
    speeds = {Setting("a", precision, how, n): speed for precision, how, n, speed in cases}
    speeds |= {Setting("a", "fp32", "off", 8): 50.0, Setting("b", "fp32", "off", 1): 1.0}
    kept = fast(list(speeds), [run_of(setting, 0, speed) for setting, speed in speeds.items()])
    assert kept == [setting for setting, speed in speeds.items() if speed != 69.0]


def test_a_slow_setting_runs_in_the_first_round_alone(start: Callable[..., Process]) -> None:
    engines = {("fake", precision): start(precision) for precision in ("slow", "fp32")}
    settings = [Setting("fake", precision, "off", 1) for precision in ("slow", "fp32")]
    runs = Contest(engines, 2).play(settings, Task([[0]], 1, 3, True, None), 2, lambda text: None)
    assert [(run.setting.precision, run.repeat) for run in runs] == [("slow", 0), ("fp32", 0), ("fp32", 1), ("fp32", 2)]


def test_ratios_pair_runs_of_one_round_with_our_best() -> None:
    """The machine is half as fast in the second round, for all; the first round does not count."""
    plain, auto = Setting("Gorgon", "int8", "off", 1), Setting("Gorgon", "int8", "auto", 1)
    worse, peer, slow = (
        Setting("Gorgon", "int4", "off", 1),
        Setting("p", "Q4_0", "off", 1),
        Setting("p", "Q8_0", "off", 1),
    )
    runs = [run_of(slow, 0, 10.0, 4), run_of(auto, 0, 1e6)]
    for repeat, pace in ((1, 1.0), (2, 0.5)):
        speeds = ((plain, 100.0), (auto, 200.0), (worse, 80.0), (peer, 50.0))
        runs += [run_of(setting, repeat, speed * pace, 3) for setting, speed in speeds]
    figures = {f.setting: f for f in summarize(runs)}
    assert list(figures) == [auto, plain, worse, peer, slow], "the fastest first"
    of_peer = figures[peer]
    assert of_peer.over is not None and of_peer.plain_over is not None
    assert (of_peer.over.low, of_peer.over.high, of_peer.plain_over.median) == (4.0, 4.0, 2.0)
    assert (of_peer.tokens_per_second.median, of_peer.same_texts, of_peer.runs) == (37.5, 0.75, 2)
    assert figures[auto].over is None and figures[plain].plain_over is None
    assert (figures[slow].runs, figures[slow].over, figures[slow].same_texts) == (0, None, 1.0)


def report_of(runs: list[Run], acceptance: str) -> Report:
    return Report(
        Machine.here(), {"p": {"package": "1.2"}}, ["-DGGML_AVX=ON"], "checkpoint", 2, acceptance, "none", 32, 4,
        "Gorgon fp32", {"p Q4_0": 1}, runs, summarize(runs), ["q could not be installed: no compiler"],
    )  # fmt: skip


def test_a_report_shows_versions_notes_and_what_is_simulated() -> None:
    auto, peer = Setting("Gorgon", "int8", "auto", 1), Setting("p", "Q4_0", "lookup", 1)
    runs = [run_of(setting, repeat, 10.0, 2) for setting in (auto, peer) for repeat in range(7)]
    report = report_of(runs, "simulated")
    text = report.table()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert "simulated" in lines[2] and "measured" in lines[3] and "1.000 (1.000 to 1.000, 97%)" in lines[3]
    for part in ("p: package 1.2", "-DGGML_AVX=ON", "note: q could not be installed: no compiler", "50.0%"):
        assert part in text
    parts = json.loads(json.dumps(report.json()))
    assert [figures["acceptance"] for figures in parts["figures"]] == ["simulated", "measured"]
    assert parts["runs"][0]["tokens_per_second"] == 10.0 and parts["notes"] == report.notes


def test_the_build_of_llama_cpp_uses_what_the_processor_has() -> None:
    def on(arguments: list[str]) -> set[str]:
        return {argument[2:-3] for argument in arguments if argument.endswith("=ON")} & FEATURES.keys()

    avx2 = frozenset("sse4_2 avx avx2 fma f16c bmi2".split())
    avx512 = avx2 | set("avx512f avx512cd avx512vl avx512dq avx512bw avx512vbmi avx512_vnni avx512_bf16".split())
    amx = avx512 | {"amx_tile", "amx_int8"}
    assert on(cmake_arguments(avx2, None)) == {
        "GGML_SSE42",
        "GGML_AVX",
        "GGML_AVX2",
        "GGML_FMA",
        "GGML_F16C",
        "GGML_BMI2",
    }
    assert on(cmake_arguments(amx, "clang-16")) == FEATURES.keys() - {"GGML_AVX_VNNI"}
    assert "GGML_AVX512" not in on(cmake_arguments(avx512 - {"avx512bw"}, None))
    assert "-DCMAKE_CXX_COMPILER=clang++-16" in cmake_arguments(avx512, "clang-16")
    flag = "-DCMAKE_CXX_FLAGS=-D__AMX_INT8__=1"
    assert flag in cmake_arguments(amx, "clang-16") and flag not in cmake_arguments(avx512, "clang-16")
    with pytest.raises(NotInstalled, match="apt-get install clang-16"):
        cmake_arguments(amx, None)
    assert "-DGGML_NATIVE=ON" in cmake_arguments(frozenset(), None), "no list of features: the compiler finds out"


def test_every_peer_is_pinned_and_has_an_engine() -> None:
    peers = catalogue.catalogue()
    assert list(peers) == ["Gorgon", "transformers", "optimum", "onnxruntime-genai", "llama.cpp"]
    for peer in peers.values():
        assert "off" in peer.speculation
        assert peer.name == "Gorgon" or (PEERS / "engines" / f"{peer.engine}.py").is_file()
        assert {part.partition("[")[0] for part in peer.install} <= peer.pins.keys()


def test_engines_import_nothing_of_the_project() -> None:
    """They run where it is not installed."""
    for file in [PEERS / "host.py", *(PEERS / "engines").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            assert not {name.partition(".")[0] for name in names} & {"runtime", "export", "service"}, file


def wheel(directory: Path) -> Path:
    """A package with one empty module, `nothing`."""
    file, info = directory / "nothing-1.0-py3-none-any.whl", "nothing-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("nothing.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


def test_environments_are_made_once_and_failures_have_pips_reason(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(NotInstalled, match=r"(?i)error.*absent.*\(.*broken\.log\)"):
        install(fake_peer("broken", install=(str(tmp_path / "absent"),)), tmp_path, said.append)
    peer = fake_peer("whole", install=(str(wheel(tmp_path)),))
    python = install(peer, tmp_path, said.append)
    assert python == install(peer, tmp_path, said.append)
    assert said == ["installing broken", "installing whole"]
    subprocess.run([python, "-c", "import nothing"], check=True)
    with pytest.raises(ImportError):
        importlib.import_module("nothing")


def test_who_cannot_take_part_is_named(fake_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "HOST", fake_host)
    peers = {
        "fake": fake_peer(precisions=("fp32", "bad", "unloadable")),
        "broken": fake_peer("broken", install=(str(tmp_path / "absent"),)),
    }
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    entries = Entries(Given(tmp_path / "checkpoint", None, tmp_path / "home", 1))
    pairs = [(peer.name, precision) for peer in peers.values() for precision in peer.precisions]
    said: list[str] = []
    try:
        entries.prepare(peers, pairs, said.append)
        entries.prepare(peers, [("fake", "fp32")], said.append)
        entries.load(2, 9, False, said.append)
        assert list(entries.loaded) == [("fake", "fp32")] and entries.memory["fake fp32"] > 0
        assert said.count("fake fp32 reads the checkpoint") == 1, "what it made of it is kept"
    finally:
        entries.close()
    unread, absent, note, unloaded = entries.notes
    assert unread == "fake bad could not read the checkpoint: ValueError: no such precision"
    assert absent.startswith("broken could not be installed: ")
    assert unloaded == "fake unloadable could not be loaded: MemoryError: too large"
    assert note == "fake: fakes nothing" and entries.versions == {"fake": {"fake": "1.0"}}
    assert (tmp_path / "home" / ".gitignore").read_text() == "*\n"
    assert not list((tmp_path / "home").rglob("*.part"))


def parse(*arguments: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    command.add_parser(top.add_subparsers())
    return top.parse_args(["peers", *arguments])


def test_the_command_runs_us_beside_a_peer(
    fake_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a checkpoint to the table, the JSON and the plot: our own engine in a process of its own, and a fake one."""
    monkeypatch.setattr(entry, "HOST", fake_host)
    own = catalogue.catalogue()["Gorgon"]
    monkeypatch.setattr(command, "catalogue", lambda: {"Gorgon": own, "fake": fake_peer()})
    synthesize("tiny", tmp_path / "tiny")
    options = parse(
        "--checkpoint", str(tmp_path / "tiny"), "--heads", str(tmp_path / "tiny" / "medusa_lm_head.safetensors"),
        "--engines", "Gorgon/fp32,fake", "--random-prompts", "8", "--max-tokens", "6", "--groups", "2", "--repeat", "1",
        "--concurrency", "1,2", "--threads", "1", "--home", str(tmp_path / "home"),
        "--json", str(tmp_path / "out.json"), "--png", str(tmp_path / "out.png"),
    )  # fmt: skip
    assert command.run(options) == 0
    parts = json.loads((tmp_path / "out.json").read_text())
    settings = [f["setting"] for f in parts["figures"]]
    ours = [f for f in parts["figures"] if f["setting"]["engine"] == "Gorgon"]
    assert {(s["engine"], s["speculation"], s["concurrency"]) for s in settings} == {
        (engine, speculation, n)
        for engine, speculation in (("Gorgon", "off"), ("Gorgon", "auto"), ("fake", "off"))
        for n in (1, 2)
    }
    assert all(f["same_texts"] == 1 for f in ours) and parts["reference"] == "Gorgon fp32"
    assert set(parts["versions"]) == {"Gorgon", "fake"} and parts["notes"] == ["fake: fakes nothing"]
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert "same texts: answers equal to those of Gorgon fp32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "absent"], "--engines has 'absent'"),
        (["--engines", "Gorgon/Q4_0"], "--engines has 'Gorgon/Q4_0'"),
        (["--checkpoint", "absent"], "holds no config.json"),
        (["--template", "{x}"], "go with --prompts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_work_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        command.run(parse("--home", str(tmp_path), "--engines", "Gorgon/fp32", *arguments))
