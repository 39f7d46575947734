"""House rules for every test: loopback only, nothing left running, no unannounced ERROR log line, no hidden skip."""

import importlib.util
import ipaddress
import logging
import os
import platform
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import zmq

LEAVE_WITHIN_S = 2.0
"""How long a test may take, after its fixtures have stopped, to let its threads and processes end."""

ASAPO_CLIENTS = Path(__file__).parents[1] / "build" / "asapo-clients"
"""Environment of the clients of ASAP::O, made by `make test`."""
HAS_ASAPO_CLIENTS_WHEELS = (
    sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("python3.11") is not None
)
"""Whether there are wheels of the clients of ASAP::O for this machine."""
ALLOWED_SKIPS = frozenset({"needs_linux"} | ({"needs_asapo_clients"} if not HAS_ASAPO_CLIENTS_WHEELS else set()))
"""Markers of parts that cannot be installed everywhere; a skip for any other reason fails a run that forbids skips."""

_PR_SET_CHILD_SUBREAPER = 36

hypothesis.settings.register_profile("asapo", deadline=None, print_blob=True)
hypothesis.settings.load_profile("asapo")


# --- optional parts -------------------------------------------------------------------------------------------------


def _lacks_modules(extra: str, *modules: str) -> Callable[[], str | None]:
    """Make a probe that names the first of `modules` that cannot be found."""

    def probe() -> str | None:
        missing = next((name for name in modules if importlib.util.find_spec(name) is None), None)
        return missing and f"module {missing} is not installed (extra `{extra}`)"

    return probe


def _lacks_nats() -> str | None:
    """Name what is missing to run a NATS server: the client module or the program."""
    beside_python = Path(sys.executable).parent / "nats-server"
    if not beside_python.exists() and shutil.which("nats-server") is None:
        return "program nats-server is not installed (extra `bench`)"
    return _lacks_modules("bench", "nats")()


def _lacks_asapo_clients() -> str | None:
    """Tell whether the environment of the clients of ASAP::O is missing."""
    if ASAPO_CLIENTS.joinpath(".complete").exists():
        return None
    reason = "make test could not install them" if HAS_ASAPO_CLIENTS_WHEELS else "no wheels, or no Python 3.11, here"
    return f"{ASAPO_CLIENTS.relative_to(ASAPO_CLIENTS.parents[1])} is missing ({reason})"


def _lacks_linux() -> str | None:
    """Tell whether Linux is missing."""
    return None if sys.platform == "linux" else f"runs on Linux only, not on {sys.platform}"


PARTS: dict[str, Callable[[], str | None]] = {
    "needs_asapo_clients": _lacks_asapo_clients,
    "needs_codecs": _lacks_modules("codecs", "hdf5plugin", "imagecodecs"),
    "needs_hdf5": _lacks_modules("hdf5", "h5py"),
    "needs_linux": _lacks_linux,
    "needs_nats": _lacks_nats,
    "needs_replay": _lacks_modules("replay", "extra_data", "fabio", "h5py", "hdf5plugin"),
    "needs_server": _lacks_modules("server", "lark", "prometheus_client", "pydantic_settings", "re2", "structlog"),
}
"""Marker of an optional part -> probe that returns what is missing, or None when the part is there."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an absent part, under the name of its marker."""
    missing = {name: reason for name, probe in PARTS.items() if (reason := probe())}
    for item in items:
        for name in missing.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=f"{name}: {missing[name]}"))


class SkipLedger:
    """Counts the skips of a run by reason, and fails a run that forbids them (`ASAPO_FORBID_SKIPS=1`)."""

    def __init__(self, *, forbid: bool) -> None:
        self.forbid = forbid
        self.counts: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that was skipped; an expected failure is not a skip."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._count(report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a module that skipped itself."""
        if report.skipped:
            self._count(report.longrepr)

    def _count(self, longrepr: object) -> None:
        text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reason = str(text).removeprefix("Skipped: ")
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def forbidden(self) -> list[str]:
        """Return the reasons that may not appear in this run."""
        if not self.forbid:
            return []
        return sorted(reason for reason in self.counts if reason.partition(":")[0] not in ALLOWED_SKIPS)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn a forbidden skip into a failed run."""
        if self.forbidden() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which skips failed the run."""
        for reason in self.forbidden():
            terminalreporter.line(f"forbidden skip, {self.counts[reason]} times: {reason}", red=True)


