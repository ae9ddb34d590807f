"""What /metrics says: the engine's figures and the server's own, read when Prometheus asks and at no other time.

Names that begin with `vllm:` mean what they mean in vLLM, so that its dashboards work; the rest begin with `gorgon:`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.stats import STEP_TOKENS
from service.engine_thread import EngineThread
from service.latencies import buckets


def _own(**texts: str) -> tuple[tuple[str, str, str], ...]:
    """Those that are called as the engine calls its figures."""
    return tuple((f"gorgon:{figure}", figure, text) for figure, text in texts.items())


# name, which of `_read`'s figures, help
GAUGES = (
    ("vllm:num_requests_running", "rows_in_use", "Requests in rows."),
    ("vllm:num_requests_waiting", "waiting", "Requests that wait for a row."),
    ("vllm:kv_cache_usage_perc", "kv_part",
     "Part of the memory for keys and values that running requests have reserved, 0 to 1."),
    ("gorgon:queue_limit", "queue", "Requests that may wait."),
    ("gorgon:cost_model_error_ratio", "drafting.cost_error",
     "Recent mean of |measured / predicted - 1| of the decoder's time."),
    *_own(
        rows="Requests that can run at the same time.",
        rows_held="Rows kept for prompts that begin alike.",
        kv_bytes_limit="Memory for keys and values.",
        kv_bytes_reserved="Such memory that running requests have reserved.",
        kv_bytes_held="Such memory in rows kept for prompts that begin alike.",
    ),
)  # fmt: skip
COUNTERS = (
    ("vllm:prompt_tokens", "prompts", "Prompt tokens, computed or reused."),
    ("vllm:generation_tokens", "tokens", "Tokens emitted."),
    ("vllm:prefix_cache_queries", "prompts", "Prompt tokens, computed or reused."),
    ("vllm:prefix_cache_hits", "reused", "Prompt tokens reused."),
    ("vllm:prompt_tokens_cached", "reused", "Prompt tokens reused."),
    ("vllm:spec_decode_num_drafts", "drafts", "Draft trees of more than a root."),
    ("vllm:spec_decode_num_draft_tokens", "drafted", "Nodes of draft trees, roots left out."),
    ("vllm:spec_decode_num_accepted_tokens", "accepted", "Nodes accepted."),
    ("gorgon:decode_rows", "decoded_rows", "Rows of decode steps."),
    ("gorgon:decode_tokens", "decoded_tokens", "Tokens that decode steps emitted."),
    ("gorgon:draft_rows", "drafting.rows", "Rows of steps that could have drafted."),
    ("gorgon:draft_nodes", "drafting.nodes", "Nodes that were drafted for them, roots left out."),
    ("gorgon:lookup_draft_nodes", "drafting.lookup_drafted",
     "Nodes drafted by prompt lookup, or that a grammar forced."),
    ("gorgon:lookup_accepted_nodes", "drafting.lookup_accepted", "Such nodes accepted."),
    *_own(
        steps="Steps.",
        failed_steps="Steps that failed, with all their requests.",
        session_seconds="Time of steps in decoder and heads.",
        host_seconds="Time of steps outside decoder and heads.",
    ),
)  # fmt: skip


class Metrics(Collector):
    """Read on the event loop's thread, which also counts."""

    def __init__(self, engine: EngineThread, name: str | None) -> None:
        """`name` is the model's; None: the artifact's."""
        self._engine, self._name = engine, name
        self._responses: Counter[tuple[str, str]] = Counter()
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def responded(self, path: str, status: int) -> None:
        """Counts a response; `path` is a route's, never a client's."""
        self._responses[path, str(status)] += 1

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise read everything to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        engine, stats = self._engine, self._engine.stats
        yield GaugeMetricFamily("gorgon:ready", "1 while requests are taken.", float(engine.status == "ready"))
        responses = CounterMetricFamily("gorgon:http_responses", "Responses.", labels=["path", "status"])
        for labels, count in self._responses.items():
            responses.add_metric(labels, count)
        yield responses
        if stats:  # else it is loading
            yield from self._of_engine(stats, self._name or stats["model"])

    def _of_engine(self, stats: dict[str, Any], model: str) -> Iterator[Metric]:
        own, figures = ["model_name"], _read(stats)
        for kind, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, figure, text in table:
                family = kind(name, text, labels=own)
                family.add_metric([model], figures[figure])
                yield family
        success = CounterMetricFamily("vllm:request_success", "Requests that ended.", labels=[*own, "finished_reason"])
        for reason, count in stats["finished"].items():
            success.add_metric([model, reason], count)
        yield success
        name = "vllm:spec_decode_num_accepted_tokens_per_pos"
        accepted = CounterMetricFamily(name, "Nodes accepted, by depth from 0.", labels=[*own, "position"])
        for position, count in enumerate(stats["accepted_by_depth"]):
            accepted.add_metric([model, str(position)], count)
        yield accepted
        latencies = self._engine.latencies
        for name, histogram, text in (
            ("vllm:time_to_first_token_seconds", latencies.first, "From taking a request to its first text."),
            ("vllm:inter_token_latency_seconds", latencies.gap, "From one step's text to the next of an answer."),
            ("vllm:request_time_per_output_token_seconds", latencies.per_token, "Mean time of an answer's next token."),
            ("vllm:e2e_request_latency_seconds", latencies.whole, "From taking a request to its end."),
            ("vllm:request_queue_time_seconds", latencies.queue, "Until a request's first step."),
            ("vllm:request_prefill_time_seconds", latencies.prefill, "From the first step to the first token."),
            ("vllm:request_decode_time_seconds", latencies.decode, "From the first token to the last."),
            ("vllm:request_inference_time_seconds", latencies.inference, "From the first step to the last token."),
            ("vllm:request_prompt_tokens", latencies.prompt, "Tokens of a request's prompt."),
            ("vllm:request_prefill_kv_computed_tokens", latencies.computed, "Such tokens that were not reused."),
            ("vllm:request_generation_tokens", latencies.answer, "Tokens of an answer."),
            ("vllm:request_params_max_tokens", latencies.asked, "Tokens that a request asked for at most."),
        ):
            yield _histogram(name, text, model, histogram.buckets, histogram.sum)
        yield _histogram(
            "vllm:iteration_tokens_total", "Tokens of prompts and answers together of a step.", model,
            buckets(STEP_TOKENS, stats["steps_by_tokens"]), stats["prefilled"] + stats["tokens"],
        )  # fmt: skip


def _read(stats: dict[str, Any]) -> dict[str, Any]:
    """The engine's figures, those of drafting among them, and what only Prometheus asks for."""
    return {
        **stats,
        **{f"drafting.{name}": figure for name, figure in stats["drafting"].items()},
        "kv_part": stats["kv_bytes_reserved"] / stats["kv_bytes_limit"],
        "prompts": stats["prefilled"] + stats["reused"],
    }


def _histogram(name: str, text: str, model: str, counts: list[tuple[str, float]], total: float) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["model_name"])
    family.add_metric([model], counts, total)
    return family
