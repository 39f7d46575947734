"""Consumers on real links, against brokers and data servers that do what the test says."""

import gc
import threading
from typing import Any

import pytest

from asapo import Consumer
from asapo.errors import (
    Gap,
    GroupMismatch,
    NothingYet,
    StreamFinished,
    UnknownStream,
    WrongInput,
)
from asapo.hostinfo import boot_id
from asapo.testing.fake_broker import FakeBroker
from asapo.wire.events import Bye, GetNext, Hello, Nack
from tests.integration.scripted import end_with

# -- single calls ------------------------------------------------------------------------------------------------------


def test_messages_come_one_by_one_and_in_lists(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=5)
    assert consumer.get_next("g").id == 1
    assert [message.id for message in consumer.get_next("g", n=3)] == [2, 3, 4]
    assert consumer.get_next("other").id == 1


def test_acknowledged_messages_are_done(broker: FakeBroker, consumer: Consumer) -> None:
    stream = broker.stream(n=5)
    messages = consumer.get_next("g", n=3)
    consumer.acknowledge(messages[0], group="g")
    consumer.acknowledge([2, 3], group="g")
    assert stream.done["g"] == {1, 2, 3}


def test_handed_back_messages_come_again(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=2)
    first, second = consumer.get_next("g", n=2)
    consumer.nack(first, group="g", delay_s=0.5)
    consumer.give_back(second, group="g")
    nacks = [(list(nack.ids), nack.delay_s, nack.unstarted) for nack in broker.seen(Nack)]
    assert nacks == [([1], 0.5, False), ([2], 0.0, True)]
    again = consumer.get_next("g", n=2)
    assert [(message.id, message.attempt) for message in again] == [(1, 2), (2, 1)]