# --- loopback only --------------------------------------------------------------------------------------------------


class LeftTheMachineError(AssertionError):
    """A test tried to reach, or to be reached from, another machine."""


def _require_loopback(host: str, what: str) -> None:
    if host != "localhost" and not _is_loopback(host):
        raise LeftTheMachineError(f"{what} of {host or 'every interface'!r}: tests stay on loopback")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guard_sockets(event: str, args: tuple[Any, ...]) -> None:
    """Refuse far addresses; an audit hook sees every Python socket, however it was made."""
    if event in {"socket.connect", "socket.bind", "socket.sendto"} and args[0].family in {
        socket.AF_INET,
        socket.AF_INET6,
    }:
        _require_loopback(str(args[1][0]), event)


def _guard_zmq(patch: pytest.MonkeyPatch) -> None:
    """Refuse far endpoints of ZeroMQ, whose sockets Python does not see."""
    for name in ("bind", "connect"):
        original = getattr(zmq.Socket, name)

        def guarded(self: Any, addr: str, *, _original: Any = original, _name: str = name) -> Any:
            scheme, _, rest = addr.partition("://")
            if scheme in {"tcp", "udp", "ws"}:
                _require_loopback(rest.rpartition(":")[0].strip("[]"), f"zmq {_name}")
            return _original(self, addr)

        patch.setattr(zmq.Socket, name, guarded)


# --- nothing left behind --------------------------------------------------------------------------------------------


def _become_subreaper() -> None:
    """Make orphans of the processes we start our own children, so that they are seen too."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> dict[int, str]:
    """Return pid -> command line of the living children of this process; empty where /proc is missing."""
    found: dict[int, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended while we looked
            continue
        # The resource tracker of multiprocessing is shared and lives as long as the interpreter.
        if int(parent) == os.getpid() and state not in "ZX" and "resource_tracker" not in command:
            found[int(stat.parent.name)] = command.strip()
    return found


def _new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]


def _leftovers(threads_before: set[threading.Thread], children_before: set[int]) -> tuple[list[str], dict[int, str]]:
    """Wait for new threads and processes to end; return the names of those that did not."""
    deadline_s = time.monotonic() + LEAVE_WITHIN_S
    while True:
        threads = [thread.name for thread in _new_threads(threads_before)]
        children = {pid: command for pid, command in _children().items() if pid not in children_before}
        if not (threads or children) or time.monotonic() > deadline_s:
            return threads, children
        time.sleep(0.01)


def _end(pid: int) -> None:
    """Kill a leftover process, so that it does not disturb the next test."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    threads_before, children_before = set(threading.enumerate()), set(_children())
    yield
    threads, children = _leftovers(threads_before, children_before)
    for pid in children:
        _end(pid)
    assert not threads, f"threads still running: {threads}"
    assert not children, f"processes still running: {children}"


# --- no unannounced error -------------------------------------------------------------------------------------------


class _ErrorCollector(logging.Handler):
    """Keeps the text of every record of level ERROR and above."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Format at once; the arguments may change later."""
        self.lines.append(f"{record.name}: {self.format(record)}")


@pytest.fixture(autouse=True)
def _no_error_lines(request: pytest.FixtureRequest, _nothing_left_behind: None) -> Iterator[None]:
    collector = _ErrorCollector()
    root = logging.getLogger()
    root.addHandler(collector)
    yield
    root.removeHandler(collector)
    if request.node.get_closest_marker("expects_errors") is None:
        assert not collector.lines, "ERROR log lines: " + "\n".join(collector.lines)


# --- settings of a run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def soak_share() -> float:
    """Return the share of its full length a soak test runs for, from `ASAPO_SOAK_SHARE`; above 0, at most 1."""
    share = float(os.environ.get("ASAPO_SOAK_SHARE", "1"))
    if not 0 < share <= 1:
        pytest.fail(f"ASAPO_SOAK_SHARE must be above 0 and at most 1, not {share}")
    return share


def pytest_configure(config: pytest.Config) -> None:
    """Install the guards for the whole run."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    _guard_zmq(patch)
    sys.addaudithook(_guard_sockets)
    _become_subreaper()
    config.pluginmanager.register(SkipLedger(forbid=os.environ.get("ASAPO_FORBID_SKIPS") == "1"))
