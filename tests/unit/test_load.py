import argparse
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from runtime.bench import load
from runtime.bench.arrivals import Closed, Open, draw, random_words
from runtime.bench.inprocess import drive_engine
from runtime.bench.load_plot import plot
from runtime.bench.load_report import LoadReport, compare, score
from runtime.bench.machine import Machine, versions
from runtime.bench.processors import ProcessorTime, Shares
from runtime.bench.server import StartedServer, arguments
from runtime.bench.timeline import Limits, LoadRun, Percentiles, Setting, Timeline, summarize
from runtime.engine import Engine
from runtime.errors import ConfigurationError, GorgonError, StepError
from runtime.params import EngineConfig, SamplingParams
from service.options import read as read_options
from tests.fake import FakeSession, fake_cost, fake_manifest, fake_tokenizer

SHARES = Shares(0.01, 0.7, 0.1)
TWO = Closed(2)
TEXTS = [f"question {i}" for i in range(10)]

# 11 tokens in 5 events, two of which came with one read; the last event, at 2.0 too, had the usage.
SPECULATIVE = Timeline(1.0, 1.0, (1.5, 1.6, 1.6, 1.9, 2.0), 2.0, "completed", 20, 11)
# 3 tokens in as many events, sent 0.1 s late
PLAIN = Timeline(2.0, 2.1, (2.2, 2.4, 2.7), 2.7, "completed", 8, 3)
# nothing to time between, and a text of its own only in the end
SHORT = Timeline(0.0, 0.0, (), 0.3, "completed", 5, 1)
REFUSED = Timeline(0.0, 0.0, (), 0.1, "refused", error="429: full")
BROKEN = Timeline(0.0, 0.0, (0.5, 0.6), 4.0, "disconnected", error="reset")


def run_of(
    speculation: int | str, repeat: int, seconds: float, load: Closed | Open = TWO, via: str = "http"
) -> LoadRun:
    """Two answers of 100 tokens, all of it in `seconds`, half of that before the first event."""
    setting = Setting(load, speculation, via)  # type: ignore[arg-type]
    answer = Timeline(0.0, 0.0, (seconds / 2, seconds), seconds, "completed", 10, 100)
    return summarize(setting, repeat, [answer, answer], Limits(0.05), SHARES)


def test_times_of_one_answer() -> None:
    assert SPECULATIVE.first == 0.5
    assert SPECULATIVE.per_token == pytest.approx(0.5 / 10), "the first token is not decoding"
    assert SPECULATIVE.gaps == pytest.approx([0.1, 0.0, 0.3, 0.1])
    assert PLAIN.first == pytest.approx(0.1), "from when it was sent, not from when it was due"
    assert PLAIN.per_token == pytest.approx(0.25)
    assert PLAIN.gaps == pytest.approx([0.2, 0.3])
    assert (SHORT.first, SHORT.per_token, SHORT.gaps) == (0.3, None, [])


def test_figures_of_a_run() -> None:
    timelines = [SPECULATIVE, PLAIN, SHORT, REFUSED, BROKEN]
    run = summarize(Setting(Closed(4), "auto"), 3, timelines, Limits(0.1, 0.4), SHARES)
    assert (run.setting, run.repeat, run.shares) == (Setting(Closed(4), "auto"), 3, SHARES)
    assert (run.requests, run.completed, run.errors) == (5, 3, {"refused": 1, "disconnected": 1})
    assert (run.prompt_tokens, run.tokens) == (33, 15), "of what broke off nothing counts"
    assert run.seconds == 4.0, "the run ends with its last request, whatever that came to"
    assert (run.tokens_per_second, run.requests_per_second) == (15 / 4, 3 / 4)
    assert run.first == Percentiles(*np.percentile([0.5, 0.1, 0.3], (50, 95, 99)))
    assert run.latency == Percentiles(*np.percentile([1.0, 2.7 - 2.1, 0.3], (50, 95, 99)))
    assert run.per_token == Percentiles(*np.percentile([0.05, 0.25], (50, 95, 99)))
    assert run.gap is not None and run.gap.p50 == pytest.approx(np.percentile([0.1, 0.0, 0.3, 0.1, 0.2, 0.3], 50))
    assert run.late == pytest.approx(0.1)
    # 0.5 s to the first token is too long, 0.25 s a token too; the answer of one token has none to be slow
    assert (run.good, run.good_tokens, run.goodput, run.good_tokens_per_second) == (1, 1, 0.25, 0.25)


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        (Limits(0.2), [SPECULATIVE, SHORT]),
        (Limits(0.3), [SPECULATIVE, PLAIN, SHORT]),
        (Limits(0.3, 0.2), [PLAIN]),
        (Limits(0.01), [SHORT]),
    ],
)
def test_goodput_keeps_to_every_limit(limits: Limits, good: list[Timeline]) -> None:
    run = summarize(Setting(Closed(1), 4), 1, [SPECULATIVE, PLAIN, SHORT], limits, SHARES)
    assert (run.good, run.good_tokens) == (len(good), sum(timeline.tokens for timeline in good))


