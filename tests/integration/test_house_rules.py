"""The rules that `tests/conftest.py` sets for every test are seen to fail when broken."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "conftest.py"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def run_one(pytester: pytest.Pytester) -> pytest.Pytester:
    """Return a scratch test folder under our house rules and our settings."""
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.path.joinpath("pyproject.toml").write_text(PYPROJECT.read_text(encoding="utf-8"), encoding="utf-8")
    return pytester


def _run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=body)
    return pytester.runpytest_subprocess("test_it.py", "-p", "no:cacheprovider")


def test_leaving_loopback_fails(run_one: pytest.Pytester) -> None:
    body = """
        import socket, pytest, zmq
        def test_out():
            socket.create_connection(("192.0.2.1", 9), timeout=0.1)
        def test_open():
            socket.create_server(("", 0))
        @pytest.mark.parametrize(("verb", "address"), [("bind", "tcp://*:*"), ("connect", "tcp://192.0.2.1:9")])
        def test_zmq(verb, address):
            with zmq.Context() as context, context.socket(zmq.PUSH) as push:
                getattr(push, verb)(address)
        def test_at_home():
            with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
                pass
            with zmq.Context() as context, context.socket(zmq.PUSH) as push:
                push.bind("tcp://127.0.0.1:*")
    """
    result = _run(run_one, body)
    result.assert_outcomes(passed=1, failed=4)
    assert str(result.stdout).count("LeftTheMachineError: ") >= 4


def test_a_thread_left_running_fails(run_one: pytest.Pytester) -> None:
    body = """
        import threading
        release = threading.Event()
        def test_it():
            threading.Thread(target=release.wait, name="forgotten").start()
        def test_that_frees_it():
            release.set()
    """
    result = _run(run_one, body)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*threads still running: *forgotten*"])


@pytest.mark.needs_linux
@pytest.mark.parametrize("orphan", [False, True])
def test_a_process_left_running_fails(run_one: pytest.Pytester, orphan: bool) -> None:
    command = "sh -c 'sleep 300 & exit 0'" if orphan else "sleep 300"
    body = f"""
        import os
        def test_it():
            pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exec {command}"], os.environ)
            {"os.waitpid(pid, 0)" if orphan else ""}
    """
    result = _run(run_one, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*processes still running: *sleep 300*"])


def test_an_error_line_fails_unless_announced(run_one: pytest.Pytester) -> None:
    body = """
        import logging, pytest
        def test_it():
            logging.getLogger("asapo.some").error("disk %s is gone", "a")
        @pytest.mark.expects_errors
        def test_announced():
            logging.getLogger("asapo.some").error("as planned")
    """
    result = _run(run_one, body)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR log lines: asapo.some: disk a is gone"])


SKIPPING = """
    import pytest
    def test_it():
        pytest.skip("{reason}")
"""


@pytest.mark.parametrize(
    ("forbid", "reason", "status"),
    [
        ("0", "not today", pytest.ExitCode.OK),
        ("1", "not today", pytest.ExitCode.TESTS_FAILED),
        ("1", "needs_linux: runs on Linux only", pytest.ExitCode.OK),
    ],
)
def test_a_run_can_forbid_skips(
    run_one: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, forbid: str, reason: str, status: pytest.ExitCode
) -> None:
    monkeypatch.setenv("ASAPO_FORBID_SKIPS", forbid)
    result = _run(run_one, SKIPPING.format(reason=reason))
    result.assert_outcomes(skipped=1)
    assert result.ret == status
