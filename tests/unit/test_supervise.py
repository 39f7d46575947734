"""The supervisor with processes that do what the test says."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asapo import supervise
from asapo.supervise import Service, ServiceFailed, ServiceStopped, Supervisor

WITHIN_S = 20.0
OBEDIENT = """
import json, os, sys
settings = json.loads(sys.stdin.readline())
with open(settings["lives"], "a") as file:
    file.write(json.dumps({**settings, "pid": os.getpid()}) + "\\n")
print(json.dumps({"ready": True, "port": settings.get("port", 7)}), flush=True)
while sys.stdin.readline():
    pass
"""
DEAD_AT_ONCE = "import sys; sys.exit(3)"
SILENT = "import sys; sys.stdin.read()"


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start `asapo NAME` as the program of that name."""
    package = tmp_path / "programs" / "asapo"
    package.mkdir(parents=True)
    for name, text in {"obedient": OBEDIENT, "dead": DEAD_AT_ONCE, "silent": SILENT}.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    (package / "__main__.py").write_text(
        f"import sys, runpy; runpy.run_path({str(package)!r} + '/' + sys.argv[1] + '.py')", encoding="utf-8"
    )
    runner = tmp_path / "python"
    runner.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {package}/__main__.py "$@"\n', encoding="utf-8")
    runner.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(runner))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {WITHIN_S} s: {what}"
        time.sleep(0.01)


def obedient(tmp_path: Path, name: str = "obedient") -> Service:
    settings = {"lives": str(tmp_path / f"{name}.jsonl")}
    return Service(name, ["obedient"], settings, pin=lambda ready: {"port": ready["port"]})


def lives(tmp_path: Path, name: str = "obedient") -> list[dict[str, int]]:
    path = tmp_path / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_a_service_gets_its_settings_and_says_that_it_is_ready(tmp_path: Path) -> None:
    service = obedient(tmp_path)
    assert service.start() == {"ready": True, "port": 7}
    service.stop()
    assert service.ended
    assert len(lives(tmp_path)) == 1


def test_a_service_that_ends_at_once_failed(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"dead did not become ready \(exit status 3\)"):
        Service("dead", ["dead"], {}).start()


def test_nobody_waits_for_a_silent_service_when_all_are_to_stop() -> None:
    supervisor = Supervisor()
    threading.Timer(0.2, supervisor.stop).start()
    service = Service("silent", ["silent"], {})
    with pytest.raises(ServiceStopped):
        supervisor.start(service)
    assert service.ended


@pytest.mark.expects_errors
def test_a_killed_service_is_started_again_with_what_it_said_it_has(tmp_path: Path) -> None:
    supervisor = Supervisor()
    supervisor.start(obedient(tmp_path))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        os.kill(lives(tmp_path)[0]["pid"], signal.SIGKILL)
        wait_for(lambda: len(lives(tmp_path)) == 2, "a second life")
    finally:
        supervisor.stop()
        thread.join()
    first, second = lives(tmp_path)
    assert "port" not in first
    assert second["port"] == 7
    assert supervisor.services[0].restarts == 1
    assert supervisor.services[0].ended


@pytest.mark.expects_errors
def test_a_service_that_keeps_dying_keeps_no_other_from_being_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LONGEST_PAUSE_S", 3600.0)
    supervisor = Supervisor()
    supervisor.start(obedient(tmp_path))
    with pytest.raises(ServiceFailed):
        supervisor.start(dying := Service("dead", ["dead"], {}, pause_s=3600.0))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        wait_for(lambda: dying.restart_s is not None, "the long pause of the dying one")
        os.kill(lives(tmp_path)[0]["pid"], signal.SIGKILL)
        wait_for(lambda: len(lives(tmp_path)) == 2, "a second life")
    finally:
        supervisor.stop()
        thread.join()
    assert dying.restarts == 0


def test_services_start_side_by_side_and_the_first_failure_is_told(tmp_path: Path) -> None:
    supervisor = Supervisor()
    try:
        ready = supervisor.start_all([obedient(tmp_path, "a"), obedient(tmp_path, "b")])
        assert [answer["port"] for answer in ready] == [7, 7]
        with pytest.raises(ServiceFailed, match="dead did not"):
            supervisor.start_all([Service("dead", ["dead"], {}), obedient(tmp_path, "c")])
    finally:
        supervisor.end()
    assert all(service.ended for service in supervisor.services)
    assert [len(lives(tmp_path, name)) for name in "abc"] == [1, 1, 1]
