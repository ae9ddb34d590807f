"""The server's options: as flags, environment variables and keys of a TOML file, all from one table.

A flag goes before the file, the file before the environment, the environment before the default.
"""

import argparse
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ConfigurationError
from runtime.params import OPERATORS, PROVIDERS, EngineConfig
from service.config import WebConfig

PREFIX = "GORGON_"
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str) -> int:
    """Bytes: a whole number, with K, M, G or T after it for powers of 1024."""
    unit = UNITS.get(text[-1:].upper(), 1)
    digits = text if unit == 1 else text[:-1]
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write bytes, or 512M, or 4G")
    return int(digits) * unit


def whole(text: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number up to 65535, 0 for a free one")
    return int(text)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, from 0")
    return value


def url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL: it begins with http:// or https://")
    return text


def provider(text: str) -> str:
    if text not in PROVIDERS:
        raise argparse.ArgumentTypeError(f"{text!r} is no provider: there are {', '.join(PROVIDERS)}")
    return text


def truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def operators(text: str) -> str:
    if text not in OPERATORS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(OPERATORS)}")
    return text


TEXTS = (str, Path, url, operators, provider)  # kinds that a file gives as strings


@dataclass(frozen=True, slots=True)
class Option:
    field: str  # of the configuration that it goes to
    parse: Callable[[str], Any]
    help: str
    metavar: str | None = None
    many: bool = False  # several values: after a flag, between commas in the environment, an array in the file

    @property
    def name(self) -> str:
        """In the file; with -- before it the flag."""
        return self.field.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.field.upper()

    def of_text(self, text: str) -> Any:
        """Raises argparse.ArgumentTypeError."""
        items = text.split(",") if self.many else [text]
        if not all(items):
            raise argparse.ArgumentTypeError(f"{text!r} says nothing: give a value, or leave the variable out")
        return tuple(self.parse(item) for item in items) if self.many else self.parse(text)

    def of_file(self, value: object) -> Any:
        """A value that TOML has read; raises argparse.ArgumentTypeError."""
        if self.many and isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return tuple(self.parse(item) for item in value)
        if self.parse is truth or isinstance(value, bool):
            if self.parse is truth and isinstance(value, bool):
                return value
            raise argparse.ArgumentTypeError(f"{value!r} is not what it takes: {self._takes}")
        if isinstance(value, str) and not self.many:
            return self.parse(value)
        if isinstance(value, int | float) and self.parse not in TEXTS:
            return self.parse(str(value))
        raise argparse.ArgumentTypeError(f"{value!r} is not what it takes: {self._takes}")

    @property
    def _takes(self) -> str:
        if self.many:
            return "an array of strings"
        return "true or false" if self.parse is truth else "a string" if self.parse in TEXTS else "a number"


START = (
    Option("artifact", Path, "directory that `python -m export` wrote", "DIRECTORY"),
    Option("config", Path, "a TOML file with options by these names, as kv-memory = \"4G\"", "FILE"),
)  # fmt: skip
SERVER = (
    Option("host", str, "address to listen on"),
    Option("port", port, "port to listen on, 0 for a free one"),
    Option("drain_seconds", seconds, "how long SIGTERM lets running requests go on", "SECONDS"),
    Option("served_model_name", str, "what clients call the model, none: as the artifact does", "NAME", many=True),
    Option("cors_origins", str, "pages that may call this server from a browser, as https://example.org, or * for any",
           "ORIGIN", many=True),
    Option("max_body_bytes", size, "the largest body of a request, as 512K or 16M", "SIZE"),
    Option("read_timeout", seconds, "how long a request's head may take to come, and its body, 0: no limit", "SECONDS"),
    Option("write_timeout", seconds, "how long a client may take nothing of what waits for it, 0: no limit", "SECONDS"),
    Option("request_timeout", seconds, "ends an answer that is not complete by then, 0: none", "SECONDS"),
    Option("stream_interval", seconds, "at least so long between two events of an answer, but before the last one",
           "SECONDS"),
    Option("api_key_file", Path, "who may ask: a KEY or NAME:KEY a line, none: anybody", "FILE"),
    Option("max_requests_per_key", whole, "requests of one key at the same time, 0: no limit", "NUMBER"),
    Option("log_requests", truth, "a line of JSON on stderr for each request, without its text"),
    Option("otlp_traces_endpoint", url, "send a span for each request to this collector, without its text, as "
           "http://localhost:4318/v1/traces", "URL"),
)  # fmt: skip
ENGINE = (
    Option("rows", whole, "sequences that run at the same time", "NUMBER"),
    Option("context", whole, "tokens of prompt and answer together, 0: the model's own", "TOKENS"),
    Option("kv_memory", size, "what keys and values may take, as 512M or 4G", "SIZE"),
    Option("chunk", whole, "prompt tokens a step, at most; 0: as many as suit the graph form", "TOKENS"),
    Option("prefill_slowdown", number, "how many times its usual step a sequence may wait beside others' prompts",
           "TIMES"),
    Option("lookup", truth, "draft what followed the newest tokens where they stood before"),
    Option("prefix_reuse", truth, "keep finished rows for prompts that begin alike, while there is room"),
    Option("queue", whole, "requests that may wait", "NUMBER"),
    Option("threads", whole, "threads of ONNX Runtime, 0: all cores", "NUMBER"),
    Option("provider", provider, "what runs the graphs: auto, cpu, cuda or tensorrt", "NAME"),
    Option("exact", truth, "the same bits in any batch: at least two nodes a row, with stock operators"),
    Option("operators", operators, "native: those that `python -m runtime.native` builds, stock: ONNX Runtime's own,"
           " auto: native ones where they are built", "auto|native|stock"),
    Option("verify", truth, "check the files' hashes before loading"),
)  # fmt: skip
OPTIONS = (*START, *SERVER, *ENGINE)


