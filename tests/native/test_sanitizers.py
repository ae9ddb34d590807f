"""AddressSanitizer and UndefinedBehaviorSanitizer over random steps."""

import os
import subprocess
import sys

import pytest

from runtime.native.library import Library, build

CASES = 60


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sanitizers_find_nothing_in_tree_attention(library: Library) -> None:
    file = build(sanitize="address,undefined")
    runtime = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "tests.native.sanitized", str(file), "1000", str(1000 + CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0 and done.stdout.endswith("all is well\n"), done.stderr[-4000:]
