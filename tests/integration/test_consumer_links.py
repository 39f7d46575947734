"""Consumers whose links break, against brokers that do what the test says."""

import os
import threading
from typing import Any

import pytest

from asapo import Consumer
from asapo.errors import (
    ConnectFailed,
    DeadlineExceeded,
    LocalProtocolError,
    NothingYet,
    TokenRejected,
    to_wire,
)
from asapo.testing.fake_broker import FakeBroker, row
from asapo.wire.events import Beat, GetLast, GetNext, Goodbye, Hello, Nack
from tests.integration.scripted import SILENT_URL

# -- links that break --------------------------------------------------------------------------------------------------


def test_nobody_there_is_said_with_the_address_and_the_next_step() -> None:
    with Consumer(SILENT_URL, beamtime="bt", source="det", timeout_s=0.2) as consumer, pytest.raises(
        ConnectFailed, match=r"127\.0\.0\.1:9 .*check the address"
    ):  # fmt: skip
        consumer.get_last()


def test_a_broker_that_never_answers_is_too_late(
    broker: FakeBroker, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asapo_work.link.ANSWER_GRACE_S", 0.1)
    broker.stream(n=1)
    broker.script[GetLast] = lambda _: None
    with pytest.raises(DeadlineExceeded, match="GetLast"):
        consumer.get_last(timeout_s=0.1)


def test_a_request_under_way_survives_a_lost_link_and_is_served_once(broker: FakeBroker, consumer: Consumer) -> None:
    stream = broker.stream(stream="later")
    found = []
    waiting = threading.Thread(target=lambda: found.append(consumer.get_next("g", stream="later")))
    waiting.start()
    broker.wait_until(lambda: any(isinstance(request, GetNext) for request in broker.requests))
    broker.cut_links()
    broker.wait_until(lambda: sum(isinstance(request, GetNext) for request in broker.requests) == 2)
    broker.change(lambda: stream.rows.extend([row(1), row(2)]))
    waiting.join()
    first, second = broker.seen(GetNext)
    assert first.request == second.request
    assert len({hello.session for hello in broker.seen(Hello)}) == 1
    assert found[0].id == 1
    assert stream.given["g"] == {1}


def test_an_answer_lost_with_its_link_comes_again_from_the_stored_replies(
    broker: FakeBroker, consumer: Consumer
) -> None:
    stream = broker.stream(n=3)
    broker.lose_answer(GetNext)
    assert consumer.get_next("g").id == 1
    assert len(broker.seen(GetNext)) == 2
    assert stream.given["g"] == {1}


def test_a_loop_goes_on_over_lost_links(broker: FakeBroker, consumer: Consumer) -> None:
    stream = broker.stream(n=60, finished=True)
    seen = []
    for message in consumer.stream(group="g"):
        seen.append(message.id)
        if message.id in (5, 30):
            broker.cut_links()
    assert seen == list(range(1, 61))
    assert stream.done["g"] == set(seen)


def test_messages_that_come_after_the_caller_gave_up_go_back(
    broker: FakeBroker, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asapo_work.link.ANSWER_GRACE_S", 0.0)
    stream = broker.stream(n=2)
    consumer.get_last()
    broker.hold_answers(GetNext)
    with pytest.raises(DeadlineExceeded):
        consumer.get_next("g", timeout_s=0.2)
    assert stream.given["g"] == {1}
    broker.release_answers()
    broker.wait_until(lambda: stream.given["g"] == set())
    assert broker.seen(Nack)[0].unstarted


def test_a_goodbye_with_a_reason_ends_the_call_with_it(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=1)
    broker.script[GetLast] = lambda _: Goodbye(to_wire(TokenRejected("who are you")))
    with pytest.raises(TokenRejected):
        consumer.get_last()
    del broker.script[GetLast]
    assert consumer.get_last().id == 1


def test_beats_go_on_while_user_code_works_and_also_while_it_waits(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=1)
    consumer.get_next("g")
    beats = len(broker.seen(Beat))
    broker.wait_until(lambda: sum(isinstance(request, Beat) for request in broker.requests) >= beats + 3)
    with pytest.raises(NothingYet):
        consumer.get_next("g", timeout_s=1.0)
    assert len(broker.seen(Beat)) >= beats + 6


def test_a_link_lost_while_user_code_works_is_made_anew_by_the_beats(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=1)
    consumer.get_next("g")
    broker.cut_links()
    broker.wait_until(lambda: sum(isinstance(request, Hello) for request in broker.requests) == 2)


def test_after_close_every_call_says_so(broker: FakeBroker, consumer: Consumer) -> None:
    consumer.close()
    consumer.close()
    with pytest.raises(LocalProtocolError, match="after close"):
        consumer.get_last()


def test_closing_ends_the_waits_of_other_threads(broker: FakeBroker, consumer: Consumer) -> None:
    failures = []

    def wait() -> Any:
        try:
            consumer.get_next("g", stream="never", timeout_s=60)
        except LocalProtocolError as exc:
            failures.append(exc)

    waiting = threading.Thread(target=wait)
    waiting.start()
    broker.wait_until(lambda: any(isinstance(request, GetNext) for request in broker.requests))
    consumer.close()
    waiting.join()
    assert len(failures) == 1


@pytest.mark.needs_linux
def test_a_forked_child_is_told_to_make_its_own(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=1)
    consumer.get_last()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            consumer.get_last()
        except LocalProtocolError as exc:
            os.write(write, exc.message.encode())
        finally:
            consumer.close()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        assert "fork" in said.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert consumer.get_last().id == 1
