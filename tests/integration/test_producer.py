"""A real Producer against receivers that follow a script, over real links."""

import threading

import numpy as np
import pytest

from asapo import Producer
from asapo.errors import (
    DeadlineExceeded,
    DuplicateId,
    PayloadChanged,
    QueueFull,
    StreamBusy,
    StreamFinished,
    WrongInput,
)
from asapo.models import Format, Origin
from asapo.testing.fake_receiver import FakeReceiver
from asapo.wire.events import OpenStream
from tests.integration.producing import WAIT_S, make


def test_a_message_arrives_as_it_was_sent(producer: Producer, receiver: FakeReceiver) -> None:
    frame = np.arange(512 * 1024, dtype=">u2").reshape(512, 1024)
    handle = producer.send(
        frame, id=2**63 - 1, stream="a/b ü", meta={"x": 1.5}, substream=2, dataset_size=3, acquired_ns=-7,
        origin=Origin("raw", "scan 1", 99),
    )  # fmt: skip
    assert handle.result(WAIT_S) == 2**63 - 1
    stored = receiver.archive.messages["a/b ü", 2, 2**63 - 1]
    assert stored.data == frame.tobytes()
    assert stored.format == Format(">u2", (512, 1024))
    assert (stored.meta, stored.dataset_size, stored.acquired_ns) == ('{"x":1.5}', 3, -7)
    assert stored.origin == Origin("raw", "scan 1", 99)


def test_a_large_buffer_is_released_after_the_transport_let_go(producer: Producer, receiver: FakeReceiver) -> None:
    receiver.hold_acks()
    handle = producer.send(np.zeros(1 << 20, "|u1"), id=1)
    receiver.wait_for(lambda: receiver.archive.ids() == [1])
    assert not handle.done()
    assert not handle.released
    with pytest.raises(DeadlineExceeded):
        handle.wait_released(0.01)
    receiver.release_acks()
    handle.wait_released(WAIT_S)
    handle.wait_released(0)
    assert handle.result(0) == 1


def test_a_batch_is_one_unit_of_many_messages(producer: Producer, receiver: FakeReceiver) -> None:
    train = np.arange(64 * 32 * 32, dtype="<u4").reshape(64, 32, 32)
    handle = producer.send_batch(
        train, ids=range(640, 704), metas=[{"pulse": i} for i in range(64)], origins=[None] * 64
    )
    assert handle.result(WAIT_S) == list(range(640, 704))
    assert receiver.put_sizes == [64]
    assert receiver.archive.messages["default", 0, 650].data == train[10].tobytes()
    assert receiver.archive.messages["default", 0, 650].meta == '{"pulse":10}'
    assert list(handle) == [(i, None) for i in range(640, 704)]
    assert len(handle) == 64
    handle.wait_released(WAIT_S)


def test_small_messages_share_units_when_they_wait(producer: Producer, receiver: FakeReceiver) -> None:
    handles = [producer.send(bytes([i % 256]) * 100, id=i, meta={"i": i}) for i in range(1, 2001)]
    producer.flush(WAIT_S)
    assert all(handle.done() for handle in handles)
    assert receiver.archive.ids() == list(range(1, 2001))
    assert sum(receiver.put_sizes) == 2000
    assert len(receiver.put_sizes) < 2000
    assert all(receiver.archive.messages["default", 0, i].data == bytes([i % 256]) * 100 for i in range(1, 2001))


def test_ids_go_on_above_what_the_stream_holds(receiver: FakeReceiver) -> None:
    with make(receiver) as first:
        first.send(b"a", id=41).result(WAIT_S)
    with make(receiver) as second:
        assert second.send(b"b").result(WAIT_S) == 42
        assert second.send_batch([b"c", b"d"]).result(WAIT_S) == [43, 44]
        assert receiver.count(OpenStream) == 1


def test_two_sessions_cannot_number_one_stream(receiver: FakeReceiver) -> None:
    with make(receiver) as first, make(receiver) as second:
        first.send(b"a").result(WAIT_S)
        with pytest.raises(StreamBusy):
            second.send(b"b")
        second.send(b"b", id=100).result(WAIT_S)


def test_numbering_without_receivers_has_a_deadline() -> None:
    with Producer(
        beamtime="b", source="s", receivers=["tcp://127.0.0.1:9"], request_timeout_s=0.05
    ) as producer, pytest.raises(DeadlineExceeded):  # fmt: skip
        producer.send(b"a")


def test_errors_come_back_for_each_message(producer: Producer, receiver: FakeReceiver) -> None:
    receiver.refuse = lambda stream, i: DuplicateId("exists", message_id=i) if i in (3, 5) else None
    handle = producer.send_batch([b"x"] * 6, ids=range(1, 7))
    with pytest.raises(DuplicateId) as caught:
        handle.result(WAIT_S)
    assert caught.value.message_id == 3
    assert sorted(handle.errors) == [3, 5]
    assert [error is None for _, error in handle] == [True, True, False, True, False, True]
    assert (producer.stats.acked, producer.stats.failed) == (4, 2)


