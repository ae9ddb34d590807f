"""`python -m service`: options, and how the process starts and ends.

What is heavy is imported once the options are known, so that --help is quick and Ctrl-C clean at any moment.
"""

import gc
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import GorgonError
from runtime.params import EngineConfig
from service.config import WebConfig
from service.options import read

if TYPE_CHECKING:
    from runtime.engine import Engine

logger = logging.getLogger("service")


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = read(arguments, os.environ)
        run(options.artifact, options.engine, options.web)
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

        engine = Engine.from_artifact(artifact, config, progress=logger.info)
        gc.collect()
        gc.freeze()  # what is there by now stays: each full collection would look at all of it, with everyone waiting
        return engine

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
