"""`python -m runtime.bench load` against real servers: nothing is lost, and its counts are the server's."""

import argparse
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.bench import load
from runtime.bench.arrivals import Closed, Load, Open, draw
from runtime.bench.client import drive
from runtime.errors import QueueFullError
from tests.service.serving import SECONDS, HeldSession, Serving, engine_on, eventually, serving

PROMPTS = ["abc", "bcd", "cdefg", "defghi"]
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": False, "speculation": 4}


@pytest.mark.parametrize("load", [Closed(5), Open(200.0)], ids=str)
def test_what_is_counted_is_what_the_server_counted(load: Load) -> None:
    engine = engine_on(HeldSession(rows=3))
    requests = draw(load, PROMPTS, 40, (1, 30), turn=1)
    with serving(lambda: engine) as server:
        timelines = drive(url(server), load, requests, GREEDY, SECONDS)
    stats = engine.stats()
    assert {timeline.outcome for timeline in timelines} == {"completed"} and len(timelines) == 40
    assert sum(timeline.tokens for timeline in timelines) == stats["tokens"]
    assert sum(timeline.prompt_tokens for timeline in timelines) == stats["prefilled"]
    assert stats["finished"]["stop"] + stats["finished"]["length"] == 40
    for timeline, request in zip(timelines, requests, strict=True):
        assert timeline.prompt_tokens == len(f"<s>[user]{request.prompt}>") - 2, "in the requests' order"
        assert 1 <= timeline.tokens <= request.max_tokens and len(timeline.events) <= timeline.tokens
        assert request.due <= timeline.due < timeline.sent + 0.002, "the loop's clock counts milliseconds"
        times = [timeline.sent, *timeline.events, timeline.end]
        assert times == sorted(times)
    assert any(len(timeline.events) < timeline.tokens - 1 for timeline in timelines), "an event holds several tokens"


def test_clients_wait_for_their_answers() -> None:
    session = HeldSession(rows=8)
    with serving(lambda: engine_on(session)) as server:
        timelines = drive(url(server), Closed(3), draw(Closed(3), PROMPTS, 12, (5, 9), 1), GREEDY, SECONDS)
    for timeline in timelines:
        assert sum(other.sent <= timeline.sent < other.end for other in timelines) <= 3


