"""/metrics as Prometheus reads it, before and after requests whose figures are known."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from runtime.engine import Engine
from service.latencies import Histogram
from tests.service.serving import SECONDS, HeldSession, Serving, engine_on, eventually, serving

ROOT = Path(__file__).parents[2]
LONG = {"prompt": "abcdefgh" * 3, "max_tokens": 30, "ignore_eos": True}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: Serving) -> Samples:
    """All samples by name and labels, without the model's, which is checked."""
    response = server.client.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    samples: Samples = {}
    for family in text_string_to_metric_families(response.text):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name.startswith("vllm:"):
                assert labels.pop("model_name") == "fake", sample
            labels.pop("model_name", None)
            key = sample.name, frozenset(labels.items())
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    """How much a counter grew; one that was not there was 0."""
    return value(after, name, **labels) - before.get((name, frozenset(labels.items())), 0.0)


def test_known_requests_are_counted() -> None:
    with serving(lambda: engine_on(HeldSession(rows=2))) as server:
        before = scrape(server)
        answers: list[Any] = [server.generate(**LONG, speculation=8).json() for _ in range(2)]
        answers.append(server.events(prompt="xyz", max_tokens=12, ignore_eos=True, speculation="off")[-1])
        assert server.generate(prompt="abc", max_tokens=0).status_code == 422
        after = scrape(server)
    prompts = sum(answer["usage"]["prompt_tokens"] for answer in answers)
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    steps = sum(answer["speculation"]["steps"] for answer in answers)
    accepted = sum(answer["speculation"]["accepted"] for answer in answers)
    assert tokens == 72 and accepted > 0
    computed = prompts - grown(before, after, "vllm:prefix_cache_hits_total")
    for name, count in {
        "vllm:prompt_tokens_total": prompts,
        "vllm:prefix_cache_queries_total": prompts,
        "vllm:generation_tokens_total": tokens,
        "vllm:spec_decode_num_draft_tokens_total": sum(answer["speculation"]["drafted"] for answer in answers),
        "vllm:spec_decode_num_accepted_tokens_total": accepted,
        "vllm:request_prompt_tokens_sum": prompts,
        "vllm:request_generation_tokens_sum": tokens,
        "vllm:request_params_max_tokens_sum": 72,
        "vllm:request_queue_time_seconds_count": 3,
        "vllm:iteration_tokens_total_sum": computed + tokens,
        "vllm:request_prefill_kv_computed_tokens_sum": computed,
        "vllm:prompt_tokens_cached_total": prompts - computed,
        "gorgon:decode_rows_total": steps,
        "gorgon:decode_tokens_total": tokens - len(answers),
        "gorgon:failed_steps_total": 0,
        "vllm:time_to_first_token_seconds_count": 3,
        "vllm:e2e_request_latency_seconds_count": 3,
        "vllm:request_time_per_output_token_seconds_count": 3,
    }.items():
        assert grown(before, after, name) == count, name
    assert grown(before, after, "vllm:request_success_total", finished_reason="length") == 3
    assert grown(before, after, "vllm:request_success_total", finished_reason="stop") == 0
    assert grown(before, after, "vllm:prefix_cache_hits_total") > 0, "the second prompt is the first"
    drafts = grown(before, after, "vllm:spec_decode_num_drafts_total")
    assert 0 < drafts <= steps and accepted <= drafts * 4, "the fake has four heads"
    assert grown(before, after, "vllm:iteration_tokens_total_count") == grown(before, after, "gorgon:steps_total")
    parts = [grown(before, after, f"vllm:request_{part}_time_seconds_sum") for part in ("prefill", "decode")]
    whole = grown(before, after, "vllm:request_inference_time_seconds_sum")
    assert min(parts) > 0 and sum(parts) == pytest.approx(whole)
    queued = grown(before, after, "vllm:request_queue_time_seconds_sum")
    assert queued >= 0 and queued + whole <= grown(before, after, "vllm:e2e_request_latency_seconds_sum")
    by_depth = [v for (name, _), v in after.items() if name == "vllm:spec_decode_num_accepted_tokens_per_pos_total"]
    assert sum(by_depth) == accepted and by_depth == sorted(by_depth, reverse=True)
    assert 0 < grown(before, after, "vllm:inter_token_latency_seconds_count") <= steps
    assert grown(before, after, "gorgon:http_responses_total", path="/generate", status="200") == 3
    assert grown(before, after, "gorgon:http_responses_total", path="/generate", status="422") == 1
    seconds = grown(before, after, "gorgon:session_seconds_total") + grown(before, after, "gorgon:host_seconds_total")
    assert 0 < seconds <= grown(before, after, "vllm:e2e_request_latency_seconds_sum")
    assert value(after, "process_resident_memory_bytes") > 1 << 20


