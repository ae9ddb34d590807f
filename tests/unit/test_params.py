"""Options: every bad value is refused by name, and every error class has its place."""

import re
from typing import Any

import pytest

from runtime import errors
from runtime.errors import ConfigurationError, GorgonError, ParameterError
from runtime.params import EngineConfig, SamplingParams, StructuredOutputs

BAD_SAMPLING: list[tuple[str, Any]] = [
    ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", None),
    ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "1"),
    ("temperature", 101), ("top_k", -1), ("top_k", 2.0), ("top_p", 0), ("top_p", 1.1), ("top_p", None),
    ("min_p", -0.1), ("min_p", 2), ("seed", -1), ("seed", 2**64), ("seed", 1.0), ("stop", "text"), ("stop", ("",)),
    ("stop", (1,)), ("stop", ("a",) * 17), ("stop_token_ids", (-1,)), ("stop_token_ids", (1.0,)), ("ignore_eos", 1),
    ("stop", None), ("stop_token_ids", 5), ("speculation", 1), ("speculation", 65), ("speculation", "on"),
    ("speculation", True), ("speculation", None), ("min_tokens", -1), ("min_tokens", 1.0), ("presence_penalty", 2.1),
    ("presence_penalty", None), ("frequency_penalty", -2.1), ("frequency_penalty", float("nan")),
    ("repetition_penalty", 0), ("repetition_penalty", 11), ("logit_bias", [1]), ("logit_bias", {"1": 1}),
    ("logit_bias", {1: 101}), ("logit_bias", {-1: 1}), ("logit_bias", {1: True}), ("logprobs", -1), ("logprobs", 21),
    ("logprobs", True), ("structured_outputs", {"regex": "a"}), ("typical_acceptance", 1),
    ("include_stop_str_in_output", "yes"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_SAMPLING)
def test_bad_sampling_parameters(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=f"^{name} is "):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "has nothing: give exactly one of json, json_object, regex, choice, grammar"),
        ({"regex": "a", "choice": ("a",)}, "has regex, choice"),
        ({"json": {"type": "object"}}, "json is .*it has to be a string"),
        ({"json": "{"}, "json is no JSON"),
        ({"json": "[]"}, "json is a list"),
        ({"json": "[" * 100_000}, "json is no JSON"),
        ({"json_object": 1}, "json_object is 1"),
        ({"choice": ()}, "choice is"),
        ({"choice": ("a", "")}, "choice is"),
        ({"choice": "abc"}, "choice is 'abc'"),
        ({"grammar": 5}, "grammar is 5"),
    ],
)
def test_bad_structured_outputs(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match="^structured_outputs.*" + words):
        StructuredOutputs(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", 0),
        ("rows", 1.5),
        ("context", -1),
        ("kv_memory", 0),
        ("chunk", 1),
        ("queue", -1),
        ("threads", -1),
        ("rows", True),
        ("chunk", 4096),
        ("exact", "no"),
        ("prefix_reuse", 0),
        ("verify", 1),
    ],
)
def test_bad_engine_options(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is "):
        EngineConfig(**{name: value})


def test_the_edges_are_good() -> None:
    SamplingParams(1, 100, 0, 1, 0, 0, ("a",) * 16, (0,), True, 2)
    SamplingParams(seed=2**64 - 1, speculation=64, min_p=1, top_p=1e-9, temperature=0)
    EngineConfig(1, 0, 1, 2, 0, 0)


def test_the_tree_of_errors_lists_every_class_with_its_codes() -> None:
    listed = {
        name: (int(status) if status else None, int(code))
        for name, status, code in re.findall(r"(\w+Error) +(?:(\d{3}) +)?(\d)\b", errors.__doc__ or "")
    }
    classes = {
        name: item
        for name, item in vars(errors).items()
        if isinstance(item, type) and issubclass(item, GorgonError) and item is not GorgonError
    }
    assert listed.keys() == classes.keys()
    for name, (status, code) in listed.items():
        assert classes[name].exit_code == code
        parent = classes[name].__base__
        assert parent is not None and issubclass(parent, GorgonError)
        assert classes[name].status == (parent.status if status is None else status), name
