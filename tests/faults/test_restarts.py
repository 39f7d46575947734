"""Processes come and go under load: nothing acknowledged is lost, doubled, changed or out of order."""

import itertools
import os
import signal
from pathlib import Path

import pytest

from asapo.ask import Asker
from asapo.testing.launch import LocalServices
from asapo.wire.events import Describe
from tests.e2e.ledger import (
    PATIENCE_S,
    Ledger,
    OrderedReader,
    consumer_of,
    producer_of,
    sparse_ids,
    under_load,
    wait_until,
)

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(240)]

# -- receivers come and go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_way", [pytest.param("end", marks=pytest.mark.soak), "kill"])
def test_receivers_added_and_removed_under_load_lose_nothing_and_keep_the_order(tmp_path: Path, last_way: str) -> None:
    ledger = Ledger("striped")
    with LocalServices(tmp_path) as services, producer_of(services) as producer:
        reader = OrderedReader(services, ledger)
        reader.start()
        with under_load(producer, ledger, sparse_ids()) as load:
            load.wait_for_more()
            assert producer.stats.links == 1
            added = [services.add_receiver() for _ in range(2)]
            wait_until(lambda: producer.stats.links == 3, "the producer uses all three receivers")
            load.wait_for_more(200)
            for name in added:
                if last_way == "kill":
                    services.kill(name)
                else:
                    assert services.end(name) == 0
                load.wait_for_more()
            wait_until(lambda: producer.stats.links == 1, "the producer has left the receivers that are gone")
            load.wait_for_more()
        producer.finish_stream(ledger.stream)
        ids = reader.finish()
        if last_way == "kill":
            for name in added:
                services.restart(name)  # what it journaled and came not to index is for its next life to note
        assert ids == sorted(ledger.acked) == ledger.check_all(services)
        assert not ledger.failed


# -- killed and restarted --------------------------------------------------------------------------------------------


def test_everything_killed_at_once_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger("all at once")
    with LocalServices(tmp_path, receivers=2) as services, producer_of(services) as producer:
        reader = OrderedReader(services, ledger)
        reader.start()
        with under_load(producer, ledger, sparse_ids()) as load:
            load.wait_for_more()
            names = ["r1", "r2", "broker"]
            for name in names:
                os.kill(services.pid(name), signal.SIGKILL)
            acked = set(ledger.acked)
            for name in names:
                services.kill(name)
                services.restart(name)
            with consumer_of(services) as consumer:
                ledger.check_by_id(consumer, acked)
            load.wait_for_more()
        producer.finish_stream(ledger.stream)
        ids = reader.finish()
        assert list(dict.fromkeys(ids)) == sorted(ledger.acked) == ledger.check_all(services)
        assert not ledger.failed


@pytest.mark.parametrize("fault", ["pwrite:25:tear", "pwrite:25:after", "append:40:tear:.idx", "append:40:after:.idx"])
def test_a_receiver_that_dies_in_the_middle_of_a_write_loses_nothing(tmp_path: Path, fault: str) -> None:
    ledger = Ledger("torn", sizes=(1_000, 5_000, 300_000))
    with LocalServices(tmp_path, faults={"r1": fault}, log_level="error") as services:
        with producer_of(services, pack=False) as producer:
            with under_load(producer, ledger, sparse_ids()) as load:
                wait_until(lambda: services.ended("r1"), "the receiver has met its fault")
                services.cure("r1")
                services.kill("r1")
                services.restart("r1")
                load.wait_for_more()
            producer.finish_stream(ledger.stream)
        assert not ledger.failed
        assert ledger.check_all(services) == sorted(ledger.acked)
        with consumer_of(services, access="fetch") as consumer:
            ledger.check_by_id(consumer)


# -- a core that is killed while it takes acknowledgements ------------------------------------------------------------


def test_a_killed_core_forgets_at_most_the_last_acknowledgements(tmp_path: Path) -> None:
    count, safe = 600, 200
    ledger = Ledger("acks", sizes=(100,))
    with LocalServices(tmp_path) as services, consumer_of(services) as consumer:
        with producer_of(services) as producer:
            for message_id in itertools.islice(sparse_ids(), count):
                ledger.send(producer, message_id)
            producer.finish_stream(ledger.stream)
        acked: list[int] = []

        def work(n: int) -> None:
            for _ in range(n):
                message = consumer.get_next("g", stream=ledger.stream, lease_s=5.0)
                consumer.acknowledge(message, group="g")
                acked.append(message.id)

        work(safe)
        saved = _core_number(services, "cursors_saved")

        def written() -> bool:
            work(1)
            return _core_number(services, "cursors_saved") > saved + 1  # the second one began after we asked

        wait_until(written, "the core has written the cursors down")
        known = set(acked[:safe])
        work(safe)
        services.kill("broker")
        services.restart("broker")
        late_ids = set(acked) - known
        rest = list(consumer.stream(group="g", stream=ledger.stream, timeout_s=PATIENCE_S))
        given = [message.id for message in rest]
        assert not known & set(given), "once: what was written down as done came again"
        assert len(given) == len(set(given))
        assert given == sorted(given)
        assert set(given) - late_ids == ledger.acked - set(acked)
        assert ledger.acked == set(acked) | set(given)


def _core_number(services: LocalServices, name: str) -> float:
    """Return one of the numbers that the core counts."""
    asker = Asker(services.native)
    try:
        answer = asker.ask(Describe, source="", stream="")
    finally:
        asker.close()
    assert isinstance(answer, dict)
    return float(answer[name])
