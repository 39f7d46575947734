"""Workers that die, hang or leave: what they held goes to others, and nothing else does."""

import itertools
from pathlib import Path

import pytest

from asapo.errors import LeaseLost, StreamFinished
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import PATIENCE_S, Ledger, consumer_of, producer_of, sparse_ids
from tests.e2e.programs import next_line, program

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]

WORKER = Path(__file__).with_name("worker_process.py")


def _filled(services: LocalServices, stream: str, count: int) -> Ledger:
    ledger = Ledger(stream, sizes=(0, 100, 5_000))
    with producer_of(services) as producer:
        for message_id in itertools.islice(sparse_ids(), count):
            ledger.send(producer, message_id)
        producer.finish_stream(stream)
    return ledger


def test_what_a_killed_worker_held_is_given_to_others_once(tmp_path: Path) -> None:
    with LocalServices(tmp_path, session_timeout_s=2.0) as services:
        ledger = _filled(services, "killed", 300)
        with program(WORKER, services.native, "killed", "g", 40, 600) as worker:
            held = [int(word) for word in next_line(worker).split()]
            assert len(held) == 40
            worker.kill()
            worker.wait()
        with consumer_of(services) as consumer:
            found = list(consumer.stream(group="g", stream="killed", timeout_s=PATIENCE_S))
        assert {message.id for message in found if message.attempt == 2} == set(held)
        assert {message.attempt for message in found} == {1, 2}
        for message in found:
            ledger.check_content(message.id, message.raw, "the other worker")
        ledger.check_whole((message.id for message in found), "the other worker")


def test_a_worker_that_leaves_hands_back_what_it_held(tmp_path: Path) -> None:
    with LocalServices(tmp_path) as services:
        ledger = _filled(services, "left", 100)
        with program(WORKER, services.native, "left", "g", 10, 600) as worker:
            held = [int(word) for word in next_line(worker).split()]
            worker.communicate()
            assert worker.returncode == 0
        with consumer_of(services) as consumer:
            found = [message.id for message in consumer.stream(group="g", stream="left", timeout_s=PATIENCE_S)]
        assert set(held) <= set(found)
        ledger.check_whole(found, "the other worker")


def test_only_the_holder_of_a_message_acknowledges_it(tmp_path: Path) -> None:
    with LocalServices(tmp_path) as services, consumer_of(services) as late, consumer_of(services) as other:
        _filled(services, "leased", 2)
        with program(WORKER, services.native, "leased", "g", 1, 600) as worker:
            held = int(next_line(worker))
            with pytest.raises(LeaseLost) as lost:
                late.acknowledge(held, group="g", stream="leased")
            assert lost.value.message_ids == [held]
            second = late.get_next("g", stream="leased")
            assert second.id != held
            late.nack(second, group="g")
            again = other.get_next("g", stream="leased")
            assert (again.id, again.attempt) == (second.id, 2)
            with pytest.raises(LeaseLost):
                late.acknowledge(second, group="g")
            other.acknowledge(again, group="g")
            worker.communicate()
        last = other.get_next("g", stream="leased")
        assert last.id == held
        other.acknowledge(last, group="g")
        with pytest.raises(StreamFinished):
            other.get_next("g", stream="leased")


class CannotWorkError(Exception):
    """User code failed on a message."""


def test_a_loop_that_raises_gives_its_message_back_and_goes_on_behind_what_is_done(tmp_path: Path) -> None:
    with LocalServices(tmp_path) as services:
        ledger = _filled(services, "raised", 50)
        poison = set(sorted(ledger.acked)[5::15])
        done: list[int] = []

        def work(message_id: int, attempt: int) -> None:
            if message_id in poison and attempt == 1:
                raise CannotWorkError(message_id)
            done.append(message_id)

        def loop() -> None:
            with consumer_of(services) as consumer:
                for message in consumer.stream(group="g", stream="raised", timeout_s=PATIENCE_S):
                    work(message.id, message.attempt)

        for _ in poison:
            with pytest.raises(CannotWorkError):
                loop()
        loop()
        ledger.check_whole(done, "the loop")
