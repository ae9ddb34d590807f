"""What is done to a server, with two sets of numbers: small ones for every change, full ones for the record."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults.crowd import Crowd
from tests.faults.disk import full_disk, may_mount
from tests.faults.process import Process
from tests.faults.questions import Question
from tests.faults.server import THROWN
from tests.faults.tally import Tally
from tests.faults.visitors import (
    MODEL,
    leave,
    read_nothing,
    read_slowly,
    send_a_large_prompt,
    send_half_a_body,
    send_half_a_head,
    send_invalid_utf8,
    stay,
)

OPTIONS = ("--rows", "8", "--queue", "1000", "--served-model-name", MODEL)
PATIENCE = 2.0  # seconds that the server gives to those who send or read nothing
SMALL_GROWTH = 0.1  # growth that the small form allows: an allocator's warm-up is not over after hundreds of requests


@dataclass(frozen=True, slots=True)
class Scale:
    """The numbers of a form."""

    clients: int
    requests: int = 0
    seconds: float = 0.0
    warm_up: int = 0  # requests before memory is looked at
    growth: float = 0.0  # of memory, at most
    starts: int = 0  # before the one that is compared with them
    slower: float = float("inf")  # times the slowest of them that it may take


@dataclass(frozen=True, slots=True)
class Stage:
    """Where scenarios take place."""

    artifact: Path
    directory: Path  # for what a scenario writes
    questions: Sequence[Question]
    seed: int

    def server(self, rate: float = 0.0, *options: str) -> Process:
        bounds = ("--read-timeout", f"{PATIENCE:g}", "--write-timeout", f"{PATIENCE:g}")
        given = ("--artifact", str(self.artifact), *OPTIONS, *bounds)
        return Process("tests.faults.server", str(rate), *given, *options)


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    play: Callable[[Stage, Scale], Tally]
    small: Scale
    full: Scale


def crowd(stage: Stage, scale: Scale) -> Tally:
    """Many more clients than rows, a third of whom go at random moments."""
    with stage.server() as server:
        clients = Crowd(scale.clients, {stay: 2, leave: 1}, scale.requests, scale.seconds, hurry=2.0)
        return _settled(server, clients.drive(server.address, stage.questions, stage.seed))


def slow_readers(stage: Stage, scale: Scale) -> Tally:
    """Clients that read a little at a time, or nothing, beside others that must not notice."""
    with stage.server() as server:
        server_before = server.memory
        manners = {stay: 8, read_slowly: 2, read_nothing: 1}
        tally = Crowd(scale.clients, manners, scale.requests, scale.seconds).drive(
            server.address, stage.questions, stage.seed
        )
        grown = (server.memory - server_before) / 2**20
        tally.notes.append(f"memory grew by {grown:.0f} MiB from the start of the server")
        return _settled(server, tally)


def rude_requests(stage: Stage, scale: Scale) -> Tally:
    """Halves of requests, prompts of a million bytes, bytes that are no UTF-8, beside requests as they should be."""
    with stage.server() as server:
        rude = {send_half_a_head: 1, send_half_a_body: 1, send_a_large_prompt: 1, send_invalid_utf8: 1}
        clients = Crowd(scale.clients, {stay: 4, **rude}, scale.requests, scale.seconds)
        return _settled(server, clients.drive(server.address, stage.questions, stage.seed))


def many_in_a_row(stage: Stage, scale: Scale) -> Tally:
    """One request after the other from each client: memory must not grow."""
    with stage.server() as server:
        tally = Crowd(scale.clients, {stay: 1}, scale.warm_up).drive(server.address, stage.questions, stage.seed)
        before = server.memory
        tally.add(
            Crowd(scale.clients, {stay: 1}, scale.requests).drive(server.address, stage.questions, stage.seed + 1)
        )
        growth = server.memory / before - 1
        tally.notes.append(
            f"memory after {scale.warm_up} requests {before / 2**20:.1f} MiB, after {scale.requests} more {growth:+.2%}"
        )
        assert growth < scale.growth, tally.notes[-1]
        return _settled(server, tally)


def throwing_session(stage: Stage, scale: Scale) -> Tally:
    """The session throws amid batches: their requests end with an error, all others are answered."""
    with stage.server(0.01) as server:
        clients = Crowd(scale.clients, {stay: 5, leave: 1}, scale.requests, scale.seconds)
        tally = clients.drive(server.address, stage.questions, stage.seed)
        failed = int(server.metrics()["gorgon:failed_steps_total"])
        settled = _settled(server, tally)
        thrown = sum(line.endswith(f"RuntimeError: {THROWN}") for line in server.lines)
        assert thrown >= max(1, failed) and tally.stated, "nothing was thrown"
        tally.faults["calls that threw"] += thrown
        return settled


def signals(stage: Stage, scale: Scale) -> Tally:
    """SIGTERM amid a load lets answers end; SIGKILL does not, and the next start is as any other."""
    options = ("--artifact", str(stage.artifact), *OPTIONS)
    clients = Crowd(scale.clients, {stay: 1}, scale.requests, scale.seconds)
    with Process("service", *options) as cold:
        tally = clients.drive(cold.address, stage.questions, stage.seed, lambda: _stop(cold, signal.SIGTERM, 0))
    tally.faults["SIGTERM"] += 1
    _excuse(tally, tally.unheard)
    with Process("service", *options) as warm:
        stop = partial(_stop, warm, signal.SIGKILL, -signal.SIGKILL)
        killed = clients.drive(warm.address, stage.questions, stage.seed, stop)
    killed.faults["SIGKILL"] += 1
    _excuse(killed, killed.unheard)
    _excuse(killed, killed.lost)
    tally.add(killed)
    with Process("service", *options) as again:
        tally.add(_settled(again, clients.drive(again.address, stage.questions, stage.seed)))
    measures = [any(line.startswith("measuring") for line in server.lines) for server in (warm, again)]
    assert measures[0] or not measures[1], "what a start had measured was lost"
    starts = [warm.start_seconds, *(_start(options) for _ in range(scale.starts))]
    slowest = max(starts)
    tally.notes.append(
        f"ready {again.start_seconds:.1f} s after SIGKILL, {min(starts):.1f} to {slowest:.1f} s otherwise"
    )
    assert again.start_seconds < scale.slower * slowest, tally.notes[-1]
    return tally


def _start(options: tuple[str, ...]) -> float:
    with Process("service", *options) as server:
        _stop(server, signal.SIGTERM, 0)
    return server.start_seconds


def _stop(server: Process, number: signal.Signals, code: int) -> None:
    server.signal(number)
    ended = server.ended()
    assert ended == code, f"it ended with code {ended}: {server.lines[-5:]}"


def _excuse(tally: Tally, ends: list[str]) -> None:
    """What a process that is gone did not answer: its clients see that from their connections."""
    tally.faults["cut off"] += len(ends)
    tally.left += len(ends)
    ends.clear()


def _settled(server: Process, tally: Tally) -> Tally:
    """Once nobody asks: no row in use, and the engine, when the server stops, in order."""
    tally.leaked += server.settle()
    server.signal(signal.SIGTERM)
    assert server.ended() == 0, f"the engine is not in order: {server.lines[-5:]}"
    return tally


def export_on_a_full_disk(stage: Stage, scale: Scale) -> Tally:
    """Exports that run out of space say so, and leave the artifact that was there."""
    mount = may_mount()
    tally = full_disk(stage.directory, scale.requests, stage.seed, mount)
    if not mount:
        tally.notes.append("no file system may be mounted here: files were limited in size instead")
    return tally


SCENARIOS = (
    Scenario("crowd", crowd, Scale(200, requests=300), Scale(200, seconds=60)),
    Scenario("slow readers", slow_readers, Scale(16, requests=24), Scale(48, seconds=30)),
    Scenario("rude requests", rude_requests, Scale(16, requests=24), Scale(48, seconds=30)),
    Scenario(
        "many in a row", many_in_a_row, Scale(8, requests=100, warm_up=100, growth=SMALL_GROWTH),
        Scale(8, requests=10_000, warm_up=2_000, growth=0.02),
    ),
    Scenario("throwing session", throwing_session, Scale(16, requests=80), Scale(48, seconds=30)),
    Scenario("signals", signals, Scale(16, requests=60), Scale(64, requests=1_000, starts=2, slower=1.5)),
    Scenario("full disk", export_on_a_full_disk, Scale(1, requests=2), Scale(1, requests=8)),
)  # fmt: skip
