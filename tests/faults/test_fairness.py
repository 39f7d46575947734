"""A producer that sends all it can takes nothing from the share of others (R36)."""

import itertools
import statistics
import threading
import time
from pathlib import Path

import pytest

from asapo.testing.launch import LocalServices
from tests.e2e.ledger import PATIENCE_S, Ledger, producer_of
from tests.e2e.programs import next_line, program
from tests.faults.rounds import ratio_of

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

FLOOD = Path(__file__).with_name("flood_process.py")
RATE_HZ = 25.0
MIB = 1024 * 1024


def paced(services: LocalServices, stream: str, n: int) -> tuple[float, float]:
    """Send at a detector's pace; return the rate reached in Hz, and the median time until an acknowledgement in s."""
    ledger = Ledger(stream, sizes=(100_000,))
    waits_s: list[float] = []
    with producer_of(services, source="quiet", pack=False) as producer:
        ledger.send(producer, 1).result(PATIENCE_S)
        began_s = time.monotonic()
        for number in itertools.count(2):
            sent_s = time.monotonic()
            ledger.send(producer, number).add_done_callback(
                lambda _, sent_s=sent_s: waits_s.append(time.monotonic() - sent_s)
            )
            if number > n:
                break
            threading.Event().wait(max(0.0, began_s + (number - 1) / RATE_HZ - time.monotonic()))
        producer.flush(PATIENCE_S)
        took_s = time.monotonic() - began_s
        assert not ledger.failed
        assert producer.stats.resent == 0
    return n / took_s, statistics.median(waits_s)


def share_of_its_pace(services: LocalServices) -> tuple[float, list[float]]:
    """Return which part of a detector's pace is kept, and the median times until an acknowledgement in s.

    Once is enough when all of it is; a machine that was busy elsewhere gets more chances, and unfairness shows in each.
    """
    waits_s: list[float] = []

    def once() -> float:
        rate_hz, median_s = paced(services, f"beside {len(waits_s)}", 50)
        waits_s.append(round(median_s, 3))
        return rate_hz

    return ratio_of(once, lambda: RATE_HZ, at_least=0.9, rounds=1, most=7), waits_s


@pytest.mark.parametrize(
    "size", [8 * MIB, pytest.param(2_000, marks=pytest.mark.soak)], ids=["large frames", "small frames"]
)
def test_a_flooding_producer_leaves_a_quiet_one_its_rate(tmp_path: Path, size: int) -> None:
    with (
        LocalServices(tmp_path, log_level="error") as services,
        program(FLOOD, services.native, "other", "flood", size) as flood,
    ):
        assert next_line(flood) == "sending"
        share, waits_s = share_of_its_pace(services)
        flood.communicate()
        assert flood.returncode == 0
    assert share > 0.9, f"{share:.2f} of its rate, acknowledged after {waits_s} s"


@pytest.mark.soak
def test_a_beamtime_with_a_limited_rate_keeps_to_it_and_others_do_not_notice(tmp_path: Path) -> None:
    limit = 40 * MIB
    with (
        LocalServices(tmp_path, log_level="error", beamtime_bytes_per_s=limit, window_bytes=16 * MIB) as services,
        program(FLOOD, services.native, "other", "flood", MIB) as flood,
    ):
        assert next_line(flood) == "sending"
        share, _ = share_of_its_pace(services)
        told, _ = flood.communicate()
    nbytes, took_s = map(float, told.split())
    # One second's worth may come at once.
    assert 0.3 * limit * took_s < nbytes < 1.1 * limit * (took_s + 1)
    assert share > 0.9