def test_a_run_without_an_answer_is_refused() -> None:
    with pytest.raises(StepError, match="1 refused, 1 disconnected; 429: full"):
        summarize(Setting(Closed(1), "off"), 1, [REFUSED, BROKEN], Limits(0.05), SHARES)


def test_answers_of_one_token_have_no_time_per_token() -> None:
    run = summarize(Setting(Open(1.0), "off"), 1, [SHORT, SHORT], Limits(0.05), SHARES)
    assert (run.per_token, run.gap) == (None, None)
    assert run.latency == Percentiles(0.3, 0.3, 0.3)


def test_arrivals_are_poisson() -> None:
    """Counts in seconds have the rate as mean and variance, and gaps are exponential: their median is ln 2 / rate."""
    times = Open(4.0).times(40_000, 0)
    assert times == sorted(times) and times[0] > 0
    gaps = np.diff(times, prepend=0)
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 4, rel=0.02)
    assert np.median(gaps) == pytest.approx(np.log(2) / 4, rel=0.02)
    counts = np.bincount(np.array(times, int))[:-1]
    assert counts.mean() == pytest.approx(4, rel=0.02) and counts.var() == pytest.approx(4, rel=0.05)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.02, "no gap knows of the one before"


@pytest.mark.parametrize("load", [Closed(4), Open(4.0)])
def test_a_turns_requests_follow_from_its_number(load: Closed | Open) -> None:
    requests = draw(load, TEXTS, 500, (5, 9), turn=3)
    assert requests == draw(load, TEXTS, 500, (5, 9), turn=3)
    other = draw(load, TEXTS, 500, (5, 9), turn=4)
    assert [r.seed for r in requests] != [r.seed for r in other]
    assert [r.max_tokens for r in requests] != [r.max_tokens for r in other]
    assert {r.max_tokens for r in requests} == set(range(5, 10))
    assert len({r.seed for r in requests}) == 500
    assert ({r.due for r in requests} == {0.0}) == isinstance(load, Closed)
    assert [r.due for r in requests] == sorted(r.due for r in requests)


def test_turns_go_through_the_prompts() -> None:
    asked = [r.prompt for turn in range(5) for r in draw(Closed(1), TEXTS, 4, (5, 9), turn)]
    assert asked == TEXTS * 2
    assert len(draw(Closed(8), TEXTS, None, (5, 9), 0)) == 64
    assert len(draw(Open(0.5), TEXTS, None, (5, 9), 0)) == 64
    assert len(draw(Open(10.0), TEXTS, None, (5, 9), 0)) == 200


def test_random_words_mean_nothing_and_are_many() -> None:
    prompts = random_words(200, (3, 6), seed=0)
    assert prompts == random_words(200, (3, 6), seed=0) != random_words(200, (3, 6), seed=1)
    assert {len(prompt.split()) for prompt in prompts} == {3, 4, 5, 6}
    assert len(set(prompts)) == 200


