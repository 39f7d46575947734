"""Role processes: each is started once, gets one JSON line for each round on stdin and answers with one on stdout.

So rounds pay for no imports, and every process has its own CPU clock.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any


class Role:
    """A child process `python -m benchmarks.MODULE`, seen from the harness."""

    def __init__(self, module: str, *args: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def tell(self, **facts: Any) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(facts) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for one line; an `error` in it fails the benchmark."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"role process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer

    def ask(self, **facts: Any) -> dict[str, Any]:
        """Send one line and wait for the answer."""
        self.tell(**facts)
        return self.hear()

    def __enter__(self) -> Role:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def rounds() -> Any:
    """Yield the facts of each round (in a role process)."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(**facts: Any) -> None:
    """Answer the harness (in a role process)."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
