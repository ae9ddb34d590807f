"""`python -m runtime.native`: builds the library of native operators, or says in one line why there will be none."""

import sys

from runtime.errors import ConfigurationError
from runtime.native.library import Library, build


def main() -> int:
    try:
        library = Library.load(build())
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"native operators: {library.file}, this processor's path is {library.path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
