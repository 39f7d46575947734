"""`asapo selfcheck`: on own services, on running ones, on a broken one, and called wrongly."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from asapo.cli import main
from asapo.testing.launch import LocalServices
from tests.e2e.programs import ROOT
from tests.faults.mutants import VARIABLE

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]
NINE = [f"I{number}" for number in range(1, 10)]


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ASAPO_URL", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def selfcheck(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Run the command; return its status, the findings by name, and the facts of the run."""
    status = main(["selfcheck", "--json", *map(str, words)])
    *findings, facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return status, {finding["invariant"]: finding for finding in findings}, facts


def test_own_services_are_started_killed_checked_and_removed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, findings, facts = selfcheck(capsys, "--messages", 150, "--largest", 5000, "--kills", 2, "--seed", 5)
    assert status == 0
    assert {name: finding["verdict"] for name, finding in findings.items()} == dict.fromkeys(NINE, "held")
    assert (facts["seed"], facts["messages"], facts["kills"], facts["held"]) == (5, 150, 2, 9)
    assert facts["folder"] == ""
    assert not list(tmp_path.glob("asapo-selfcheck-*"))


def test_running_services_are_checked_without_being_killed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with LocalServices(tmp_path / "data") as services:
        kept = tmp_path / "kept"
        status = main(["selfcheck", services.native, "--messages", "40", "--largest", "5000", "--folder", str(kept)])
        lines = capsys.readouterr().out.splitlines()
        assert status == 0, lines
        assert [line.split()[0] for line in lines[:9]] == NINE
        assert all("held" in line for line in lines[:8])
        assert "not checkable  nothing was killed" in lines[8]
        assert "6 ways" in lines[0]
        assert "8 held, 1 not checkable" in lines[9]
        assert str(kept) in lines[10]
        assert list((kept / "run").glob("*.sent"))
        assert [path.name for path in (services.data_dir / "beamline").glob("asapo-*")] == ["asapo-selfcheck"]


def test_a_broken_service_is_told_by_status_1_and_the_evidence_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    stand_in = ("tests.faults.mutants", {VARIABLE: "overwrite on id conflict", "PYTHONPATH": paths})
    with LocalServices(tmp_path / "data", stand_ins={"r1": stand_in}, log_level="error") as services:
        status, findings, facts = selfcheck(capsys, "--url", services.native, "--messages", 100, "--largest", 5000)
        assert status == 1
        assert findings["I5"]["verdict"] == "violated"
        assert {"id", "expected", "seen", "where", "stream"} <= findings["I5"]["violations"][0].keys()
        assert list(Path(facts["folder"], "run").glob("*.read"))


def test_nobody_there_is_told_with_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selfcheck", "asapo://127.0.0.1:9"]) == 1
    assert "start them with `asapo up`, or leave the address out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["asapo://a:1", "--url", "asapo://b:1"], "two addresses"),
        (["--messages", "0"], "--messages 0: expected 1 or more"),
        (["--largest", "-1"], "--largest -1: expected 0 or more"),
        (["--timeout", "0"], "--timeout 0.0: expected 1 or more"),
        (["asapo://127.0.0.1:9", "--kills", "1"], "only services of our own are killed"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_calls_are_status_2(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["selfcheck", *words]) == 2
    assert said in capsys.readouterr().err


def test_own_services_without_their_extra_are_refused_with_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lark" else find(name))
    assert main(["selfcheck"]) == 2
    assert "pip install 'asapo[server]'" in capsys.readouterr().err