def test_ratios_compare_runs_of_the_same_repeat() -> None:
    """The machine is twice as slow in the second repeat, which slows all settings."""
    runs = [
        *(run_of("off", 1, 4.0), run_of("off", 2, 8.0)),
        *(run_of(4, 1, 2.0), run_of(4, 2, 4.0)),
        *(run_of("auto", 1, 2.5), run_of("auto", 2, 4.0)),
        *(run_of("auto", 1, 2.0, via="engine"), run_of("auto", 2, 3.0, via="engine")),
        run_of("auto", 1, 1.0, Closed(8)),
    ]
    off, four, auto, engine, alone = compare(runs)
    assert off.of_best is not None and (off.of_best.low, off.of_best.high) == (0.5, 0.5)
    assert (off.of_off, four.of_best) == (None, None), "a setting has no ratio to itself"
    assert four.of_off is not None and (four.of_off.low, four.of_off.high) == (2, 2)
    assert auto.of_best is not None and (auto.of_best.low, auto.of_best.high) == (0.8, 1.0)
    assert auto.of_engine is not None and (auto.of_engine.low, auto.of_engine.high) == (0.75, 0.8)
    assert auto.tokens_per_second.median == pytest.approx((200 / 2.5 + 200 / 4) / 2)
    assert (engine.of_best, engine.of_off, engine.of_engine) == (None, None, None), "nothing fixed ran in the engine"
    assert (alone.of_best, alone.of_off, alone.of_engine) == (None, None, None), "nor with eight clients"
    _, four, auto, _, _ = compare([replace(r, seconds=r.seconds / 4) if r.setting == auto.setting else r for r in runs])
    assert auto.of_best is not None and (auto.of_best.low, auto.of_best.high) == (3.2, 4.0)
    assert four.of_best is None, "auto is none of the fixed ones, however fast"


def test_in_an_open_loop_settings_are_compared_by_how_fast_answers_come() -> None:
    """The throughput is that of the arrivals."""
    runs = [run_of("off", 1, 4.0, Open(0.5)), run_of(4, 1, 2.0, Open(0.5)), run_of("auto", 1, 2.5, Open(0.5))]
    assert (score(runs[0]), score(run_of(4, 1, 4.0))) == (1 / 4, 200 / 4)
    off, four, auto = compare([replace(run, seconds=10.0) for run in runs])
    assert off.tokens_per_second == four.tokens_per_second
    assert off.of_best is not None and off.of_best.median == pytest.approx(0.5)
    assert auto.of_best is not None and auto.of_best.median == pytest.approx(0.8)


def report_of(runs: list[LoadRun]) -> LoadReport:
    server = {"model": "fake", "precision": "fp32", "provider": "none", "rows": 8}
    return LoadReport(Machine.here(), versions(), server, "none", "greedy", Limits(0.05, 2.0), runs, compare(runs))


def test_a_report_names_every_error_and_every_limit() -> None:
    setting = Setting(Closed(4), "auto")
    lost = summarize(setting, 1, [SPECULATIVE, PLAIN, REFUSED, REFUSED, BROKEN], Limits(0.05), SHARES)
    report = report_of([lost, replace(lost, repeat=2), run_of("off", 1, 2.0, Open(0.25))])
    text = report.table()
    assert "4 refused, 2 disconnected of 10" in text and "0 of 2" in text
    assert "50 ms a token and 2000 ms to the first" in text
    for table in (lines := text.splitlines()), lines:
        rows = [line for line in table if line.startswith("|")]
        assert len(rows) == 8 and len({len(row) for row in rows[:4]}) == len({len(row) for row in rows[4:]}) == 1
    parts = json.loads(json.dumps(report.json()))
    assert parts["runs"][0]["tokens_per_second"] == 14 / 4
    assert parts["runs"][0]["setting"] == {"load": {"clients": 4}, "speculation": "auto", "via": "http"}
    assert parts["figures"][0]["errors"] == {"refused": 4, "disconnected": 2}


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    runs = [
        run_of(speculation, repeat, 2.0 + repeat, load)
        for load in (Closed(1), Closed(8), Open(2.0))
        for speculation in ("off", "auto")
        for repeat in (1, 2)
    ]
    runs.append(run_of("auto", 1, 2.0, via="engine"))
    plot(report_of(runs), tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_processor_time_is_ours_and_the_servers() -> None:
    program = "print(flush=True); input(); sum(i * i for i in range(3_000_000)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdout.readline()
        used = ProcessorTime(server.pid)
        server.stdin.write(b"\n")
        server.stdin.flush()
        server.stdout.readline()
        shares = used.shares()
        server.stdin.write(b"\n")
    assert shares.server is not None and 0 <= shares.client < shares.server <= 1 and 0 <= shares.others <= 1
    assert ProcessorTime(None).shares().server is None


def test_the_engine_alone_answers_the_same() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}>"
    engine = Engine(
        FakeSession(fake_manifest(chat_template=template)), fake_tokenizer(), EngineConfig(rows=3), fake_cost()
    )
    requests = draw(Closed(3), ["abc", "bcd", "cde", "def"], 12, (2, 20), turn=1)
    params = SamplingParams(temperature=0.8, speculation=4)
    timelines = drive_engine(engine, 3, requests, params, raw=False)
    alone = Engine(FakeSession(), fake_tokenizer(), EngineConfig(rows=3), fake_cost())
    for request, timeline in zip(requests, timelines, strict=True):
        prompt = fake_tokenizer().encode(request.prompt + ">").ids
        asked = replace(params, max_tokens=request.max_tokens, seed=request.seed)
        [expected] = alone.generate([prompt], asked)
        assert (timeline.outcome, timeline.prompt_tokens, timeline.tokens) == ("completed", 4, len(expected.tokens))
        assert timeline.due == timeline.sent <= timeline.end
        assert list(timeline.events) == sorted(timeline.events)
    assert sum(timeline.tokens for timeline in timelines) == engine.stats()["tokens"]
    assert max(sum(t.sent <= at < t.end for t in timelines) for at in (u.sent for u in timelines)) == 3


