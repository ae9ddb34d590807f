"""The same closed load without HTTP: the engine in this process, stepped from here."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from runtime.bench.arrivals import Request
from runtime.bench.timeline import Outcome, Timeline
from runtime.engine import Engine
from runtime.params import SamplingParams
from runtime.prompts import Prompts
from runtime.sequence import Output


def drive_engine(
    engine: Engine, clients: int, requests: Sequence[Request], params: SamplingParams, raw: bool
) -> list[Timeline]:
    """Answers all requests, `clients` at a time; an event is a step's text. Prompts are encoded before.

    The timelines are in the requests' order. Raises what `Engine.add` raises.
    """
    prompts = Prompts(engine.manifest, engine.tokenizer)
    encoded = [prompts.raw(request.prompt) if raw else prompts.question(request.prompt) for request in requests]
    waiting = deque(range(len(requests)))
    live: dict[int, tuple[int, float, list[float]]] = {}  # by sequence id: request, when it was sent, its events
    timelines: list[Timeline | None] = [None] * len(requests)
    began = time.perf_counter()
    while waiting or live:
        while waiting and len(live) < clients:
            i = waiting.popleft()
            asked = replace(params, max_tokens=requests[i].max_tokens, seed=requests[i].seed)
            sent = time.perf_counter() - began
            live[engine.add(encoded[i], asked).id] = i, sent, []
        outputs = engine.step()
        now = time.perf_counter() - began
        for output in outputs:
            i, sent, events = live[output.sequence.id]
            if output.text:
                events.append(now)
            if output.finish_reason is not None:
                del live[output.sequence.id]
                timelines[i] = _timeline(sent, events, now, output)
    assert None not in timelines
    return timelines  # type: ignore[return-value]


def _timeline(sent: float, events: list[float], end: float, output: Output) -> Timeline:
    sequence = output.sequence
    outcome: Outcome = "failed" if output.finish_reason == "error" else "completed"
    tokens = len(sequence.prompt), len(sequence.tokens)
    error = None if sequence.error is None else str(sequence.error)
    return Timeline(sent, sent, tuple(events), end, outcome, *tokens, error=error)
