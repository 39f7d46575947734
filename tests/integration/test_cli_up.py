"""`asapo up` as a user meets it: real processes, wrong calls, signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asapo import Consumer, Producer

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]
WITHIN_S = 20.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + WITHIN_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not within {WITHIN_S} s: {what}"
        time.sleep(0.02)
    return found


def children(pid: int) -> dict[str, int]:
    """Return sub-command and number of the living children of a process; receivers come as r1, r2, ..."""
    found: dict[str, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            words = (stat.parent / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if int(parent) == pid and state != "Z" and "asapo" in words:
            found[f"{words[words.index('asapo') + 1]}-{len(found)}"] = int(stat.parent.name)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Up:
    """A running `asapo up`."""

    def __init__(self, runtime: Path, *options: str) -> None:
        runtime.mkdir(exist_ok=True)
        self.runtime = runtime
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asapo", "up", "--json", "--port", "0", "--log-level", "error", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"XDG_RUNTIME_DIR": str(runtime)},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.where: dict[str, str] = json.loads(line)

    def end(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def sockets(self) -> list[str]:
        return sorted(path.name for path in self.runtime.iterdir())


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "run", "--data", str(tmp_path / "data"), "--receivers", "2")
    yield running
    running.end()


def refused(*options: str, cwd: Path) -> tuple[int, str]:
    """Run `asapo up` that must not come up; return exit status and what it says."""
    result = subprocess.run(
        [sys.executable, "-m", "asapo", "up", *options],
        capture_output=True,
        text=True,
        timeout=40,
        cwd=cwd,
        check=False,
    )
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.returncode, result.stderr


def test_a_port_in_use_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--port", "--http-port"):
            other = ["--port", "0"] if option == "--http-port" else []
            status, said = refused(option, str(port), *other, cwd=tmp_path)
            assert status == 1
            assert f"cannot listen on 127.0.0.1:{port}" in said
            assert "choose another port" in said
            assert len(said.splitlines()) == 1


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, said = refused("--port", "0", "--data", "file/data", cwd=tmp_path)
    assert status == 1
    assert f"data folder {tmp_path}/file/data cannot be written" in said
    assert "--data" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datadir = 'x'", "unknown key 'datadir': expected one of broker, data_dir"),
        ("[broker]\nport = '8400'", "port = '8400': expected int"),
        ("[broker]\nport = 70000", "broker.port = 70000: expected 0 to 65535"),
        ("broker = 3", "broker = 3: expected a table"),
        ("log_level = 'loud'", "log_level = 'loud': expected one of debug, info"),
        ("declared_keys = ['a', 'b', 'c']", "declared_keys names 3 keys: expected at most 2"),
        ("sorted_keys = ['a', 'b', 'c', 'd', 'e', 'f', 'g']", "sorted_keys names 7 keys: expected at most 6"),
        ("[receiver]\nsession_timeout_s = nan", "receiver.session_timeout_s = nan"),
        ("= 3", "not TOML"),
    ],
)
def test_a_wrong_configuration_names_file_key_and_what_was_expected(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "asapo.toml").write_text(text, encoding="utf-8")
    status, said = refused("--config", "asapo.toml", "--port", "0", cwd=tmp_path)
    assert status == 2
    assert "asapo.toml" in said
    assert expected in said
    assert not (tmp_path / "asapo-data").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--config", "nowhere.toml"], "configuration nowhere.toml: No such file"),
        (["--receivers", "0"], "--receivers 0: expected 1 to 64"),
        (["--receivers", "-1"], "--receivers -1: expected 1 to 64"),
        (["--receivers", "100"], "--receivers 100: expected 1 to 64"),
        (["--port", "65536"], "--port 65536: expected 0 (a free port) to 65535"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, options: list[str], expected: str) -> None:
    status, said = refused(*options, cwd=tmp_path)
    assert status == 2
    assert expected in said


def test_a_second_up_on_the_same_data_names_the_lock_and_disturbs_nothing(up: Up, tmp_path: Path) -> None:
    status, said = refused("--port", "0", "--data", up.where["data"], cwd=tmp_path)
    assert status == 1
    assert f"in use by a running `asapo up` (process {up.process.pid}, lock on {up.where['data']}/up.lock)" in said
    with urllib.request.urlopen(f"{up.where['http']}/health") as answer:
        assert json.load(answer)["receivers"] == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_leaves_no_process_and_no_socket(up: Up, how: signal.Signals) -> None:
    pids = children(up.process.pid)
    assert len(pids) == 4
    assert len(up.sockets()) == 2
    status, errors = up.end(how)
    assert status == 0
    assert errors == ""
    assert all(map(is_gone, pids.values()))
    assert up.sockets() == []


def test_services_end_by_themselves_when_up_is_killed(up: Up) -> None:
    pids = children(up.process.pid)
    up.end(signal.SIGKILL)
    wait_for(lambda: all(map(is_gone, pids.values())), f"the end of {pids}")
    assert up.sockets() == []


def test_every_killed_service_is_started_again_with_its_ports(up: Up) -> None:
    before = children(up.process.pid)
    with Producer(up.where["native"], beamtime="bt", source="det") as producer:
        assert producer.send(b"first", id=1).result(WITHIN_S) == 1
        with Consumer(up.where["native"], beamtime="bt", source="det") as consumer:
            addresses = {r["receiver_id"]: (r["addresses"], r["data_address"]) for r in consumer.receivers()}
            for pid in before.values():
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: all(map(is_gone, before.values())), "the end of the killed services")
            wait_for(lambda: len(children(up.process.pid)) == len(before), "new services")
            wait_for(lambda: len(consumer.receivers()) == 2, "both receivers, registered again")
            after = {r["receiver_id"]: (r["addresses"], r["data_address"]) for r in consumer.receivers()}
            assert after == addresses
            assert producer.send(b"second", id=2).result(WITHIN_S) == 2
            assert [bytes(m.raw) for m in consumer.get_by_id([1, 2])] == [b"first", b"second"]
    wait_for(lambda: _healthy(up.where["http"]), "the HTTP front on its port")
    status, errors = up.end()
    assert status == 0
    assert errors.count("starting it again") == 4
    assert up.sockets() == []


def _healthy(http: str) -> bool:
    try:
        with urllib.request.urlopen(f"{http}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_up_stopped_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "asapo", "up", "--port", "0", "--data", str(tmp_path / "data")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    pids = wait_for(lambda: children(process.pid), "the first service")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors
    assert all(map(is_gone, pids.values()))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert out == "" or "asapo is up" in out


def test_sockets_of_killed_runs_are_cleared_away_and_those_of_others_kept(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as ours, socket.socket(socket.AF_UNIX) as dead:
        ours.bind(str(runtime / f"asapo-{os.getpid()}-0123abcd-r1.sock"))
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        dead.bind(str(runtime / f"asapo-{int(gone.stdout)}-0123abcd-r1.sock"))
    (runtime / "asapo-1-0123abcd-r1.sock").write_text("no socket", encoding="utf-8")
    running = Up(runtime, "--data", str(tmp_path / "data"))
    running.end()
    assert running.sockets() == sorted(["asapo-1-0123abcd-r1.sock", f"asapo-{os.getpid()}-0123abcd-r1.sock"])
