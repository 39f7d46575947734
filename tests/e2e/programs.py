"""User programs as processes: started, listened to, killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def program(script: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script of the tests with pipes to its stdin and stdout; killed in the end if it still runs."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    """Wait for the next line that the program prints; "" when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