@dataclass(frozen=True, slots=True)
class Options:
    artifact: Path
    engine: EngineConfig
    web: WebConfig


def read(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Options:
    """Raises ConfigurationError, or ends the process as argparse does."""
    flags = vars(parser().parse_args(arguments))
    given = _of_environment(environment)
    if file := flags.get("config", given.get("config")):
        given |= _of_file(file)
    given |= flags
    if "artifact" not in given:
        raise ConfigurationError(f"no artifact: give --artifact, {PREFIX}ARTIFACT, or artifact in the file of --config")
    engine = {option.field: given[option.field] for option in ENGINE if option.field in given}
    web = {option.field: given[option.field] for option in SERVER if option.field in given}
    return Options(given["artifact"], EngineConfig(**engine), WebConfig(**web))


def parser() -> argparse.ArgumentParser:
    """Of the flags; those that are not given are absent from what it returns."""
    top = argparse.ArgumentParser(
        prog="python -m service",
        description="Serves an artifact over HTTP. Each option may also be set in the environment, by the name in "
        "brackets, or in the file of --config; flags go before the file, and that before the environment.",
        epilog="exit codes: 0 stopped by a signal, 1 an error of ours, 2 an option that cannot work, 3 a bad artifact",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    defaults: tuple[tuple[tuple[Option, ...], Any, Any], ...] = (
        (START, top, None),
        (SERVER, top.add_argument_group("server"), WebConfig()),
        (ENGINE, top.add_argument_group("engine"), EngineConfig()),
    )
    for options, group, config in defaults:
        for option in options:
            shown = f" ({_shown(option, getattr(config, option.field))})" if config else ""
            text = f"{option.help}{shown} [{option.variable}]".replace("%", "%%")
            if option.parse is truth:
                group.add_argument(f"--{option.name}", action=argparse.BooleanOptionalAction, help=text)
            elif option.many:
                group.add_argument(
                    f"--{option.name}", type=option.parse, metavar=option.metavar, nargs="+", action=_Several, help=text
                )
            else:
                group.add_argument(f"--{option.name}", type=option.parse, metavar=option.metavar, help=text)
    return top


class _Several(argparse.Action):
    """A tuple, as the configuration has it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _shown(option: Option, default: Any) -> str:
    if option.parse is size:
        return f"{default >> 20}M"
    if option.parse is truth:
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default or "none" if option.many else default).lower()


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {option.variable: option for option in OPTIONS}
    given = {}
    for name in sorted(environment):
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            raise ConfigurationError(f"the environment has {name}, which is no option: see --help for those there are")
        given[known[name].field] = _parsed(f"the environment's {name}", known[name].of_text, environment[name])
    return given


def _of_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"config {file} cannot be read: {error}") from None
    known = {option.name: option for option in OPTIONS if option.field != "config"}
    given = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigurationError(f"config {file} has {name}, which is no option: there are {', '.join(known)}")
        given[known[name].field] = _parsed(f"config {file}: {name}", known[name].of_file, value)
    return given


def _parsed(place: str, parse: Callable[[Any], Any], value: object) -> Any:
    try:
        return parse(value)
    except argparse.ArgumentTypeError as error:
        raise ConfigurationError(f"{place}: {error}") from None
