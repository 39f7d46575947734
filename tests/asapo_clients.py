"""The real clients of ASAP::O for a test: each in a process of its own environment, as they are C++ and may crash."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

PYTHON: Final = Path(__file__).parents[1] / "build" / "asapo-clients" / "bin" / "python"
PROGRAM: Final = Path(__file__).with_name("asapo_client_process.py")


class ClientError(Exception):
    """What the client raised: `kind` is its class, `fields` what it carried."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(f"{answer['error']}: {answer['text']}")
        self.kind: str = answer["error"]
        self.text: str = answer["text"]
        self.fields = {key: value for key, value in answer.items() if key not in ("error", "text")}


class RealClient:
    """One client; any of its calls by name: `client.get_next("g", stream="s")`.

    Parameters
    ----------
    kind : {"consumer", "producer"}
    args
        As `create_consumer` or `create_producer` takes them.
    """

    def __init__(self, kind: str, *args: Any) -> None:
        self._process = subprocess.Popen(
            [PYTHON, "-W", "ignore", "-X", "faulthandler", PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env={"PYTHONUTF8": "1"},
        )  # fmt: skip
        self._say({"kind": kind, "args": args})

    def __enter__(self) -> RealClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()

    def _say(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            assert self._process.stdout is not None
            self._say({"call": name, "args": args, "kwargs": kwargs})
            line = self._process.stdout.readline()
            assert line, f"the client ended in {name}, status {self._process.wait()}"
            answer = json.loads(line)
            if "error" in answer:
                raise ClientError(answer)
            return answer["result"]

        return call


def real_consumer(
    http: str, *, beamtime: str = "bt1", source: str = "det", timeout_ms: int = 300, filesystem: bool = False
) -> RealClient:
    """Return a consumer of the HTTP front at this address; without `filesystem` it asks for bytes by file transfer."""
    host = http.removeprefix("http://")
    return RealClient("consumer", host, "/nowhere", filesystem, beamtime, source, "tok", timeout_ms)