def test_a_full_queue_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row and one place to wait for eight requests, and no step until six of them have been refused."""
    session = HeldSession(rows=1, allowed=1)
    engine = engine_on(session, queue=1)
    requests = draw(Open(1000.0), PROMPTS, 8, (5, 9), turn=1)
    refused = []
    with serving(lambda: engine) as server:
        check_room = server.thread.check_room

        def counted() -> None:
            try:
                check_room()
            except QueueFullError:
                refused.append(1)
                raise

        monkeypatch.setattr(server.thread, "check_room", counted)
        with meanwhile(lambda: eventually(lambda: len(refused) == 6), lambda: session.let(float("inf"))):
            timelines = drive(url(server), Open(1000.0), requests, GREEDY, SECONDS)
    outcomes = [timeline.outcome for timeline in timelines]
    assert (outcomes.count("completed"), outcomes.count("refused")) == (2, 6)
    assert all(
        "429: " in str(t.error) and "QueueFullError" in str(t.error) for t in timelines if t.outcome == "refused"
    )
    assert sum(timeline.tokens for timeline in timelines) == engine.stats()["tokens"]


def test_a_server_that_stops_shows_in_the_outcomes() -> None:
    session = HeldSession(rows=1, allowed=2)
    with serving(lambda: engine_on(session), drain_seconds=0.0) as server:
        with meanwhile(lambda: session.await_begun(3), server.signal):
            requests = draw(Closed(2), PROMPTS, 3, (9, 9), turn=1)
            first, second, third = drive(url(server), Closed(2), requests, GREEDY, SECONDS)
        session.let(float("inf"))
    assert first.outcome == "failed" and first.error is not None and "NotReadyError" in first.error
    assert second.outcome in ("failed", "not ready"), "admitted already, or not yet"
    assert third.outcome in ("not ready", "disconnected")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 3\r\n\r\nbad", "failed"),
        (b"", "disconnected"),
        (b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\ndata: {"text": "', "disconnected"),
        (b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: {"text": "a"}\n\n', "disconnected"),
        (None, "timed out"),
    ],
    ids=["status", "nothing", "half an event", "no last event", "silence"],
)
def test_what_breaks_is_told_apart(answer: bytes | None, outcome: str) -> None:
    with raw_server(answer) as address:
        [timeline] = drive(address, Closed(1), draw(Closed(1), PROMPTS, 1, (5, 5), 1), GREEDY, timeout=0.5)
    assert timeline.outcome == outcome and timeline.error
    assert timeline.tokens == 0


def test_events_of_one_piece_are_told_apart() -> None:
    """They arrive at the same time; the last one has no text and is none of them."""
    last = {"text": "", "usage": {"prompt_tokens": 4, "completion_tokens": 7}}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in ({"text": "a"}, {"text": "b"}, last)).encode()
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)) as address:
        [timeline] = drive(address, Closed(1), draw(Closed(1), PROMPTS, 1, (5, 5), 1), GREEDY, SECONDS)
    assert (timeline.outcome, timeline.prompt_tokens, timeline.tokens) == ("completed", 4, 7)
    assert len(timeline.events) == 2 and timeline.gaps == [0.0]


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    [timeline] = drive(
        f"http://127.0.0.1:{port}/generate", Closed(1), draw(Closed(1), PROMPTS, 1, (5, 5), 1), GREEDY, SECONDS
    )
    assert timeline.outcome == "disconnected" and timeline.error


def test_a_whole_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting of a repetition has the same requests, so a greedy model the same tokens."""
    engine = engine_on(HeldSession(rows=4))
    with serving(lambda: engine) as server:
        arguments = ["--url", base(server), "--clients", "1,4", "--rate", "100", "--speculation", "off,4,auto"]
        arguments += ["--requests", "12", "--repeat", "2", "--max-tokens", "3-30", "--random-words", "1-4"]
        assert load.run(options(*arguments, "--json", str(tmp_path / "json"), "--png", str(tmp_path / "png"))) == 0
    text, parts = capsys.readouterr().out, json.loads((tmp_path / "json").read_text())
    assert "server: fake, fp32, fake, 4 rows" in text and "0 of 24" in text
    runs = parts["runs"]
    assert len(runs) == 3 * 3 * 2
    for load_, repeat in {(json.dumps(run["setting"]["load"]), run["repeat"]) for run in runs}:
        alike = [run for run in runs if (json.dumps(run["setting"]["load"]), run["repeat"]) == (load_, repeat)]
        assert len({(run["completed"], run["tokens"], run["prompt_tokens"]) for run in alike}) == 1
    assert {run["completed"] for run in runs} == {12}
    measured = sum(run["tokens"] for run in runs)
    assert measured < engine.stats()["tokens"] < measured * 2, "the rest was to warm up"
    assert (tmp_path / "png").read_bytes().startswith(b"\x89PNG")


def test_a_server_of_its_own_and_the_engine_alone(
    demo_artifact: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--artifact", str(demo_artifact("int8")), "--clients", "2", "--speculation", "off,4", "--engine"]
    arguments += ["--requests", "4", "--repeat", "1", "--max-tokens", "8-16", "--threads", "1", "--random-words", "3-9"]
    assert load.run(options(*arguments, "--json", str(tmp_path / "json"))) == 0
    runs = json.loads((tmp_path / "json").read_text())["runs"]
    assert [(run["setting"]["via"], run["setting"]["speculation"]) for run in runs] == [
        ("http", "off"), ("http", 4), ("engine", "off"), ("engine", 4),
    ]  # fmt: skip
    assert len({(run["completed"], run["tokens"], run["prompt_tokens"]) for run in runs}) == 1, "the same work"
    assert runs[0]["shares"]["server"] > 0
    out, err = capsys.readouterr()
    assert "2 rows" in out and "ready: " in err and err.rstrip().endswith("stopped")


@contextmanager
def meanwhile(*calls: Callable[[], object]) -> Iterator[None]:
    """Makes the calls, one after the other, on a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        done = [pool.submit(call) for call in calls]
        yield
        for future in done:
            future.result(SECONDS)


@contextmanager
def raw_server(answer: bytes | None) -> Iterator[str]:
    """Answers a request with these bytes and closes, or, with None, says nothing for as long as it lives."""
    silent: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        received = b""
        while b"}" not in received:  # the end of the body
            received += connection.recv(4096)
        silent.append(connection)
        if answer is not None:
            connection.sendall(answer)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/generate"
        thread.join(SECONDS)
    for connection in silent:
        connection.close()


def url(server: Serving) -> str:
    return f"{base(server)}/generate"


def base(server: Serving) -> str:
    return f"http://127.0.0.1:{server.address[1]}"


def options(*arguments: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    load.add_parser(top.add_subparsers(required=True))
    return top.parse_args(["load", *arguments])
