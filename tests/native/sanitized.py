"""Random steps through a library built with sanitizers, which end the process where something is wrong.

Run by test_sanitizers.py as a process of its own: the sanitizer has to be loaded before all else.
"""

import sys
from pathlib import Path

from runtime.native.library import Library
from tests.native.attention import Kernel
from tests.native.test_tree_attention import PATHS, close, random_case


def main(file: str, first: str, last: str) -> None:
    library = Library.load(Path(file))
    for path in filter(library.has, PATHS):
        for seed in range(int(first), int(last)):
            close(Kernel(library, path, 1 + seed % 3), *random_case(seed))
    print("all is well")


if __name__ == "__main__":
    main(*sys.argv[1:])