def test_the_four_answers_are_four_classes(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(stream="empty")
    broker.stream(stream="done", n=1, finished=True, next_stream="more")
    with pytest.raises(NothingYet):
        consumer.get_next("g", stream="empty", timeout_s=0.05)
    consumer.get_next("g", stream="done")
    with pytest.raises(StreamFinished) as caught:
        consumer.get_next("g", stream="done")
    assert (caught.value.id_max, caught.value.next_stream) == (1, "more")
    with pytest.raises(UnknownStream):
        consumer.get_next("g", stream="never", timeout_s=0.05)
    with pytest.raises(Gap):
        consumer.get_by_id(77, stream="done")


def test_a_worker_may_start_before_its_stream(broker: FakeBroker, consumer: Consumer) -> None:
    waiting = threading.Thread(target=lambda: found.append(consumer.get_next("g", stream="later")))
    found: list[object] = []
    waiting.start()
    broker.wait_until(lambda: any(isinstance(request, GetNext) for request in broker.requests))
    broker.stream(stream="later", n=1)
    waiting.join()
    assert found[0].id == 1  # type: ignore[attr-defined]


def test_last_by_id_and_query_belong_to_no_group(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=4)
    assert consumer.get_last().id == 4
    assert consumer.get_by_id(2).id == 2
    assert [message.id for message in consumer.get_by_id([4, 1])] == [4, 1]
    assert [message.id for message in consumer.query("meta.x = 1", limit=2)] == [1, 2]


def test_streams_sources_and_receivers_are_listed(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream("det", "run1", n=3)
    broker.stream("cam", "run1", finished=True)
    broker.receivers = [{"receiver_id": "r1"}]
    assert consumer.stream_info(stream="run1")["n_messages"] == 3
    assert [entry["stream"] for entry in consumer.streams()] == ["run1"]
    assert len(consumer.streams(source="")) == 2
    assert consumer.sources() == ["cam", "det"]
    assert consumer.receivers() == [{"receiver_id": "r1"}]


def test_an_error_of_the_broker_is_raised_as_its_class(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=1)

    def refuse(request: Any) -> Any:
        raise GroupMismatch("another filter", group="g", expected="a", found="b")

    broker.script[GetNext] = refuse
    with pytest.raises(GroupMismatch) as caught:
        consumer.get_next("g")
    assert caught.value.found == "b"


def test_the_greeting_says_who_we_are(broker: FakeBroker) -> None:
    with Consumer(broker.url, beamtime="bt", source="det", token="secret", name="me") as consumer:  # noqa: S106
        consumer.streams()
    (hello,) = broker.seen(Hello)
    assert (hello.role, hello.beamtime, hello.name, hello.token) == ("consumer", "bt", "me", "secret")
    assert hello.boot_id == boot_id()


@pytest.mark.parametrize("wrong", [{"beamtime": ""}, {"beamtime": "b", "timeout_s": float("inf")}])
def test_wrong_settings_are_refused_at_once(wrong: Any) -> None:
    with pytest.raises(WrongInput):
        Consumer("asapo://127.0.0.1:1", **wrong)


def test_a_wrong_address_is_refused_at_once() -> None:
    with pytest.raises(WrongInput, match="asapo://host:port"):
        Consumer("http://127.0.0.1:1", beamtime="bt")


# -- loops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("batch", [None, 7])
def test_a_loop_sees_every_message_once_and_acknowledges_all(
    broker: FakeBroker, consumer: Consumer, batch: Any, prefetch: Any
) -> None:
    stream = broker.stream(n=100, finished=True)
    seen = []
    for item in consumer.stream(group="g", batch=batch, prefetch=prefetch):
        seen += [item.id] if batch is None else [message.id for message in item]
    assert seen == list(range(1, 101))
    assert stream.done["g"] == set(seen)


def test_a_loop_follows_the_next_stream(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(stream="run1", n=2, finished=True, next_stream="run2")
    broker.stream(stream="run2", n=1, finished=True)
    found = [(message.stream, message.id) for message in consumer.stream(group="g", stream="run1")]
    assert found == [("run1", 1), ("run1", 2), ("run2", 1)]


def test_an_exception_in_the_loop_hands_back_the_current_and_the_unstarted(
    broker: FakeBroker, consumer: Consumer
) -> None:
    stream = broker.stream(n=50)

    def work() -> None:
        for message in consumer.stream(group="g"):
            if message.id == 4:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    consumer.get_last()  # its answer comes after everything that was posted before
    broker.wait_until(lambda: stream.done.get("g") == {1, 2, 3} and stream.given["g"] == {1, 2, 3})
    again = consumer.get_next("g", n=50)
    assert [message.id for message in again] == list(range(4, 51))
    assert [message.attempt for message in again] == [2, *([1] * 46)]


def test_a_message_acknowledged_before_break_stays_done(broker: FakeBroker, consumer: Consumer) -> None:
    stream = broker.stream(n=5)
    for message in consumer.stream(group="g"):
        consumer.acknowledge(message, group="g")
        break
    consumer.get_last()
    broker.wait_until(lambda: stream.given["g"] == {1})
    assert stream.done["g"] == {1}


def test_closing_hands_back_what_was_fetched_ahead_and_says_farewell(broker: FakeBroker) -> None:
    stream = broker.stream(n=40)
    with Consumer(broker.url, beamtime="bt", source="det") as consumer:
        loop = consumer.stream(group="g", batch=10)
        next(loop)
        next(loop)
    broker.wait_until(lambda: any(isinstance(request, Bye) for request in broker.requests))
    assert stream.done["g"] == set(range(1, 11))
    assert stream.given["g"] == set(range(1, 11))
    attempts = [stream.attempts["g", number] for number in range(11, 31)]
    assert attempts == [1] * 10 + [0] * 10  # the list at work counts, the one fetched ahead does not
    loop.close()


def test_a_loop_dropped_by_the_garbage_collector_hands_back(broker: FakeBroker, consumer: Consumer) -> None:
    stream = broker.stream(n=3)
    loop = consumer.stream(group="g")
    next(loop)
    del loop
    gc.collect()
    consumer.get_last()
    broker.wait_until(lambda: stream.given["g"] == set())


def test_silence_ends_a_loop(broker: FakeBroker, consumer: Consumer) -> None:
    stream = broker.stream(n=3)
    seen = []

    def work() -> None:
        for message in consumer.stream(group="g", timeout_s=0.2):
            seen.append(message.id)

    with pytest.raises(NothingYet):
        work()
    assert seen == [1, 2, 3]
    broker.wait_until(lambda: stream.done["g"] == {1, 2, 3})


def test_done_messages_are_reported_while_the_loop_waits_for_more(broker: FakeBroker, consumer: Consumer) -> None:
    stream = broker.stream(n=3)
    seen: list[int] = []
    loop = threading.Thread(target=lambda: seen.extend(message.id for message in consumer.stream(group="g")))
    loop.start()
    broker.wait_until(lambda: stream.done.get("g") == {1, 2, 3})
    broker.change(lambda: end_with(stream, 4))
    loop.join()
    assert seen == [1, 2, 3, 4]
    assert stream.done["g"] == {1, 2, 3, 4}


def test_threads_share_a_consumer(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=300, finished=True)
    seen: list[int] = []

    def work() -> Any:
        for message in consumer.stream(group="g", batch=None):
            seen.append(message.id)
            consumer.get_by_id(message.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 301))


def test_a_long_wait_of_one_thread_does_not_hold_up_another(broker: FakeBroker, consumer: Consumer) -> None:
    broker.stream(n=1)
    waiting = threading.Thread(target=lambda: consumer.get_next("g", stream="later", timeout_s=30))
    waiting.start()
    broker.wait_until(lambda: any(isinstance(request, GetNext) for request in broker.requests))
    assert consumer.get_last(timeout_s=5).id == 1
    broker.stream(stream="later", n=1)
    waiting.join()
