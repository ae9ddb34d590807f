"""`python -m runtime.bench COMMAND`: measures an artifact on this machine."""

import argparse
import sys
from collections.abc import Sequence

from runtime.bench import chat, decode, gpu, guidellm, load, products, profile, service
from runtime.bench.peers import command as peers
from runtime.errors import GorgonError

COMMANDS = (chat, decode, gpu, guidellm, load, products, profile, service, peers)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench", description=__doc__ and __doc__.partition(": ")[2])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except GorgonError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
