"""Traces for OpenTelemetry: one span for each request, sent when it is over, without any text.

The packages come with the extra `otel` and are imported only where they are asked for. Names of attributes are those of
OpenTelemetry's conventions for HTTP and generative AI, and vLLM's for what these do not have.
"""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
CLOSE_SECONDS = 2.0  # for what has not been sent yet when the server stops
NAMES = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "tokens_per_step": "gorgon.tokens_per_step",
    "queue": "gen_ai.latency.time_in_queue",
    "prefill": "gen_ai.latency.time_in_model_prefill",
    "decode": "gen_ai.latency.time_in_model_decode",
}  # figures of a request to attributes


class Tracing:
    """Makes the spans, from the event loop's thread; the SDK sends them from one of its own."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("gorgon")
        self._parent = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> "Tracing":
        """Sends to a collector by OTLP over HTTP; raises ConfigurationError where the packages are not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigurationError(
                f"--otlp-traces-endpoint needs {' and '.join(PACKAGES)}, which are not installed ({error}): "
                "pip install -c constraints.txt '.[serve,otel]'"
            ) from None
        named = Resource({SERVICE_NAME: "gorgon"}).merge(
            OTELResourceDetector().detect()
        )  # OTEL_SERVICE_NAME goes first
        provider = TracerProvider(resource=Resource.create().merge(named), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        return cls(provider)

    def record(
        self, headers: Mapping[str, str], method: str, path: str, status: int | None, seconds: float,
        figures: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """A request that is over now and took so long; `headers` may say whose span it belongs under (`traceparent`).

        `path` is the route's. `figures` beside those of NAMES: `id`, `ttft_ms` and `reason`, each as in the log.
        """
        from opentelemetry.trace import SpanKind, StatusCode

        ended = time.time_ns()
        attributes: dict[str, Any] = {"http.request.method": method, "http.route": path, "gen_ai.latency.e2e": seconds}
        attributes |= {NAMES[name]: value for name, value in figures.items() if name in NAMES and value is not None}
        attributes["gorgon.request_id"] = figures["id"]
        if status is not None:
            attributes["http.response.status_code"] = status
        if figures.get("ttft_ms") is not None:
            attributes["gen_ai.latency.time_to_first_token"] = figures["ttft_ms"] / 1000
        reasons = figures["reason"].split(",") if "reason" in figures else []
        if reasons:
            attributes["gen_ai.response.finish_reasons"] = reasons
        span = self._tracer.start_span(
            f"{method} {path}", self._parent.extract(headers), SpanKind.SERVER, attributes,
            start_time=ended - round(seconds * 1e9),
        )  # fmt: skip
        errors = [reason for reason in reasons if reason.endswith("Error")]
        if errors or status is None or status >= 500:
            span.set_attribute("error.type", errors[0] if errors else str(status or "aborted"))
            span.set_status(StatusCode.ERROR)
        span.end(ended)

    def close(self) -> None:
        """Sends what has not been sent, as far as there is time: a collector that is away does not keep the process."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
