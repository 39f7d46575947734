"""`asapo doctor` against services that are well, that are away, and that are broken."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asapo import Consumer
from asapo.ask import Asker
from asapo.testing.launch import LocalServices
from asapo.wire.events import ListReceivers

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]
NOBODY = "asapo://127.0.0.1:9"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("doctor"), http=True) as running:
        yield running


def doctor(*words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the command; return its status and the checks by name."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ASAPO_")}
    result = subprocess.run(
        [sys.executable, "-m", "asapo", "doctor", "--json", *words],
        capture_output=True, text=True, timeout=60, check=False, env=env,
    )  # fmt: skip
    assert result.stderr == ""
    checks = [json.loads(line) for line in result.stdout.splitlines()]
    return result.returncode, {check["name"]: check for check in checks}


def beamtimes(services: LocalServices) -> list[str]:
    asker = Asker(services.native)
    answer = asker.ask(ListReceivers)
    asker.close()
    assert isinstance(answer, dict)
    return list(answer["beamtimes"])


def test_all_is_well_and_looking_leaves_no_trace(services: LocalServices) -> None:
    status, checks = doctor(services.native, "--http", services.http)
    assert status == 0, checks
    for name in ("python", "packages", "broker", "receivers", "r1 ingest", "r1 data server", "r1 mapping", "http"):
        assert checks[name]["verdict"] == "ok", checks[name]
    assert "20 requests" in checks["broker"]["found"]
    assert "payloads are mapped" in checks["r1 mapping"]["found"]
    assert beamtimes(services) == []


def test_the_self_test_goes_the_whole_path(services: LocalServices) -> None:
    status, checks = doctor("--url", services.native, "--selftest")
    assert status == 0, checks
    for name in ("selftest", "selftest map", "selftest fetch", "selftest clocks"):
        assert checks[name]["verdict"] == "ok", checks[name]
    with Consumer(services.native, beamtime="asapo-selftest", source="doctor") as consumer:
        (stream,) = consumer.streams()
    assert (stream["n_messages"], stream["finished"]) == (10, True)


def test_services_that_are_away_fail_with_a_next_step() -> None:
    status, checks = doctor(NOBODY, "--selftest", "--http", "http://127.0.0.1:9")
    assert status == 1
    assert checks["broker"]["verdict"] == "failed"
    assert "start them with `asapo up`" in checks["broker"]["found"]
    assert checks["http"]["verdict"] == "failed"
    assert checks["selftest"]["verdict"] == "skipped"


def test_the_host_alone_needs_no_services() -> None:
    status, checks = doctor(NOBODY, "--host-only")
    assert status == 0
    assert set(checks) == {
        "python", "packages", "extras", "malloc", "open-files", "shared-memory", "memory", "clock"
    }  # fmt: skip


def test_a_receiver_that_is_frozen_or_unseen_is_told_apart(tmp_path: Path) -> None:
    with LocalServices(tmp_path / "data") as running:
        (running.data_dir / "beamline" / ".asapo-tier").rename(tmp_path / "tier")
        _, checks = doctor(running.native)
        assert checks["r1 mapping"]["verdict"] == "warning"
        assert "payloads are fetched" in checks["r1 mapping"]["found"]
        running.end("r1")
        status, checks = doctor(running.native)
    assert status == 1
    assert checks["receivers"]["verdict"] == "failed"
    assert "asapo receiver --broker" in checks["receivers"]["next_step"]


def test_for_people_every_check_is_a_line_with_its_verdict(services: LocalServices) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "asapo", "doctor", services.native],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    *lines, sums = result.stdout.splitlines()
    assert all(line.split()[0] in ("ok", "warning", "skipped", "→") for line in lines)
    assert " ok" in sums


def test_a_wrong_call_is_said_so() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "asapo", "doctor", "nonsense"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "expected an address such as asapo://" in result.stderr
