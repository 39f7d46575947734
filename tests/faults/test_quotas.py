"""A beamtime that has used up its bytes is refused more, others are not, and it goes on when there is room (R36)."""

import itertools
from pathlib import Path

import pytest

from asapo import Producer
from asapo.errors import DiskFull, QuotaExceeded
from asapo.storage.usage import data_bytes
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import BEAMTIME, PATIENCE_S, Ledger, producer_of, under_load, wait_until
from tests.faults.target import count

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

MIB = 1024 * 1024
LIMIT = 8 * MIB
UNIT = 300_000


def _fill(hasty: Producer, stream: str) -> QuotaExceeded:
    """Send until no more is taken; return how it was refused."""
    for message_id in itertools.count(1):
        error = hasty.send(bytes(UNIT), id=message_id, stream=stream).exception(PATIENCE_S)
        if error is not None:
            assert isinstance(error, QuotaExceeded)
            return error
        assert message_id * UNIT < 2 * LIMIT, "there is no limit"
    raise AssertionError


def test_a_full_beamtime_is_refused_and_goes_on_when_files_are_removed(tmp_path: Path) -> None:
    kept, other = Ledger("kept", sizes=(5_000,)), Ledger("other", sizes=(5_000,))
    with (
        LocalServices(tmp_path, http=True, log_level="error", beamtime_bytes=LIMIT, segment_bytes=MIB) as services,
        producer_of(services, beamtime="roomy") as beside,
        producer_of(services) as patient,
        producer_of(services, retry_s=0.3) as hasty,
        under_load(beside, other, itertools.count(1), rate_hz=50) as load,
    ):
        folder = services.data_dir / "beamline" / BEAMTIME
        kept.send(patient, 1).result(PATIENCE_S)
        error = _fill(hasty, "filler")
        assert isinstance(error, DiskFull)
        assert (error.beamtime, error.limit_bytes) == (BEAMTIME, LIMIT)
        assert LIMIT - UNIT - 4096 <= error.used_bytes <= LIMIT
        assert LIMIT - UNIT - 4096 <= data_bytes(folder) <= LIMIT
        waiting = patient.send(bytes(UNIT), id=1, stream="waits")
        patient.finish_stream("filler")  # what is there can be finished
        load.wait_for_more(50)
        assert not waiting.done()
        wait_until(
            lambda: count(services, "asapo_receiver_beamtime_bytes", beamtime=BEAMTIME) > 0.9 * LIMIT, "it shows"
        )
        assert count(services, "asapo_receiver_beamtime_limit_bytes", beamtime=BEAMTIME) == LIMIT
        for path in (folder / "det" / "filler").glob("*.seg"):
            path.unlink()
        assert waiting.result(PATIENCE_S) == 1
        kept.send(patient, 2).result(PATIENCE_S)
        patient.finish_stream("kept")
        assert kept.check_all(services) == [1, 2]
        load.stop()
        assert not other.failed
        assert beside.stats.resent == 0


def test_a_higher_limit_lets_a_waiting_producer_go_on(tmp_path: Path) -> None:
    ledger = Ledger("more", sizes=(UNIT,))
    with (
        LocalServices(tmp_path, log_level="error", beamtime_bytes=2 * MIB) as services,
        producer_of(services) as patient,
    ):
        for message_id in range(1, 20):
            ledger.send(patient, message_id)
        wait_until(lambda: patient.stats.resent > 0, "something was refused")
        assert data_bytes(services.data_dir / "beamline" / BEAMTIME) <= 2 * MIB
        services.end("r1")
        services.change("r1", beamtime_bytes=20 * MIB)
        services.restart("r1")
        patient.flush(PATIENCE_S)
        patient.finish_stream("more")
        assert not ledger.failed
        assert ledger.check_all(services) == list(range(1, 20))


@pytest.mark.soak
def test_several_receivers_keep_to_the_limit_of_one_folder(tmp_path: Path) -> None:
    ledger = Ledger("shared", sizes=(UNIT,))
    with (
        LocalServices(tmp_path, receivers=3, log_level="error", beamtime_bytes=LIMIT) as services,
        producer_of(services, retry_s=3.0) as producer,
    ):
        for message_id in itertools.count(1):
            ledger.send(producer, message_id).exception(PATIENCE_S)
            if ledger.failed:
                break
        folder = services.data_dir / "beamline" / BEAMTIME
        # Sent one by one, most of it is seen by the others before they store the next.
        assert LIMIT - 3 * UNIT <= data_bytes(folder) <= 1.5 * LIMIT
        services.end("r2")
        services.restart("r2")  # it measures what the others left
        assert isinstance(producer.send(bytes(UNIT), id=1000, stream="behind").exception(PATIENCE_S), QuotaExceeded)
        producer.finish_stream("shared")
        assert ledger.check_all(services) == sorted(ledger.acked)
