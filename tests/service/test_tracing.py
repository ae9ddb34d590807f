"""The span that a request leaves: its times and sizes, under the span of whoever asked, and never its text."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from runtime.errors import ConfigurationError
from service.config import WebConfig
from service.server import listen, serve
from service.tracing import CLOSE_SECONDS, PACKAGES, Tracing
from tests.service.serving import HeldSession, Serving, engine_on, eventually, serving

ROOT = Path(__file__).parents[2]
SECRET = "xyzzyplugh"
LONG: dict[str, Any] = {"prompt": SECRET, "max_tokens": 30, "ignore_eos": True}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traced:
    """A provider whose spans stay here."""

    def __init__(self) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)

    def spans(self, count: int) -> tuple[ReadableSpan, ...]:
        """A span is there once the response is, or soon after."""
        eventually(lambda: len(self._exporter.get_finished_spans()) >= count)
        spans = self._exporter.get_finished_spans()
        assert len(spans) == count
        return spans


@pytest.fixture
def traced() -> Traced:
    return Traced()


@pytest.fixture
def server(traced: Traced) -> Iterator[Serving]:
    with serving(lambda: engine_on(HeldSession(rows=1)), tracing=traced.tracing) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_leaves_one_span(server: Serving, traced: Traced, stream: bool) -> None:
    before = time.time_ns()
    answer = server.events(**LONG)[-1] if stream else server.generate(**LONG).json()
    server.client.get("/metrics")
    server.client.get("/health/ready")
    [span] = traced.spans(1)
    found = dict(span.attributes or {})
    assert (span.name, span.kind, span.parent) == ("POST /generate", SpanKind.SERVER, None)
    assert found["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == 30
    assert found["gorgon.tokens_per_step"] == pytest.approx(answer["speculation"]["tokens_per_step"], abs=1e-3)
    assert found["gen_ai.response.finish_reasons"] == ("length",) and found["http.response.status_code"] == 200
    times = [found[f"gen_ai.latency.time_in_{part}"] for part in ("queue", "model_prefill", "model_decode")]
    whole = found["gen_ai.latency.e2e"]
    assert min(times) >= 0 and 0 < sum(times) <= whole
    assert times[0] + times[1] <= found["gen_ai.latency.time_to_first_token"] <= whole
    assert span.start_time is not None and span.end_time is not None
    assert before - 1e9 <= span.start_time and span.end_time - span.start_time == pytest.approx(whole * 1e9, abs=10)
    assert span.status.status_code is StatusCode.UNSET
    assert SECRET not in span.to_json() and "[" not in span.name


def test_the_choices_of_a_request_are_one_span(server: Serving, traced: Traced) -> None:
    body = {"model": "fake", "prompt": ["abc", "hij"], "n": 2, "max_tokens": 9, "ignore_eos": True}
    assert server.client.post("/v1/completions", json=body).status_code == 200
    [span] = traced.spans(1)
    found = dict(span.attributes or {})
    assert found["gen_ai.usage.output_tokens"] == 36 and found["gen_ai.usage.input_tokens"] == 6
    assert found["gen_ai.latency.time_in_model_decode"] > 0 and found["http.route"] == "/v1/completions"


def test_it_belongs_under_the_span_of_whoever_asked(server: Serving, traced: Traced) -> None:
    parent = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=b", "x-request-id": "mine"}
    server.client.post("/generate", json=LONG, headers=parent)
    [span] = traced.spans(1)
    assert span.parent is not None and span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE == f"{span.parent.trace_id:032x}"
    assert f"{span.parent.span_id:016x}" == SPAN and span.parent.is_remote
    assert span.context.trace_state.get("a") == "b"
    assert (span.attributes or {})["gorgon.request_id"] == "mine"


def test_who_does_not_want_a_trace_gets_none(server: Serving, traced: Traced) -> None:
    server.client.post("/generate", json=LONG, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    server.client.post("/generate", json=LONG, headers={"traceparent": "00-broken"})
    [span] = traced.spans(1)
    assert span.parent is None and span.context is not None and f"{span.context.trace_id:032x}" != TRACE


def test_what_went_wrong(traced: Traced) -> None:
    session = HeldSession(rows=1, allowed=0)
    with serving(lambda: engine_on(session), tracing=traced.tracing, request_timeout=0.5) as server:
        assert server.client.post("/nowhere/xyzzy").status_code == 404
        assert server.generate(prompt="a", max_tokens=0).status_code == 422
        assert server.generate(**LONG).status_code == 504
        session.fail_next = "run"
        session.let(float("inf"))
        eventually(lambda: server.thread.live == 0)
        session.fail_next = "run"
        assert server.generate(**LONG).status_code == 500
        spans = traced.spans(4)
    found = [(span.name, span.status.status_code, (span.attributes or {}).get("error.type")) for span in spans]
    assert found == [
        ("POST other", StatusCode.UNSET, None),
        ("POST /generate", StatusCode.UNSET, None),
        ("POST /generate", StatusCode.ERROR, "DeadlineError"),
        ("POST /generate", StatusCode.ERROR, "StepError"),
    ]
    assert "gen_ai.latency.time_in_model_decode" not in (spans[2].attributes or {})
    assert all("xyzzy" not in span.to_json() for span in spans)


class Collector(HTTPServer):
    """Takes what OTLP sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.taken: list[ExportTraceServiceRequest] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Collector) and self.path == "/v1/traces"
        self.server.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_collector_gets_them_also_at_the_end() -> None:
    collector = Collector()
    try:
        tracing = Tracing.to(f"http://127.0.0.1:{collector.server_port}/v1/traces")
        with serving(lambda: engine_on(HeldSession()), tracing=tracing) as server:
            server.generate(**LONG)
        tracing.close()
        [resource] = [spans for request in collector.taken for spans in request.resource_spans]
        named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        assert named["service.name"] == "gorgon"
        [span] = [span for scope in resource.scope_spans for span in scope.spans]
        assert span.name == "POST /generate"
    finally:
        collector.shutdown()
        collector.server_close()


def test_a_collector_that_is_away_keeps_nobody() -> None:
    tracing = Tracing.to("http://127.0.0.1:9/v1/traces")
    with serving(lambda: engine_on(HeldSession()), tracing=tracing) as server:
        assert server.generate(**LONG).status_code == 200
        began = time.monotonic()
    tracing.close()
    assert time.monotonic() - began < CLOSE_SECONDS + 5


def test_without_the_packages_the_option_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with listen("127.0.0.1", 0) as listener, pytest.raises(ConfigurationError) as error:
        serve(lambda: pytest.fail("it loads"), listener, WebConfig(otlp_traces_endpoint="http://localhost:1"))
    assert all(package in str(error.value) for package in PACKAGES) and "otel" in str(error.value)


def test_nothing_else_makes_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI has telemetry of its own, with errors' messages: a provider that somebody set up gets none of it."""
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    with serving(lambda: engine_on(HeldSession())) as server:
        assert server.generate(**LONG).status_code == 200
    assert exporter.get_finished_spans() == ()


def test_who_does_not_ask_for_traces_does_not_load_them() -> None:
    program = "import sys, service.server, service.app; assert 'opentelemetry.sdk' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)
