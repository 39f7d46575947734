"""At the limit of memory or threads: what is new is refused with a reason, what goes on goes on, nothing dies (F34)."""

import itertools
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asapo import Consumer
from asapo.errors import AsapoError, LinkLost
from asapo.hostinfo import RESERVE_BYTES
from asapo.testing.checker.local import process_numbers
from asapo.testing.launch import LocalServices
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
LIMITS = {"address space": (resource.RLIMIT_AS, "VmSize"), "data": (resource.RLIMIT_DATA, "VmData")}


def _status_bytes(pid: int, name: str) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _is_steady(sizes: list[int], size: int) -> bool:
    """Note a size; tell whether it was the same in the last second or so."""
    sizes.append(size)
    time.sleep(0.05)
    return sizes[-20:] == [size] * 20


@contextmanager
def little_memory(pid: int, limit: str, left_bytes: int) -> Iterator[None]:
    """Leave a running process so much more memory than it has."""
    kind, name = LIMITS[limit]
    sizes: list[int] = []
    wait_until(lambda: _is_steady(sizes, _status_bytes(pid, name)), "it neither grows nor shrinks")
    usual = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (sizes[-1] + left_bytes, usual[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, usual)


@pytest.mark.parametrize("limit", ["address space", pytest.param("data", marks=pytest.mark.soak)])
def test_a_receiver_without_memory_refuses_new_work_and_keeps_the_old(tmp_path: Path, limit: str) -> None:
    old = Ledger("old", sizes=(1_000, 5_000))
    with (
        LocalServices(tmp_path, log_level="error") as services,
        producer_of(services) as producer,
        producer_of(services, retry_s=0.3) as hasty,
        producer_of(services) as patient,
        under_load(producer, old, itertools.count(1), rate_hz=100) as load,
    ):
        load.wait_for_more(20)
        for other in (hasty, patient):
            other.send(b"x", id=1, stream="known").result(PATIENCE_S)
        pid = services.pid("r1")
        with little_memory(pid, limit, RESERVE_BYTES // 2):
            large = bytes(2 * RESERVE_BYTES)
            refused = hasty.send(large, id=1, stream="large").exception(PATIENCE_S)
            assert isinstance(refused, LinkLost), "ZeroMQ, which has no memory for it, cannot say so"
            assert "memory" in refused.message
            waiting = patient.send(large, id=2, stream="large")
            with producer_of(services, beamtime="new") as newcomer:
                new = newcomer.send(b"y", id=1)
                load.wait_for_more(50)
                assert not new.done()
                assert not waiting.done()
                assert not services.ended("r1")
                resource.prlimit(pid, LIMITS[limit][0], (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                assert new.result(PATIENCE_S) == 1
        assert waiting.result(PATIENCE_S) == 2
        load.wait_for_more(20)
        load.stop()
        assert producer.stats.resent == 0
        producer.finish_stream("old")
        assert not old.failed
        assert old.check_all(services) == sorted(old.acked)


@pytest.mark.soak
@pytest.mark.parametrize("limit", LIMITS)
def test_a_core_without_memory_refuses_new_clients_and_keeps_the_old(tmp_path: Path, limit: str) -> None:
    ledger = Ledger("old", sizes=(1_000,))
    with LocalServices(tmp_path, log_level="error") as services, producer_of(services) as producer:
        reader = OrderedReader(services, ledger)
        reader.start()
        with under_load(producer, ledger, sparse_ids(), rate_hz=100) as load:
            load.wait_for_more(20)
            wait_until(lambda: reader.ids, "the reader reads")
            with little_memory(services.pid("broker"), limit, RESERVE_BYTES // 2):
                for _ in range(5):
                    with (
                        pytest.raises(AsapoError) as refused,
                        Consumer(services.native, beamtime=BEAMTIME, source="det", timeout_s=1.0) as other,
                    ):
                        other.get_last(stream="old")
                    assert "memory" in refused.value.message
                before = len(reader.ids)
                wait_until(lambda: len(reader.ids) > before + 20, "the old reader goes on")
                assert not services.ended("broker")
            with consumer_of(services) as other:
                assert other.get_last(stream="old").id
        producer.finish_stream("old")
        assert reader.finish() == sorted(ledger.acked) == ledger.check_all(services)


def test_without_new_threads_everything_goes_on(tmp_path: Path) -> None:
    switch = tmp_path / "no threads"
    faults = {"r1": f"threads:{switch}", "broker": f"threads:{switch}"}
    ledger = Ledger("filling", sizes=(4 * MIB,))
    with (
        LocalServices(tmp_path / "data", faults=faults, log_level="error") as services,
        producer_of(services) as producer,
    ):
        ledger.send(producer, 1).result(PATIENCE_S)
        switch.touch()
        before = process_numbers(services.pid("r1"))["threads"]
        for message_id in range(2, 30):  # far enough for space to be reserved ahead, by a thread where there is one
            ledger.send(producer, message_id)
        producer.flush(PATIENCE_S)
        with producer_of(services, beamtime="new") as newcomer:
            assert newcomer.send(b"x", id=1).result(PATIENCE_S) == 1
        assert process_numbers(services.pid("r1"))["threads"] == before
        switch.unlink()
        producer.finish_stream("filling")
        assert not ledger.failed
        assert ledger.check_all(services) == list(range(1, 30))
