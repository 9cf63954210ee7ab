"""What the tests of GPU kernels share."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def passed_under_the_interpreter():
    """Run the tests of a file in a process in which Triton interprets kernels; return how many."""

    def run(path):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        return int(re.search(r"(\d+) passed", done.stdout)[1])

    return run
