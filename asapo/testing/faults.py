"""File operations that fail, stall or end the process on purpose, and places at which a process dies.

They wrap what `asapo.storage.files` does, and hook into `asapo.failpoints`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

from asapo import failpoints
from asapo.errors import ConfigError
from asapo.storage.files import FileOps, install_files, size_of

P = ParamSpec("P")
T = TypeVar("T")

VARIABLE: Final = "ASAPO_FAULTS"
"""Environment variable with the faults of a whole process: `pwrite:17:kill,append:3:ENOSPC:.idx` for file operations,
`ingest.after-journal:5:kill` for a place of `asapo.failpoints`, or one that a test switches on by making a file, for
example `switch:/tmp/on:ENOSPC:stream1`. `clock:/tmp/step` lets the wall clock be wrong by the seconds in that file, and
with `threads:/tmp/none` no thread can be started while that file is there."""
WRITES: Final = frozenset({"pwrite", "append"})


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and when."""

    operation: str
    """Name of the operation as in `FileOps`: create, append, pwrite, allocate, truncate, close, fsync, ..."""
    at: int = 1
    """Which call of that operation it hits, from 1."""
    action: str = "EIO"
    """Name of the error that the call meets, or `short` (half is written), `kill` (SIGKILL instead of the call),
    `tear` (half is written, then SIGKILL), `after` (the call is done, then SIGKILL)."""
    path_part: str = ""
    """Only calls on paths that contain this are counted."""
    times: int = 1
    """How many calls in a row it hits."""

    def __post_init__(self) -> None:
        if self.action not in {"short", "kill", "tear", "after"} and not hasattr(errno, self.action):
            raise ConfigError(f"fault action {self.action!r}: expected short, kill, tear, after or an errno name")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read `operation:at:action[:path_part]`."""
        parts = text.split(":")
        if len(parts) not in {3, 4} or not parts[1].isdigit():
            raise ConfigError(f"fault {text!r}: expected operation:at:action or operation:at:action:path_part")
        return cls(parts[0], int(parts[1]), parts[2], "".join(parts[3:]))


class FaultyFiles(FileOps):
    """Does what is asked, except for the calls that its faults name."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        self.counts: Counter[str] = Counter()
        """Calls per operation."""
        self.hits: Counter[Fault] = Counter()
        """How many calls each fault has hit."""
        self._seen: Counter[Fault] = Counter()
        self._lock = threading.Lock()

    def invoke(self, operation: str, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the call, or what a fault makes of it."""
        fault = self._fault(operation, path)
        if fault is None:
            return call(*args, **kwargs)
        if fault.action in {"short", "tear"}:
            result: T = call(*_halved(args))  # type: ignore[call-arg]
        elif fault.action == "after":
            result = call(*args, **kwargs)
        elif fault.action != "kill":
            number = getattr(errno, fault.action)
            raise OSError(number, os.strerror(number), path)
        if fault.action != "short":
            _die()
        return result

    def _fault(self, operation: str, path: str) -> Fault | None:
        with self._lock:
            self.counts[operation] += 1
            hit = None
            for fault in self.faults:
                if fault.operation == operation and fault.path_part in path:
                    self._seen[fault] += 1
                    if hit is None and fault.at <= self._seen[fault] < fault.at + fault.times:
                        hit = fault
                        self.hits[fault] += 1
            return hit


def _halved(args: Iterable[Any]) -> list[Any]:
    """Return the arguments of a write with only the first half of its bytes."""
    fd, data, *offset = args
    joined = b"".join(data) if isinstance(data, (list, tuple)) else bytes(data)
    half = joined[: (len(joined) + 1) // 2]
    return [fd, [half], *offset] if offset else [fd, half]


class SwitchedFiles(FileOps):
    """Calls fail, or wait, as long as a file is there: a test switches faults of another process on and off by it."""

    def __init__(
        self, switch: str, *, action: str = "stuck", operations: Iterable[str] = WRITES, path_part: str = ""
    ) -> None:
        if action != "stuck" and not hasattr(errno, action):
            raise ConfigError(f"fault action {action!r}: expected stuck or an errno name")
        self.switch = switch
        self.action = action
        self.operations = frozenset(operations)
        self.path_part = path_part

    @classmethod
    def parse(cls, text: str) -> SwitchedFiles:
        """Read `switch:FILE:action` or `switch:FILE:action:path_part`."""
        parts = text.split(":")
        if len(parts) not in {3, 4}:
            raise ConfigError(f"fault {text!r}: expected switch:FILE:action or switch:FILE:action:path_part")
        return cls(parts[1], action=parts[2], path_part="".join(parts[3:]))

    def invoke(self, operation: str, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the call unless the switch is on."""
        if operation in self.operations and self.path_part in path:
            if self.action != "stuck" and os.path.exists(self.switch):
                number = getattr(errno, self.action)
                raise OSError(number, os.strerror(number), path)
            while os.path.exists(self.switch):
                time.sleep(0.01)
        return call(*args, **kwargs)


class SlowFiles(FileOps):
    """A file system that does not answer: calls of the named operations wait while `stuck` is set."""

    def __init__(self, *operations: str) -> None:
        self.operations = frozenset(operations) or WRITES
        self.waiting = threading.Semaphore(0)
        """Released once for every call that begins to wait: acquire it to know that a call is stuck."""
        self._free = threading.Event()
        self._free.set()

    def block(self) -> None:
        """Let calls wait from now on."""
        self._free.clear()

    def unblock(self) -> None:
        """Let all calls go on."""
        self._free.set()

    def invoke(self, operation: str, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Wait while blocked, then do the call."""
        if operation in self.operations and not self._free.is_set():
            self.waiting.release()
            self._free.wait()
        return call(*args, **kwargs)


class FullDisk(FileOps):
    """A disk with room for `capacity_bytes`; the write that meets the end is cut short, as on real ones."""

    def __init__(self, capacity_bytes: int) -> None:
        self.left = capacity_bytes
        """Bytes that can still be written."""
        self._lock = threading.Lock()

    def make_room(self, nbytes: int) -> None:
        """Let `nbytes` more be written."""
        with self._lock:
            self.left += nbytes

    def invoke(self, operation: str, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the call while there is room."""
        if operation not in WRITES:
            return call(*args, **kwargs)
        given: Any = args
        fd, data, *offset = given
        buffers = data if isinstance(data, (list, tuple)) else [data]
        wanted = size_of(buffers)
        with self._lock:
            granted = min(wanted, self.left)
            self.left -= granted
        if granted == wanted:
            return call(*args, **kwargs)
        if granted == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        cut = b"".join(buffers)[:granted]
        shorter: Any = [fd, [cut], *offset] if offset else [fd, cut]
        return call(*shorter)  # type: ignore[call-arg]


class Deaths:
    """Ends the process at named places: at the n-th passing of each."""

    def __init__(self, places: Mapping[str, int]) -> None:
        if unknown := places.keys() - failpoints.NAMES.keys():
            raise ConfigError(f"failpoints {sorted(unknown)}: expected some of {', '.join(failpoints.NAMES)}")
        self._places = places
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def parse(cls, faults: Iterable[str]) -> Deaths:
        """Read `name:at:kill` of each."""
        places = {}
        for text in faults:
            name, at, action = [*text.split(":"), "", ""][:3]
            if not at.isdigit() or action != "kill":
                raise ConfigError(f"fault {text!r}: expected failpoint:at:kill")
            places[name] = int(at)
        return cls(places)

    def __call__(self, name: str) -> None:
        """Pass a place, or die at it."""
        with self._lock:
            self._passed[name] += 1
            due = self._passed[name] == self._places.get(name)
        if due:
            _die()


def step_clock(path: str) -> None:
    """Let the wall clock of this process go wrong by the seconds that a file holds, as long as it is there.

    It reaches what Python code reads by `time.time` and `time.time_ns`. Nothing of ours asks for the time of day in
    another way: ZeroMQ and waits use the monotonic clock, SQL never asks for the time, and a test looks after that.
    """
    right_ns = time.time_ns

    def wrong_ns() -> int:
        try:
            with open(path) as file:
                return right_ns() + int(float(file.read() or 0) * 1e9)
        except FileNotFoundError:
            return right_ns()

    time.time_ns = wrong_ns
    time.time = lambda: wrong_ns() / 1e9


def withhold_threads(switch: str) -> None:
    """Let no thread be started in this process as long as a file is there, as at a limit of the system."""
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if os.path.exists(switch):
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = limited  # type: ignore[method-assign, assignment]


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    while True:  # the signal needs a moment; nothing more may be done
        threading.Event().wait()


def install_from_environment() -> FileOps | None:
    """Make the faults named in `ASAPO_FAULTS` those of this process; return those of files, None without any."""
    text = os.environ.get(VARIABLE, "")
    if text.startswith("clock:"):
        step_clock(text.removeprefix("clock:"))
        return None
    if text.startswith("threads:"):
        withhold_threads(text.removeprefix("threads:"))
        return None
    if text.startswith("switch:"):
        files: FileOps = SwitchedFiles.parse(text)
    else:
        faults = [fault for fault in text.split(",") if fault]
        places = [fault for fault in faults if "." in fault.partition(":")[0]]
        if places:
            failpoints.install(Deaths.parse(places))
        if len(places) == len(faults):
            return None
        files = FaultyFiles(*[Fault.parse(fault) for fault in faults if fault not in places])
    install_files(files)
    return files


def main() -> int:
    """Run the `asapo` command given as arguments under the faults of the environment."""
    from asapo.cli import main as command

    install_from_environment()
    return command(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
