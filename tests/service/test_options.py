"""Every option as a flag, in the environment and in a file: what it does, which goes first, and what is refused."""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ConfigurationError
from runtime.params import EngineConfig
from service.config import WebConfig
from service.options import (
    ENGINE,
    OPTIONS,
    SERVER,
    START,
    Option,
    number,
    operators,
    parser,
    port,
    provider,
    read,
    seconds,
    size,
    truth,
    url,
    whole,
)

ROOT = Path(__file__).parents[2]
NEEDED = ["--artifact", "a"]

# by kind: three texts with their values, the last two of them no option's default
VALUES: dict[Callable[[str], Any], list[tuple[str, Any]]] = {
    str: [("one", "one"), ("two", "two"), ("three", "three")],
    url: [(f"http://{name}", f"http://{name}") for name in ("one", "two", "three")],
    Path: [("p/one", Path("p/one")), ("p/two", Path("p/two")), ("p/three", Path("p/three"))],
    whole: [("5", 5), ("6", 6), ("7", 7)],
    port: [("5", 5), ("6", 6), ("7", 7)],
    size: [("5K", 5 << 10), ("6M", 6 << 20), ("7g", 7 << 30)],
    number: [("5.5", 5.5), ("6", 6.0), ("7", 7.0)],
    operators: [("auto", "auto"), ("stock", "stock"), ("native", "native")],
    seconds: [("5.5", 5.5), ("6", 6.0), ("7", 7.0)],
    provider: [("cpu", "cpu"), ("cuda", "cuda"), ("tensorrt", "tensorrt")],
}
SET = [option for option in OPTIONS if option.field != "config"]


def flags(option: Option, text: str) -> list[str]:
    if option.parse is truth:
        return [f"--{option.name}" if text == "true" else f"--no-{option.name}"]
    return [f"--{option.name}", text]


def toml(option: Option, text: str) -> str:
    if option.parse is truth:
        return f"{option.name} = {text}\n"
    return f'{option.name} = ["{text}"]\n' if option.many else f'{option.name} = "{text}"\n'


def chosen(option: Option, arguments: list[str], environment: dict[str, str], text: str, tmp_path: Path) -> Any:
    """The value that the option has in the end."""
    file = tmp_path / "gorgon.toml"
    more = "" if option.field == "api_key_file" else 'api-key-file = "keys"\n'  # max-requests-per-key needs it
    file.write_text(text + more)
    start = [] if option.field == "artifact" else NEEDED
    options = read([*start, "--config", str(file), *arguments], environment)
    if option in START:
        return options.artifact
    value = getattr(options.engine if option in ENGINE else options.web, option.field)
    if option.many:
        [value] = value
    return value


@pytest.mark.parametrize("option", SET, ids=lambda option: option.name)
def test_flag_before_file_before_environment_before_default(option: Option, tmp_path: Path) -> None:
    if option.parse is truth:
        for one, other in (("true", "false"), ("false", "true")):
            by_file, environment = toml(option, one), {option.variable: other}
            assert chosen(option, flags(option, other), {option.variable: one}, by_file, tmp_path) == (other == "true")
            assert chosen(option, [], environment, by_file, tmp_path) == (one == "true")
            assert chosen(option, [], environment, "", tmp_path) == (other == "true")
    else:
        (first, a), (second, b), (third, c) = VALUES[option.parse]
        by_file, environment = toml(option, second), {option.variable: third}
        assert chosen(option, flags(option, first), environment, by_file, tmp_path) == a
        assert chosen(option, [], environment, by_file, tmp_path) == b
        assert chosen(option, [], environment, "", tmp_path) == c


def test_defaults_are_the_configurations() -> None:
    options = read(NEEDED, {})
    assert (options.engine, options.web, options.artifact) == (EngineConfig(), WebConfig(), Path("a"))


def test_every_field_is_an_option() -> None:
    assert [option.field for option in SERVER] == [field.name for field in fields(WebConfig)]
    assert {option.field for option in ENGINE} == {field.name for field in fields(EngineConfig)}