def test_a_histogram_is_whole() -> None:
    """Buckets grow with their bounds, and the last has all."""
    with serving(lambda: engine_on(HeldSession())) as server:
        server.generate(**LONG)
        text = server.client.get("/metrics").text
        asked = server.client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}).text
    histograms = [family for family in text_string_to_metric_families(text) if family.type == "histogram"]
    assert len(histograms) == 13
    for family in histograms:
        buckets = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
        [count] = [s.value for s in family.samples if s.name.endswith("_count")]
        assert buckets == sorted(buckets) and [v for _, v in buckets] == sorted(v for _, v in buckets)
        assert buckets[-1] == (float("inf"), count) and count > 0
    assert {f.name for f in openmetrics_families(asked)} >= {family.name for family in histograms}


def test_what_runs_and_waits_shows_while_it_does() -> None:
    session = HeldSession(rows=1, allowed=1)
    with serving(lambda: engine_on(session)) as server:
        running = server.later(**LONG)
        session.await_begun(2)
        waiting = server.later(**LONG)
        eventually(lambda: server.thread.live == 2)
        session.let(2)
        eventually(lambda: server.health()[1]["waiting"] == 1)
        during = scrape(server)
        assert value(during, "vllm:num_requests_running") == 1 and value(during, "vllm:num_requests_waiting") == 1
        assert 0 < value(during, "vllm:kv_cache_usage_perc") <= 1
        assert value(during, "gorgon:kv_bytes_reserved") == server.health()[1]["kv_bytes_reserved"]
        session.let(float("inf"))
        assert {running.result().status_code, waiting.result().status_code} == {200}
        eventually(lambda: value(scrape(server), "vllm:num_requests_running") == 0)
        assert value(scrape(server), "vllm:kv_cache_usage_perc") == 0
        assert value(scrape(server), "gorgon:rows_held") == 1


def test_who_leaves_does_not_distort_the_latencies() -> None:
    session = HeldSession(rows=1, allowed=2)
    with serving(lambda: engine_on(session)) as server:
        with server.stream(**LONG, speculation="off") as events:
            next(events)
        eventually(lambda: all(answer.cancelled for answer in server.thread._live))
        session.let(float("inf"))
        eventually(lambda: value(scrape(server), "vllm:request_success_total", finished_reason="abort") == 1)
        assert value(scrape(server), "vllm:e2e_request_latency_seconds_count") == 0


def test_metrics_and_health_while_the_model_loads() -> None:
    loaded = threading.Event()

    def load() -> Engine:
        assert loaded.wait(SECONDS)
        return engine_on(HeldSession())

    with serving(load, ready=False) as server:
        assert value(scrape(server), "gorgon:ready") == 0
        assert server.client.get("/health/live").status_code == 200
        response = server.client.get("/health/ready")
        assert response.status_code == 503 and "loading" in response.json()["error"]["message"]
        loaded.set()
        server.await_ready()
        assert value(scrape(server), "gorgon:ready") == 1
        response = server.client.get("/health/ready")
        assert (response.status_code, response.json()) == (200, {"status": "ready"})


def test_paths_that_do_not_exist_make_no_new_series() -> None:
    with serving(lambda: engine_on(HeldSession())) as server:
        for path in ("/a", "/b", "/v1/models/none"):
            assert server.client.get(path).status_code == 404
        samples = scrape(server)
    assert value(samples, "gorgon:http_responses_total", path="other", status="404") == 2
    assert value(samples, "gorgon:http_responses_total", path="/v1/models/{name:path}", status="404") == 1


def test_the_served_name_labels_the_figures() -> None:
    with serving(lambda: engine_on(HeldSession()), served_model_name=("mine",)) as server:
        assert 'vllm:generation_tokens_total{model_name="mine"}' in server.client.get("/metrics").text


def test_every_figure_is_documented_with_its_type() -> None:
    with serving(lambda: engine_on(HeldSession())) as server:
        server.generate(**LONG)
        text = server.client.get("/metrics").text
    families = [family for family in text_string_to_metric_families(text) if not family.name.startswith("process_")]
    found = {family.name + ("_total" if family.type == "counter" else ""): family.type for family in families}
    rows = re.findall(r"^\| (`(?:vllm|gorgon):.*?) \| (\w+) \|", (ROOT / "docs" / "operations.md").read_text(), re.M)
    assert found == {name: kind for names, kind in rows for name in re.findall("`(.+?)`", names)}


def test_seconds_are_counted_below_their_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(seconds)
    assert (histogram.buckets, histogram.sum) == ([("1.0", 2), ("2.0", 3), ("+Inf", 4)], 12.0)
