"""What every service process does alike."""

import subprocess
import sys

import pytest

from asapo.errors import AsapoError, DiskFull, OutOfMemory, known
from asapo.hostinfo import RESERVE_BYTES, check_memory, memory_left
from asapo.service import THREAD_LOST


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)


def test_a_service_that_loses_a_thread_ends() -> None:
    ended = run(
        "import threading\n"
        "from asapo.service import end_with_threads\n"
        "end_with_threads()\n"
        "threading.Thread(target=lambda: 1 / 0, name='writer').start()\n"
        "threading.Event().wait(20)\n"
    )
    assert ended.returncode == THREAD_LOST
    assert "writer" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


@pytest.mark.needs_linux
@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_what_a_limit_leaves_is_known_and_the_last_of_it_is_kept(kind: str) -> None:
    told = run(
        "import resource\n"
        "from asapo.errors import OutOfMemory\n"
        "from asapo.hostinfo import RESERVE_BYTES, check_memory, memory_left\n"
        f"resource.setrlimit(resource.{kind}, (4 << 30, resource.RLIM_INFINITY))\n"
        "left = memory_left()\n"
        "held = bytearray(256 << 20)\n"
        "assert 250 << 20 < left - memory_left() < 270 << 20, (left, memory_left())\n"
        "check_memory('begin')\n"
        "most = (4 << 30) - memory_left() + RESERVE_BYTES // 2\n"
        f"resource.setrlimit(resource.{kind}, (most, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    check_memory('begin')\n"
        "except OutOfMemory as exc:\n"
        "    print(exc.left_bytes, exc)\n"
    )
    assert told.returncode == 0, told.stderr
    left, _, text = told.stdout.partition(" ")
    assert int(left) < RESERVE_BYTES
    assert "no memory to begin" in text


def test_without_a_limit_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asapo.hostinfo.memory_left", lambda: None)
    check_memory("begin")
    assert memory_left() is None or memory_left() > RESERVE_BYTES  # type: ignore[operator]


def test_no_memory_is_an_error_of_ours_that_may_pass() -> None:
    error = known(MemoryError(), "store this")
    assert type(error) is OutOfMemory
    assert error.retriable
    assert "store this" in error.message
    full: AsapoError = DiskFull()
    assert known(full, "store this") is full
