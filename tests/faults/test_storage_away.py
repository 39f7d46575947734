"""Disks that are full or stuck and an index that is locked: a clear answer, nothing lost, and it resumes by itself."""

import itertools
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from asapo.ask import Asker
from asapo.errors import DiskFull
from asapo.testing.launch import LocalServices
from asapo.wire.events import ListReceivers
from tests.e2e.ledger import (
    BEAMTIME,
    PATIENCE_S,
    Ledger,
    OrderedReader,
    consumer_of,
    producer_of,
    sparse_ids,
    under_load,
    wait_until,
)

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

MIB = 1024 * 1024


def _number(services: LocalServices, name: str) -> float:
    """Return a number that receivers report with their heartbeats, all of them added up."""
    asker = Asker(services.native)
    try:
        answer = asker.ask(ListReceivers)
    finally:
        asker.close()
    assert isinstance(answer, dict)
    metrics = [entry for one in answer["receivers"] for entry in one["load"]["metrics"]]
    return float(sum(value for found, _, value in metrics if found == name))


# -- full ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_what_meets_it_and_nothing_else(tmp_path: Path) -> None:
    switch = tmp_path / "full"
    faults = {"r1": f"switch:{switch}:ENOSPC:/det/full/"}
    full, fine = Ledger("full"), Ledger("fine", seed=2)
    with (
        LocalServices(tmp_path / "data", faults=faults, log_level="error") as services,
        producer_of(services) as patient,
        producer_of(services, retry_s=0.5) as hasty,
        under_load(producer_of(services), fine, sparse_ids(2), rate_hz=100) as others,
    ):
        ids = sparse_ids()
        for message_id in itertools.islice(ids, 20):
            full.send(patient, message_id).result(PATIENCE_S)
        switch.touch()
        handles = [full.send(patient, message_id) for message_id in itertools.islice(ids, 20)]
        refused = [full.send(hasty, 1_000_000 + message_id) for message_id in range(1, 6)]
        for handle in refused:
            error = handle.exception(PATIENCE_S)
            assert isinstance(error, DiskFull)
            assert error.retriable
        others.wait_for_more(50)
        assert not any(handle.done() for handle in handles), "something was acknowledged that could not be stored"
        switch.unlink()
        assert all(handle.result(PATIENCE_S) for handle in handles)
        others.stop()
        assert not fine.failed
        others.producer.finish_stream("fine")
        others.producer.close()
        hasty.close()
        patient.finish_stream("full")
        assert set(full.failed) == {handle.id for handle in refused}
        left = list((services.data_dir / "beamline" / BEAMTIME / "det" / "full").iterdir())
        assert all(path.stat().st_size for path in left), f"every attempt left a file: {len(left)}"
        assert full.check_all(services) == sorted(full.acked)
        assert fine.check_all(services) == sorted(fine.acked)


@contextmanager
def _small_disk(folder: Path, size_mib: int) -> Iterator[Path]:
    """Mount a file system of this size."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs_linux: mounting a file system of limited size is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full_is_survived(tmp_path: Path) -> None:
    ledger = Ledger("big", sizes=(100, 300_000))
    with (
        _small_disk(tmp_path / "data" / "beamline", 24) as disk,
        LocalServices(tmp_path / "data", log_level="error", segment_bytes=4 * MIB) as services,
        producer_of(services) as producer,
    ):
        filler = disk / "filler"
        filler.write_bytes(bytes(12 * MIB))
        reader = OrderedReader(services, ledger, access="fetch")
        reader.start()
        with under_load(producer, ledger, sparse_ids(), rate_hz=200) as load:
            wait_until(lambda: _number(services, "asapo_receiver_storage_errors_total"), "the disk is full")
            with producer_of(services, retry_s=0.0, source="hasty") as hasty:
                refused = hasty.send(bytes(8 * MIB), id=1).exception(PATIENCE_S)
                assert isinstance(refused, DiskFull), refused
            with producer_of(services, level="memory", source="live") as live:
                live.send(b"needs no disk", id=1).result(PATIENCE_S)
            with consumer_of(services) as consumer:
                ledger.check_by_id(consumer)
            filler.unlink()
            load.wait_for_more(10)
        producer.finish_stream(ledger.stream)
        assert reader.finish() == sorted(ledger.acked)
        assert not ledger.failed
        ledger.check_all(services)
        del reader


# -- stuck -----------------------------------------------------------------------------------------------------------


def test_a_write_that_does_not_return_costs_no_link_and_holds_up_no_other_receiver(tmp_path: Path) -> None:
    switch, timeout_s = tmp_path / "stuck", 2.0
    ledger = Ledger("steady", sizes=(1_000, 300_000))
    with (
        LocalServices(
            tmp_path / "data", receivers=2, faults={"r1": f"switch:{switch}:stuck"}, session_timeout_s=timeout_s
        ) as services,
        producer_of(services) as producer,
    ):
        reader = OrderedReader(services, ledger)
        reader.start()
        wait_until(lambda: producer.stats.links == 2, "the producer uses both receivers")
        switch.touch()
        began_s, ids = time.monotonic(), sparse_ids()
        while time.monotonic() < began_s + 2 * timeout_s:
            ledger.send(producer, next(ids))
            # One unit is with the receiver that is stuck, so everything else goes to the other one.
            sent = len(ledger.invoked)
            wait_until(lambda n=sent: producer.stats.acked >= n - 1, "the other receiver acknowledges")  # type: ignore[misc]
            assert producer.stats.links == 2, "a link was given up though the receiver is alive"
        assert producer.stats.acked == len(ledger.invoked) - 1, "nothing was stuck"
        switch.unlink()
        producer.flush(PATIENCE_S)
        assert producer.stats.resent == 0
        producer.finish_stream(ledger.stream)
        assert reader.finish() == sorted(ledger.acked) == ledger.check_all(services)
        assert not ledger.failed


# -- the index -------------------------------------------------------------------------------------------------------


def test_nothing_is_acknowledged_while_the_index_is_locked_and_nothing_is_lost(tmp_path: Path) -> None:
    ledger = Ledger("locked")
    with (
        LocalServices(tmp_path, receivers=2, log_level="error", session_timeout_s=60.0) as services,
        producer_of(services) as producer,
    ):
        reader = OrderedReader(services, ledger)
        reader.start()
        with under_load(producer, ledger, sparse_ids()) as load:
            load.wait_for_more(50)
            path = services.data_dir / "state" / BEAMTIME / "index.sqlite"
            with closing(sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                # An ack of a commit before the lock may still be under way; after the first retry there is none.
                wait_until(
                    lambda: _number(services, "asapo_receiver_index_retries_total"), "a commit was tried in vain"
                )
                acked, indexed = len(ledger.acked), other.execute("SELECT count(*) FROM message").fetchone()[0]
                wait_until(lambda: _number(services, "asapo_receiver_index_retries_total") >= 2, "it is tried again")
                assert len(ledger.acked) == acked == indexed, "acknowledged without an index"
                other.execute("ROLLBACK")
            load.wait_for_more(50)
        producer.finish_stream(ledger.stream)
        assert reader.finish() == sorted(ledger.acked) == ledger.check_all(services)
        assert not ledger.failed