def test_a_buffer_changed_too_early_is_found_out(producer: Producer, receiver: FakeReceiver) -> None:
    # The unit waits for credit behind the first one, so that the buffer can be changed before it is transmitted.
    receiver.hold_acks()
    producer.send(np.zeros(129 << 20, "|u1"), id=1)
    receiver.wait_for(lambda: receiver.archive.ids() == [1])
    frame = np.zeros(1 << 20, "|u1")
    changed, copied = producer.send(frame, id=2), producer.send(frame, id=3, copy=True)
    frame[5] = 1
    receiver.release_acks()
    assert isinstance(changed.exception(WAIT_S), PayloadChanged)
    assert copied.exception(WAIT_S) is None


def test_callbacks_come_in_id_order_on_one_thread(producer: Producer) -> None:
    seen: list[tuple[int, str]] = []
    for i in range(1, 301):
        producer.send(b"x", id=i, callback=lambda h: seen.append((h.id, threading.current_thread().name)))
    producer.flush(WAIT_S)
    producer.close()
    assert seen == [(i, "asapo-callbacks") for i in range(1, 301)]


def test_a_full_queue_raises_or_waits(receiver: FakeReceiver) -> None:
    receiver.hold_acks()
    with make(receiver, queue_bytes=1000, queue_timeout_s=0) as hasty, make(receiver, queue_bytes=1000) as patient:
        hasty.send(bytes(500), id=1, stream="hasty")
        with pytest.raises(QueueFull):
            hasty.send(bytes(500), id=2, stream="hasty")
        patient.send(bytes(500), id=1)
        waiting = threading.Thread(target=lambda: patient.send(bytes(500), id=2))
        waiting.start()
        receiver.wait_for(lambda: receiver.archive.ids() == [1])
        assert waiting.is_alive()
        receiver.release_acks()
        waiting.join(WAIT_S)
        patient.flush(WAIT_S)
        assert receiver.archive.ids() == [1, 2]


def test_credit_is_respected() -> None:
    with FakeReceiver(window_bytes=300_000, window_messages=50) as receiver:
        with make(receiver, pack=False) as producer:
            for i in range(1, 201):
                producer.send(bytes(20_000), id=i)
            producer.send(bytes(400_000), id=999)
        assert receiver.defects == []
        assert len(receiver.archive.ids()) == 201
        assert receiver.most_in_flight[0] <= 400_000


def test_a_unit_that_no_receiver_takes_is_refused() -> None:
    with FakeReceiver(max_unit_bytes=1000) as receiver, make(receiver) as producer:
        handle = producer.send(bytes(2000), id=1)
        with pytest.raises(WrongInput, match="no receiver takes"):
            handle.result(WAIT_S)
        producer.send(bytes(1000), id=2).result(WAIT_S)


def test_the_watermark_follows_the_acks(producer: Producer, receiver: FakeReceiver) -> None:
    receiver.hold_acks()
    producer.send(bytes(200_000), id=5)
    producer.send(bytes(200_000), id=9)
    receiver.wait_for(lambda: receiver.archive.ids() == [5, 9])
    assert {mark["default"] for mark in receiver.marks} == {5}
    receiver.release_acks()
    receiver.wait_for(lambda: receiver.marks[-1] == {"default": 10})
    receiver.wait_for(lambda: receiver.marks[-3:] == [{"default": 10}] * 3)  # repeated by the heartbeat


def test_a_finished_stream_is_recorded_once_and_refuses_more(producer: Producer, receiver: FakeReceiver) -> None:
    for i in (1, 8):
        producer.send(b"x", id=i, stream="scan 1")
    producer.finish_stream("scan 1", next_stream="scan 2", timeout_s=WAIT_S)
    producer.finish_stream("scan 1", next_stream="scan 2", timeout_s=WAIT_S)
    assert receiver.archive.finished == {"scan 1": (8, "scan 2")}
    with pytest.raises(StreamFinished):
        producer.send(b"x", id=9, stream="scan 1")
    with make(receiver) as other, pytest.raises(StreamFinished) as caught:
        other.send(b"x", stream="scan 1")
    assert (caught.value.id_max, caught.value.next_stream) == (8, "scan 2")


def test_a_stream_of_others_can_be_finished(producer: Producer, receiver: FakeReceiver) -> None:
    with make(receiver) as other:
        other.send(b"x", id=12).result(WAIT_S)
    producer.finish_stream(timeout_s=WAIT_S)
    assert receiver.archive.finished == {"default": (12, "")}
    receiver.wait_for(lambda: receiver.marks[-1].get("default") == 13)


def test_metadata_of_stream_and_beamtime_arrive(producer: Producer, receiver: FakeReceiver) -> None:
    producer.set_stream_meta("scan", {"motor": "m1"})
    producer.set_beamtime_meta({"user": "ü"})
    assert receiver.archive.metas == {"scan": '{"motor":"m1"}', "": '{"user":"ü"}'}