def test_a_sequence_that_fails_is_an_error() -> None:
    session = FakeSession(eos_rate=0)
    engine = Engine(session, fake_tokenizer(), EngineConfig(rows=1), fake_cost())
    session.fail_next = "run"
    requests = draw(Closed(1), ["abc"], 2, (5, 5), turn=1)
    failed, completed = drive_engine(engine, 1, requests, SamplingParams(), raw=True)
    assert (failed.outcome, completed.outcome) == ("failed", "completed")
    assert failed.error is not None and "told to fail" in failed.error


def test_the_server_gets_every_option() -> None:
    config = EngineConfig(
        3, 64, 1 << 30, 32, 7, 1, prefill_slowdown=1.5, lookup=False, prefix_reuse=False, exact=False, verify=True,
        operators="stock", provider="cpu",
    )  # fmt: skip
    assert all(getattr(config, field.name) != field.default for field in fields(EngineConfig)), "every option, then"
    assert read_options(["--artifact", "a", *arguments(config)], {}).engine == config
    assert arguments(EngineConfig()) == []


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"exit code 3: error: .* is not an artifact"):
        with StartedServer(tmp_path, EngineConfig()):
            raise AssertionError("it started")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--url", "http://127.0.0.1:1", "--artifact", "a"],
        ["--artifact", "a", "--clients", "0"],
        ["--artifact", "a", "--rate", "0"],
        ["--artifact", "a", "--rate", "inf"],
        ["--artifact", "a", "--speculation", "65"],
        ["--artifact", "a", "--max-tokens", "9-8"],
        ["--artifact", "a", "--max-tokens", "0-8"],
        ["--artifact", "a", "--time-per-token-limit", "-1"],
        ["--artifact", "a", "--random-words", "5", "--prompts", "file"],
    ],
    ids=" ".join,
)
def test_options_that_are_wrong_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(arguments)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "http://127.0.0.1:1"], "no server at http://127.0.0.1:1"),
        (["--url", "http://127.0.0.1:1", "--rows", "4"], "--rows goes with --artifact"),
        (["--url", "http://127.0.0.1:1", "--engine"], "--engine goes with --artifact"),
        (["--artifact", "/nowhere", "--engine", "--rate", "2"], "--engine goes with --clients"),
        (["--artifact", "/nowhere"], "/nowhere is not an artifact"),
        (["--artifact", "/nowhere", "--template", "{name}"], "go with --prompts"),
        (["--url", "http://127.0.0.1:1", "--temperature", "-1"], "temperature is -1.0"),
    ],
)
def test_options_that_cannot_work_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(GorgonError, match=words):
        load.run(options(arguments))


def options(arguments: list[str]) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    load.add_parser(top.add_subparsers(required=True))
    return top.parse_args(["load", *arguments])
