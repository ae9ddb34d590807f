"""`python -m service`: options, and how the process starts and ends.

What is heavy is imported once the options are known, so that --help is quick and Ctrl-C clean at any moment.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import GorgonError
from runtime.params import EngineConfig
from service.config import WebConfig

if TYPE_CHECKING:
    from runtime.engine import Engine

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

logger = logging.getLogger("service")


def size(text: str) -> int:
    """Bytes: a whole number, with K, M, G or T after it for powers of 1024."""
    unit = UNITS.get(text[-1:].upper(), 1)
    digits = text if unit == 1 else text[:-1]
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write bytes, or 512M, or 4G")
    return int(digits) * unit


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number up to 65535, 0 for a free one")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, from 0")
    return value


def parser() -> argparse.ArgumentParser:
    default = EngineConfig()
    top = argparse.ArgumentParser(
        prog="python -m service",
        description="Serves an artifact over HTTP.",
        epilog="exit codes: 0 stopped by a signal, 1 an error of ours, 2 an option that cannot work, 3 a bad artifact",
    )
    add = top.add_argument
    add("--artifact", type=Path, required=True, help="directory that `python -m export` wrote")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--served-model-name", nargs="+", default=[], metavar="NAME",
        help="what clients call the model, one or several names (the artifact's own)")  # fmt: skip
    add("--cors-origins", nargs="+", default=[], metavar="ORIGIN",
        help="pages that may call this server from a browser, as https://example.org, or * for any (none)")  # fmt: skip
    add("--port", type=port, default=8000, help="port to listen on, 0 for a free one (%(default)s)")
    add(
        "--drain-seconds", type=seconds, default=30.0, help="how long SIGTERM lets running requests go on (%(default)g)"
    )
    add("--max-body-bytes", type=size, default=WebConfig().max_body_bytes, metavar="SIZE",
        help="the largest body of a request, as 512K or 16M (16M)")  # fmt: skip
    add(
        "--request-timeout",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="ends an answer not complete by then, 0: none",
    )
    add("--api-key-file", type=Path, metavar="FILE", help="who may ask: a KEY or NAME:KEY a line (anybody)")
    add(
        "--max-requests-per-key", type=int, default=0, metavar="NUMBER", help="of one key at the same time, 0: no limit"
    )
    engine = top.add_argument_group("engine")
    add = engine.add_argument
    add("--rows", type=int, default=default.rows, help="sequences that run at the same time (%(default)s)")
    add("--context", type=int, default=default.context, help="tokens of prompt and answer together, 0: the model's own")
    add("--kv-memory", type=size, default=default.kv_memory, metavar="SIZE",
        help=f"what keys and values may take, as 512M or 4G ({default.kv_memory >> 20}M)")  # fmt: skip
    add("--chunk", type=int, default=default.chunk, help="prompt tokens a step, at most (%(default)s)")
    add("--prefill-slowdown", type=float, default=default.prefill_slowdown, metavar="TIMES",
        help="how many times its usual step a sequence may wait beside others' prompts (%(default)g)")  # fmt: skip
    add("--lookup", action=argparse.BooleanOptionalAction, default=default.lookup,
        help="draft what followed the newest tokens where they stood before")  # fmt: skip
    add("--prefix-reuse", action=argparse.BooleanOptionalAction, default=default.prefix_reuse,
        help="keep finished rows for prompts that begin alike, while there is room")  # fmt: skip
    add("--queue", type=int, default=default.queue, help="requests that may wait (%(default)s)")
    add("--threads", type=int, default=default.threads, help="threads of ONNX Runtime, 0: all cores (%(default)s)")
    add("--exact", action=argparse.BooleanOptionalAction, default=default.exact,
        help="the same bits in any batch: at least two nodes a row")  # fmt: skip
    add("--verify", action="store_true", default=default.verify, help="check the files' hashes before loading")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = EngineConfig(**{field.name: getattr(options, field.name) for field in fields(EngineConfig)})
        names, origins = tuple(options.served_model_name), tuple(options.cors_origins)
        web = WebConfig(
            options.host,
            options.port,
            options.drain_seconds,
            names,
            origins,
            options.max_body_bytes,
            options.request_timeout,
            options.api_key_file,
            options.max_requests_per_key,
        )
        run(options.artifact, config, web)
    except GorgonError as error:
        logger.error("error: %s", error)
        return error.exit_code
    except KeyboardInterrupt:
        pass
    return 0


def run(artifact: Path, config: EngineConfig, web: WebConfig) -> None:
    from service.server import listen, serve

    def load() -> "Engine":
        from runtime.engine import Engine

        return Engine.from_artifact(artifact, config, progress=logger.info)

    with listen(web.host, web.port) as listener:
        address, port = listener.getsockname()[:2]
        logger.info(
            "listening on http://%s:%d, loading %s", f"[{address}]" if ":" in address else address, port, artifact
        )
        serve(load, listener, web)
    logger.info("stopped")


if __name__ == "__main__":
    code = main()
    if threading.active_count() > 1:
        # The engine's thread is inside a load or a step that nothing can interrupt, and would meet a dying interpreter.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)
