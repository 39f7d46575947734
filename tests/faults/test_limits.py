"""Limits: no inodes (F9), a disk that stalls (F11), frames larger than anything (F31), no descriptors (F34)."""

import itertools
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from asapo import Consumer, Producer
from asapo.errors import AsapoError, DiskFull, QueueFull, StorageError, WrongInput
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import (
    BEAMTIME,
    PATIENCE_S,
    Ledger,
    OrderedReader,
    producer_of,
    sparse_ids,
    under_load,
    wait_until,
)
from tests.faults.test_raw_connections import resident_bytes

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

MIB = 1024 * 1024


# -- F9: inodes -------------------------------------------------------------------------------------------------------


@contextmanager
def _few_inodes(folder: Path, n: int) -> Iterator[Path]:
    """Mount a file system that holds so many files."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"nr_inodes={n}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs_linux: mounting a file system of limited size is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_without_inodes_new_streams_are_refused_and_old_ones_go_on(tmp_path: Path) -> None:
    old, new = Ledger("old", sizes=(1_000, 5_000)), Ledger("new", sizes=(1_000,))
    with (
        _few_inodes(tmp_path / "data" / "beamline", 60) as disk,
        LocalServices(tmp_path / "data", log_level="error") as services,
        producer_of(services) as patient,
        producer_of(services, retry_s=0.3) as hasty,
    ):
        old.send(patient, 1).result(PATIENCE_S)
        fill = itertools.count()
        while True:  # not even the files of one segment fit any more
            try:
                (disk / f"filler{next(fill)}").touch()
            except OSError:
                break
        refused = new.send(hasty, 1).exception(PATIENCE_S)
        assert isinstance(refused, DiskFull)
        waiting = new.send(patient, 2)
        for message_id in range(2, 50):
            old.send(patient, message_id).result(PATIENCE_S)
        assert not waiting.done()
        for path in disk.glob("filler*"):
            path.unlink()
        assert waiting.result(PATIENCE_S) == 2
        for ledger in (old, new):
            patient.finish_stream(ledger.stream)
            assert ledger.check_all(services) == sorted(ledger.acked)


@pytest.mark.soak
def test_an_exhausted_quota_is_a_full_disk(tmp_path: Path) -> None:
    switch = tmp_path / "quota"
    faults = {"r1": f"switch:{switch}:EDQUOT:/det/"}
    ledger = Ledger("quota", sizes=(1_000,))
    with LocalServices(tmp_path / "data", faults=faults, log_level="error") as services:
        with producer_of(services, retry_s=0.3) as hasty, producer_of(services) as patient:
            ledger.send(patient, 1).result(PATIENCE_S)
            switch.touch()
            assert isinstance(ledger.send(hasty, 2).exception(PATIENCE_S), DiskFull)
            waiting = ledger.send(patient, 3)
            switch.unlink()
            assert waiting.result(PATIENCE_S) == 3
            patient.finish_stream("quota")
        assert ledger.check_all(services) == [1, 3]


# -- F11: a disk that stalls ------------------------------------------------------------------------------------------


def _fill_queue(producer: Producer, ledger: Ledger, ids: Iterator[int]) -> int:
    """Send until there is no room; return the id that found none."""
    for message_id in ids:
        try:
            ledger.send(producer, message_id)
        except QueueFull:
            return message_id
    raise AssertionError("the queue has no end")


def _has_room(producer: Producer, ledger: Ledger, message_id: int) -> bool:
    """Send once more what found no room."""
    try:
        ledger.send(producer, message_id)
    except QueueFull:
        return False
    return True


def _stall(folder: Path, length_s: float) -> None:
    switch, window, queue = folder / "stuck", 8 * MIB, 4 * MIB
    ledger = Ledger("stalled", sizes=(300_000,))
    faults = {"r1": f"switch:{switch}:stuck:.seg"}
    with (
        LocalServices(folder / "data", faults=faults, session_timeout_s=2.0, window_bytes=window,
                      log_level="error") as services,
        producer_of(services, queue_bytes=queue, queue_timeout_s=0.2) as producer,
    ):  # fmt: skip
        reader = OrderedReader(services, ledger, idle_s=length_s + 2 * PATIENCE_S)
        reader.start()
        ids = sparse_ids()
        for message_id in itertools.islice(ids, 20):
            ledger.send(producer, message_id).result(PATIENCE_S)
        before = resident_bytes(services.pid("r1"))
        switch.touch()
        began_s = time.monotonic()
        refused = _fill_queue(producer, ledger, ids)
        ledger.invoked.discard(refused)
        threading.Event().wait(max(0.0, began_s + length_s - time.monotonic()))
        assert producer.stats.links == 1, "the link was given up though the receiver is alive"
        grown = resident_bytes(services.pid("r1")) - before
        assert grown < 1.1 * window + 32 * MIB, f"the receiver grew by {grown / MIB:.0f} MiB"
        switch.unlink()
        wait_until(lambda: _has_room(producer, ledger, refused), "there is room again")
        producer.flush(PATIENCE_S)
        assert producer.stats.resent == 0
        producer.finish_stream("stalled")
        assert reader.finish() == sorted(ledger.acked) == ledger.check_all(services)
        assert not ledger.failed


@pytest.mark.soak
def test_a_disk_that_stalls_holds_the_producer_back_and_costs_neither_link_nor_memory(tmp_path: Path) -> None:
    _stall(tmp_path, 2.5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("length_s", [30.0, 600.0])
def test_a_disk_that_stalls_for_long_holds_the_producer_back(
    tmp_path: Path, soak_share: float, length_s: float
) -> None:
    _stall(tmp_path, max(5.0, length_s * soak_share))


# -- F34: descriptors -------------------------------------------------------------------------------------------------


def test_a_receiver_without_descriptors_refuses_new_streams_and_keeps_the_old_ones(tmp_path: Path) -> None:
    old = Ledger("old", sizes=(1_000, 5_000))
    with LocalServices(tmp_path, log_level="error") as services, producer_of(services) as producer:
        with producer_of(services, retry_s=0.3) as hasty:
            old.send(producer, 1).result(PATIENCE_S)
            hasty.send(b"x", id=1, stream="known").result(PATIENCE_S)
            pid = services.pid("r1")
            usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, usual[1]))
            with under_load(producer, old, itertools.count(2), rate_hz=100) as load:
                load.wait_for_more(20)
                errors = [hasty.send(b"x", id=1, stream=f"new {n}").exception(PATIENCE_S) for n in range(3)]
                assert all(isinstance(error, StorageError) for error in errors), errors
                load.wait_for_more(20)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
                hasty.send(b"x", id=1, stream="new 0").result(PATIENCE_S)
                load.wait_for_more(20)
            producer.finish_stream("old")
        assert not old.failed
        assert old.check_all(services) == sorted(old.acked)


@pytest.mark.soak
def test_a_core_without_descriptors_refuses_new_links_and_keeps_the_old_ones(tmp_path: Path) -> None:
    ledger = Ledger("old", sizes=(1_000,))
    with LocalServices(tmp_path, log_level="error") as services, producer_of(services) as producer:
        reader = OrderedReader(services, ledger)
        reader.start()
        with under_load(producer, ledger, sparse_ids(), rate_hz=100) as load:
            load.wait_for_more(20)
            wait_until(lambda: reader.ids, "the reader reads")
            pid = services.pid("broker")
            usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, usual[1]))
            with pytest.raises(AsapoError), _consumer(services) as other:
                other.get_last(stream="old")
            before = len(reader.ids)
            wait_until(lambda: len(reader.ids) > before + 20, "the old reader goes on")
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
            with _consumer(services, timeout_s=PATIENCE_S) as other:
                assert other.get_last(stream="old").id
        producer.finish_stream("old")
        assert reader.finish() == sorted(ledger.acked) == ledger.check_all(services)


def _consumer(services: LocalServices, timeout_s: float = 0.5) -> Consumer:
    return Consumer(services.native, beamtime=BEAMTIME, source="det", timeout_s=timeout_s)


# -- F31: giants ------------------------------------------------------------------------------------------------------


def test_a_frame_beyond_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with (
        LocalServices(tmp_path, log_level="error") as services,
        producer_of(services, queue_bytes=8 * 1024 * MIB) as producer,
    ):
        producer.send(b"before", id=1).result(PATIENCE_S)
        for nbytes in (2 * 1024 * MIB + 1, 4 * 1024 * MIB + 1):
            giant = np.zeros(nbytes, dtype=np.uint8)  # the kernel has nothing behind it
            with pytest.raises(WrongInput, match="bytes"):
                producer.send(giant, id=2).result(PATIENCE_S)
        assert resident_bytes(services.pid("r1")) < 1024 * MIB
        assert producer.send(b"behind", id=3).result(PATIENCE_S) == 3
        assert producer.stats.resent == 0


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_largest_frame_there_may_be_is_stored_and_read(tmp_path: Path) -> None:
    largest = np.zeros(2 * 1024 * MIB, dtype=np.uint8)
    largest[::4096] = 7
    with LocalServices(tmp_path, log_level="error") as services:
        with producer_of(services, queue_bytes=4 * 1024 * MIB) as producer:
            producer.send(largest, id=1).result(120.0)
            producer.send(b"behind", id=2).result(PATIENCE_S)
            producer.finish_stream("default")
        for access in ("auto", "fetch"):
            with Consumer(services.native, beamtime=BEAMTIME, source="det", access=access, timeout_s=120.0) as consumer:
                found = consumer.get_by_id(1).data
                assert found.nbytes == largest.nbytes
                assert np.array_equal(found, largest)
