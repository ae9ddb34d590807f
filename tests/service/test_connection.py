"""Connections whose clients send or read too little: each has its bound, and none holds anything for ever."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

from service.connection import HEAD_BYTES
from tests.service.serving import SECONDS, HeldSession, Serving, engine_on, eventually, serving

HEAD = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"prompt": "abc", "max_tokens": 3}).encode()
LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
BOUND = 0.3  # seconds


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(lambda: engine_on(HeldSession()), read_timeout=BOUND, write_timeout=BOUND) as running:
        yield running


def answer_to(server: Serving, *parts: bytes) -> bytes:
    """Everything that comes until the server closes the connection."""
    with socket.create_connection(server.address, SECONDS) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(BOUND / 10)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


def test_nothing_is_closed_without_a_word(server: Serving) -> None:
    assert answer_to(server) == b""


@pytest.mark.parametrize("part", [b"\r\n", b"P", HEAD[:20], HEAD])
def test_half_a_head_is_a_408(server: Serving, part: bytes) -> None:
    received = answer_to(server, part)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"connection: close" in received
    assert received.endswith(b"within the 0.3 s that it has")


@pytest.mark.parametrize("path", ["generate", "v1/completions"])
@pytest.mark.parametrize("part", [LENGTH, LENGTH + BODY[:-1], b"transfer-encoding: chunked\r\n\r\n5\r\n{"])
def test_half_a_body_is_a_408(server: Serving, part: bytes, path: str) -> None:
    received = answer_to(server, HEAD.replace(b"generate", path.encode()) + part)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"connection: close" in received
    error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    assert "0.3 s" in error["message"] and error["type"].lower().replace("_", "").endswith("requesterror")
    assert server.thread.live == 0


def test_a_second_request_has_the_same_bounds(server: Serving) -> None:
    whole = HEAD + LENGTH + BODY
    received = answer_to(server, whole, HEAD)
    assert received.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in received
    received = answer_to(server, whole, HEAD + LENGTH)
    assert received.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in received
    began = time.monotonic()
    assert answer_to(server, whole, b"\r\n").count(b"HTTP/1.1") == 1
    assert time.monotonic() - began < SECONDS, "empty lines do not keep a connection"


def test_a_slow_request_that_comes_in_time(server: Serving) -> None:
    head = HEAD + b"connection: close\r\n"
    parts = [*(head[i : i + 30] for i in range(0, len(head), 30)), LENGTH, BODY[:5], BODY[5:]]
    assert answer_to(server, *parts).startswith(b"HTTP/1.1 200")


def test_headers_that_are_too_large(server: Serving) -> None:
    line = b"x-a: " + b"a" * 8000 + b"\r\n"
    received = answer_to(server, HEAD + line * (HEAD_BYTES // len(line) + 1))
    assert received.startswith(b"HTTP/1.1 431 ") and b"65536 bytes" in received


@pytest.mark.parametrize("stream", [True, False])
def test_who_reads_nothing_is_reset(server: Serving, stream: bool) -> None:
    """Whether the answer waits for its client amid its pieces, or is complete."""
    prompt = "/v1/models/" + "a" * 60_000  # its name comes back in the answer
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(server.address)
        if stream:
            said = {"role": "user", "content": "abc"}
            long = {"n": 8, "max_tokens": 100, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
            ask(connection, "/v1/chat/completions", model="fake", messages=[said], stream=True, **long)
        else:
            for _ in range(20):
                connection.sendall(f"GET {prompt} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        eventually(lambda: connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0)
    eventually(lambda: server.thread.live == 0 and server.health()[1]["rows_in_use"] == 0)


def test_who_reads_again_and_again_is_not_reset(server: Serving) -> None:
    """A megabyte over several bounds: each ends amid an answer that is being read, or waits for more."""
    path = "/v1/models/" + "a" * 60_000
    with socket.socket() as connection:
        connection.settimeout(SECONDS)
        connection.connect(server.address)
        for _ in range(20):
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        received, began = b"", time.monotonic()
        while received.count(b"does not exist") < 20:
            data = connection.recv(8192)
            assert data, "it was reset"
            received += data
            time.sleep(BOUND / 40 if time.monotonic() - began < 3 * BOUND else 0)


def ask(connection: socket.socket, path: str, **body: object) -> None:
    content = json.dumps(body).encode()
    head = HEAD.replace(b"/generate", path.encode())
    connection.sendall(head + b"content-length: %d\r\n\r\n" % len(content) + content)
