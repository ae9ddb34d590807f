"""What is made of guidellm's report: only one without errors, whose tokens the server emitted, passes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from runtime.bench.guidellm import FILE, check
from runtime.errors import StepError

ROOT = Path(__file__).parents[2]


def report(tokens: list[int], errored: int = 0) -> dict[str, Any]:
    figure = {"successful": {"mean": 12.34, "median": 5.67}}
    names = ("requests_per_second", "output_tokens_per_second", "time_to_first_token_ms", "inter_token_latency_ms")
    totals = {"successful": len(tokens), "errored": errored, "incomplete": 0, "total": len(tokens) + errored}
    requests = {
        "successful": [{"output_tokens": n} for n in tokens],
        "errored": [{"info": {"error": "400 Bad Request"}}] * errored,
    }
    return {
        "benchmarks": [{"metrics": {"request_totals": totals, **dict.fromkeys(names, figure)}, "requests": requests}]
    }


def test_a_report_without_errors() -> None:
    assert check(report([8, 8, 8]), 3, 8, 24) == (
        "3 requests, 0 errors, 24 tokens, as the server counts them; 12.3 requests/s, 12 tokens/s, first token 6 ms,"
        " then 5.7 ms a token (medians)"
    )


@pytest.mark.parametrize(
    ("given", "emitted", "words"),
    [
        (report([8, 8], errored=1), 16, "400 Bad Request"),
        (report([8, 8]), 16, "of 3 requests"),
        (report([8, 8, 7]), 23, r"\[7, 8\] tokens an answer"),
        (report([8, 8, 8]), 25, "told of 24 tokens: the server emitted 25"),
    ],
)
def test_what_does_not_pass(given: dict[str, Any], emitted: int, words: str) -> None:
    with pytest.raises(StepError, match=words):
        check(given, 3, 8, emitted)


def test_everything_it_needs_is_pinned() -> None:
    given = json.loads(FILE.read_text())
    assert set(given["install"]) <= given["pins"].keys()
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in given["pins"].values())
