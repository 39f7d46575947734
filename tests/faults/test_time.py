"""Processes that stand still (F21) and clocks that jump (F22): who comes back does no harm, no lease runs out early."""

import re
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from asapo.testing.checker import Content, Invariant, check
from asapo.testing.checker.content import SMALL_SIZES
from asapo.testing.checker.evidence import Evidence
from asapo.testing.checker.run import Run
from asapo.testing.faults import VARIABLE
from asapo.testing.launch import LocalServices
from asapo.wire.codec import encode
from asapo.wire.events import GetNext, Hello, Rows, Welcome
from tests.e2e.ledger import PATIENCE_S, consumer_of, producer_of
from tests.faults.target import replies

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 2.0
BACK_S = 10.0
HOUR_S = 3600.0


def _passed(evidence: Evidence) -> None:
    check(evidence).require(*set(Invariant) - {Invariant.I9})
    assert set(evidence.book.outcomes().values()) == {"ACK"}


# -- F21: processes that stand still ----------------------------------------------------------------------------------


def _stand_still(folder: Path, names: list[str], length_s: float) -> None:
    """Stop one service after the other for longer than its sessions last, and let it go on."""
    with (
        LocalServices(folder / "data", receivers=2, session_timeout_s=TIMEOUT_S, log_level="error") as services,
        Run(services.native, folder / "run", Content(21, "paused", SMALL_SIZES), rate_hz=60, under_way=5000,
            messages=round(60 * (len(names) * length_s + 2)), patience_s=PATIENCE_S) as run,
    ):  # fmt: skip
        run.start()
        run.wait_acked(40)
        for name in names:
            assert run.sending
            with services.paused(name):
                threading.Event().wait(length_s)
                if name != "broker":
                    run.timed(f"ingest by the other receiver while {name} stands still", BACK_S, lambda: None)
            run.timed(f"ingest after {name} goes on", BACK_S, lambda: None)
        run.finish()
        evidence = run.evidence(tiers=[services.data_dir / "beamline"])
    _passed(evidence)


def test_services_that_stood_still_for_long_do_no_harm_when_they_go_on(tmp_path: Path) -> None:
    _stand_still(tmp_path, ["r1", "broker"], 1.25 * TIMEOUT_S)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_services_that_stand_still_again_and_again_do_no_harm(tmp_path: Path, soak_share: float) -> None:
    rounds = max(1, round(10 * soak_share))
    _stand_still(tmp_path, ["r1", "broker", "r2"] * rounds, 4 * TIMEOUT_S)


# -- F22: clocks that jump --------------------------------------------------------------------------------------------


def _ingest_times_s(services: LocalServices) -> list[float]:
    path = services.data_dir / "state" / "asapo-selfcheck" / "index.sqlite"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return [row[0] / 1e9 for row in connection.execute("SELECT t_ingest_ns FROM message")]


def _step(folder: Path, monkeypatch: pytest.MonkeyPatch, steps_s: list[float]) -> None:
    """Step the clock of all processes while frames are sent, given out and held."""
    clock = folder / "clock"
    wrong = f"clock:{clock}"
    monkeypatch.setenv(VARIABLE, wrong)  # of the producer and the readers, which are started from here
    with (
        LocalServices(folder / "data", faults={"r1": wrong, "broker": wrong}, session_timeout_s=TIMEOUT_S) as services,
        Run(services.native, folder / "run", Content(22, "stepped", SMALL_SIZES), rate_hz=100, lease_s=TIMEOUT_S,
            messages=100 * len(steps_s) + 100, patience_s=PATIENCE_S) as run,
    ):  # fmt: skip
        run.start()
        for step_s in steps_s:
            run.wait_acked(70)
            assert run.sending
            clock.with_suffix(".new").write_text(str(step_s))
            clock.with_suffix(".new").rename(clock)
        run.finish()
        evidence = run.evidence(tiers=[services.data_dir / "beamline"])
        times_s = _ingest_times_s(services)
    _passed(evidence)
    attempts = {one.attempt for reading in evidence.readings for one in reading.seen}
    assert attempts == {1}, "a lease ran out though its worker was alive"
    assert max(times_s) - min(times_s) > 1.5 * HOUR_S, "the clock was not stepped"


@pytest.mark.soak
def test_a_clock_that_jumps_by_hours_changes_nothing_but_the_times_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _step(tmp_path, monkeypatch, [HOUR_S, -HOUR_S])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_clock_that_keeps_jumping_changes_nothing_but_the_times_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soak_share: float
) -> None:
    _step(tmp_path, monkeypatch, [HOUR_S, -HOUR_S, 0.0, 24 * HOUR_S] * max(1, round(25 * soak_share)))


def test_leases_and_sessions_end_in_time_while_the_clock_stands_an_hour_back(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    wrong = f"clock:{clock}"
    with LocalServices(
        tmp_path / "data", faults={"r1": wrong, "broker": wrong}, session_timeout_s=TIMEOUT_S
    ) as services:
        with producer_of(services) as producer:
            producer.send(b"x", id=1, stream="s").result(PATIENCE_S)
            producer.finish_stream("s")
        # A worker that neither works nor beats any more.
        hello = encode(Hello("consumer", b"w" * 16, "bt"))
        ask = encode(GetNext(1, "det", "s", "g", wait_s=PATIENCE_S, lease_s=1.0))
        answers = replies(services.native.replace("asapo", "tcp"), [(hello, b""), (ask, b"")], n=2)
        assert [type(answer.event) for answer in answers] == [Welcome, Rows]
        began_s = time.monotonic()
        clock.write_text(str(-HOUR_S))
        with consumer_of(services) as other:
            again = other.get_next("g", stream="s")
        assert (again.id, again.attempt) == (1, 2)
        assert 0.5 < time.monotonic() - began_s < BACK_S


def test_nothing_of_ours_reads_the_time_of_day_where_a_stepped_clock_does_not_reach() -> None:
    by_python = r"\b(datetime\.(now|utcnow|today)|from time import .*\btime(_ns)?\b|CLOCK_REALTIME)"
    other_ways = re.compile(rf"{by_python}|'now'|\b(CURRENT_T|unixepoch\b)")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for room in ("asapo", "producer", "receiver", "broker", "worker_sdk")
        for path in (ROOT / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if other_ways.search(line)
    ]
    assert found == []
