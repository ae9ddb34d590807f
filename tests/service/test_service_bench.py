"""`python -m runtime.bench service` against a real server, and its probe."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bench.__main__ import main
from runtime.bench.probe import Probe
from runtime.errors import StepError
from tests.service.serving import HeldSession, engine_on, serving


def test_what_http_costs(
    demo_artifact: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "json"
    arguments = ["--artifact", str(demo_artifact("int8")), "--clients", "1,2", "--repeat", "2", "--threads", "1"]
    arguments += ["--requests", "4", "--max-tokens", "8-16", "--random-words", "3-9", "--json", str(file)]
    assert main(["service", *arguments]) == 0
    pairs = json.loads(file.read_text())["pairs"]
    assert [pair["clients"] for pair in pairs] == [1, 2, 1, 2], "the runs to warm up are left out"
    for pair in pairs:
        assert pair["http"]["tokens"] == pair["engine"]["tokens"] > 0, "the same answers both ways"
        assert pair["http"]["completed"] == pair["engine"]["completed"] == 4
        assert 0 < pair["host"] < 1 and pair["loop_ms"] >= 0 and pair["client_ms"] > 0
        assert [probe["path"] for probe in pair["probes"]] == ["/health", "/metrics"]
        assert all(probe["answered"] > 0 and probe["seconds"] > 0 for probe in pair["probes"])
    text = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == ["1", "2"]


def test_a_probe_counts_what_is_answered() -> None:
    with serving(lambda: engine_on(HeldSession())) as server:
        url = str(server.client.base_url)
        with Probe(url, "/health/live") as probe:
            server.generate(prompt="abc", max_tokens=50)
        metrics = server.client.get("/metrics").text
    assert f'gorgon:http_responses_total{{path="/health/live",status="200"}} {probe.result.answered}.0' in metrics
    assert probe.result.per_second > 0


def test_a_probe_that_is_refused() -> None:
    with serving(lambda: engine_on(HeldSession())) as server:
        with pytest.raises(StepError, match="/nowhere was not answered under load: status 404"):
            with Probe(str(server.client.base_url), "/nowhere"):
                server.generate(prompt="abc", max_tokens=50)
