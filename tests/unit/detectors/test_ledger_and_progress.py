"""Outcomes are counted, latencies measured, progress shown; nothing heavy is imported before it is used."""

import io
import subprocess
import sys
from typing import Any

import pytest

from asapo.errors import DeadlineExceeded, DuplicateId, StorageError
from asapo.progress import Progress
from asapo_produce.detectors.ledger import KEPT_LATENCIES, Ledger
from tests.unit.detectors.fakes import FakeClock, FakeHandle


def test_outcomes_of_single_messages_and_batches_are_counted() -> None:
    ledger = Ledger()
    ledger.expect(1, 10)(FakeHandle([1], {}))
    ledger.expect(3, 30)(FakeHandle([2, 3, 4], {3: DuplicateId("no"), 4: StorageError("disk gone")}))
    assert (ledger.sent, ledger.acked, ledger.duplicates, ledger.failed, ledger.nbytes) == (4, 2, 1, 1, 40)
    assert ledger.errors == {"duplicate_id": 1, "storage_error": 1}
    assert ledger.first_errors == ["disk gone"]


def test_waiting_ends_with_the_last_outcome_or_when_nothing_moves() -> None:
    ledger = Ledger()
    settled = ledger.expect(2, 0)
    with pytest.raises(DeadlineExceeded, match="2 of 2 messages"):
        ledger.wait_settled(0.001)
    settled(FakeHandle([1, 2], {}))
    ledger.wait_settled(0)


def test_percentiles_of_acknowledgements() -> None:
    clock = FakeClock()
    ledger = Ledger(clock=clock)
    assert ledger.ack_ms() == {"p50": None, "p99": None, "max": None}
    for ms in range(1, 101):
        settled = ledger.expect(1, 0)
        clock.now_s += ms / 1e3
        settled(FakeHandle([ms], {}))
    assert ledger.ack_ms() == {"p50": 51.0, "p99": 100.0, "max": 100.0}


def test_a_long_run_keeps_a_sample_of_its_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asapo_produce.detectors.ledger.KEPT_LATENCIES", 50)
    assert KEPT_LATENCIES > 50
    clock = FakeClock()
    ledger = Ledger(clock=clock)
    for k in range(1000):
        settled = ledger.expect(1, 0)
        clock.now_s += 0.001 if k < 500 else 0.003
        settled(FakeHandle([k], {}))
    assert len(ledger._latencies_s) == 50
    slow = sum(value > 0.002 for value in ledger._latencies_s)
    assert 10 < slow < 40


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [io.StringIO(), _Terminal()])
def test_progress_writes_plain_lines_without_terminal_or_without_rich(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    clock = FakeClock()
    with Progress("send", 200, out=out, clock=clock) as progress:
        for frames in range(5, 101, 5):
            clock.now_s += 0.5
            progress.update(frames, frames * 10**6)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "send: 50 of 200 frames, 10 frames/s, 10 MB/s"


def test_progress_draws_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="needs_rich: module rich is not installed (extra `tui`)")
    out: Any = _Terminal()
    clock = FakeClock()
    with Progress("send", 4, out=out, clock=clock) as progress:
        clock.now_s += 1
        progress.update(4, 100)
        assert progress._bar.tasks[0].completed == 4
    assert out.getvalue() == ""


def test_commands_and_readers_import_nothing_heavy() -> None:
    program = """
import sys
import asapo_produce.detectors.replay_cli, asapo_produce.detectors.simulate_cli
import asapo_produce.detectors.euxfel_example
heavy = {"h5py", "hdf5plugin", "extra_data", "fabio", "rich", "fcntl", "resource"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