def test_several_values(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'artifact = "a"\nserved-model-name = ["x", "y"]\nrows = 3\nprefill-slowdown = 2.5\nkv-memory = 4096\n'
    )
    options = read([], {"GORGON_CONFIG": str(file), "GORGON_CORS_ORIGINS": "http://a,http://b"})
    assert options.web.served_model_name == ("x", "y") and options.web.cors_origins == ("http://a", "http://b")
    assert (options.engine.rows, options.engine.prefill_slowdown, options.engine.kv_memory) == (3, 2.5, 4096)
    assert read([*NEEDED, "--served-model-name", "p", "q"], {}).web.served_model_name == ("p", "q")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"GORGON_ROW": "4"}, "GORGON_ROW, which is no option"),
        ({"GORGON_ROWS": "four"}, "GORGON_ROWS: 'four' is not a whole number"),
        ({"GORGON_ROWS": ""}, "GORGON_ROWS: '' says nothing"),
        ({"GORGON_CORS_ORIGINS": "http://a,"}, "GORGON_CORS_ORIGINS: 'http://a,' says nothing"),
        ({"GORGON_EXACT": "1"}, "GORGON_EXACT: '1' is neither true nor false"),
        ({"GORGON_CONFIG": "/nowhere.toml"}, "config /nowhere.toml cannot be read"),
        ({"GORGON_PREFILL_SLOWDOWN": "x"}, "'x' is not a number"),
    ],
)
def test_what_the_environment_may_not_have(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        read(NEEDED, environment)
    assert read(NEEDED, {"OTHER_ROWS": "x"}).engine == EngineConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("row = 4", "has row, which is no option"),
        ("kv_memory = 4", "has kv_memory, which is no option"),
        ('config = "other.toml"', "has config, which is no option"),
        ("[engine]\nrows = 4", "has engine, which is no option"),
        ("rows = 4.5", "rows: '4.5' is not a whole number"),
        ("rows = true", "rows: True is not what it takes: a number"),
        ('exact = "true"', "exact: 'true' is not what it takes: true or false"),
        ("host = 5", "host: 5 is not what it takes: a string"),
        ("host = true", "host: True is not what it takes: a string"),
        ('cors-origins = "http://a"', "cors-origins: 'http://a' is not what it takes: an array of strings"),
        ("cors-origins = [5]", "cors-origins: [5] is not what it takes"),
        ('kv-memory = "4X"', "kv-memory: '4X' is not a size"),
        ("rows = ", "cannot be read"),
    ],
)
def test_what_a_file_may_not_have(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "gorgon.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        read([*NEEDED, "--config", str(file)], {})


def test_without_an_artifact() -> None:
    with pytest.raises(ConfigurationError, match="--artifact, GORGON_ARTIFACT"):
        read([], {})


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("512", 512), ("1K", 1024), ("512M", 512 << 20), ("4G", 4 << 30), ("4g", 4 << 30), ("2T", 2 << 40)],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert size(text) == bytes_


@pytest.mark.parametrize("text", ["", "G", "4X", "-1G", "1.5G", "4GB", "٤G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        size(text)


def test_help_names_every_option_its_variable_and_its_default() -> None:
    text = re.sub(r"\s+", " ", parser().format_help())
    for option in OPTIONS:
        assert f"--{option.name}" in text and f"[{option.variable}]" in text
    assert "(8000) [GORGON_PORT]" in text and "(16M) [GORGON_MAX_BODY_BYTES]" in text
    assert "(true) [GORGON_EXACT]" in text and "(none) [GORGON_API_KEY_FILE]" in text


def test_every_option_is_documented() -> None:
    tables = (ROOT / "README.md").read_text() + (ROOT / "docs" / "operations.md").read_text()
    rows = "\n".join(line.partition(" | ")[0] for line in tables.splitlines() if line.startswith("| `--"))
    documented = {name.removeprefix("no-") for name in re.findall(r"`--([a-z-]+)`", rows)}
    assert documented == {option.name for option in OPTIONS}


def test_a_mistake_ends_the_process_with_its_code() -> None:
    command = [sys.executable, "-m", "service", *NEEDED]
    done = subprocess.run(command, capture_output=True, text=True, env={"GORGON_ROW": "4"}, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: the environment has GORGON_ROW")
