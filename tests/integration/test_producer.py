"""A real Producer against receivers that follow a script, over real links."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from asapo import Producer
from asapo.errors import (
    AsapoError,
    BeamtimeForbidden,
    DeadlineExceeded,
    DiskFull,
    DuplicateId,
    LinkLost,
    LocalProtocolError,
    PayloadChanged,
    QueueFull,
    StreamBusy,
    StreamFinished,
    WrongInput,
)
from asapo.models import Format, Origin
from asapo.testing.fake_receiver import Archive, FakeBroker, FakeReceiver
from asapo.wire.events import Bye, Hello, OpenStream
from asapo.wire.put import Put
from asapo_produce import discovery

WAIT_S = 30.0


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    with FakeReceiver(heartbeat_s=0.05) as receiver:
        yield receiver
        assert receiver.defects == []


@pytest.fixture
def producer(receiver: FakeReceiver) -> Iterator[Producer]:
    with Producer(beamtime="bt", source="det", receivers=[receiver.address]) as producer:
        yield producer


def make(*receivers: FakeReceiver, **settings: Any) -> Producer:
    return Producer(beamtime="bt", source="det", receivers=[r.address for r in receivers], **settings)


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
    assert handle.released
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


def test_what_was_not_acknowledged_is_resent_to_the_next_receiver() -> None:
    archive = Archive()
    with FakeReceiver(archive=archive) as first, make(first) as producer:
        first.hold_acks()
        handles = [producer.send(bytes(70_000), id=i) for i in range(1, 20)]
        first.wait_for(lambda: len(archive.ids()) >= 10)
        first.stop()
        with FakeReceiver(first.address, archive=archive) as again:
            assert [handle.result(WAIT_S) for handle in handles] == list(range(1, 20))
            assert again.defects == []
            assert producer.stats.resent >= 10
            assert again.archive.ids() == list(range(1, 20))
            producer.close()


def test_an_ack_directly_before_the_end_of_a_link_counts(receiver: FakeReceiver, producer: Producer) -> None:
    receiver.farewell = LinkLost("the receiver stops")
    assert producer.send(b"x", id=1).result(WAIT_S) == 1
    receiver.wait_for(lambda: receiver.count(Hello) == 2)  # what is sent before that may be resent, rightly
    producer.send(b"y", id=2).result(WAIT_S)
    assert receiver.count(Hello) == 2
    assert receiver.count(Put) == 2
    assert producer.stats.resent == 0


def test_a_silent_receiver_is_left_for_one_that_answers() -> None:
    archive = Archive()
    with (
        FakeReceiver(archive=archive, session_timeout_s=0.3, heartbeat_s=0.05) as mute,
        FakeReceiver(archive=archive, heartbeat_s=0.05) as lively,
        make(mute, lively) as producer,
    ):
        mute.wait_for(lambda: producer.stats.links == 2)
        mute.silent = True
        handles = [producer.send(bytes(300_000), id=i) for i in range(1, 31)]
        assert [handle.result(WAIT_S) for handle in handles] == list(range(1, 31))
        assert lively.count(Put) >= 15
        mute.silent = False


def test_units_are_spread_over_receivers() -> None:
    archive = Archive()
    with (
        FakeReceiver(archive=archive, receiver_id="a") as a,
        FakeReceiver(archive=archive, receiver_id="b") as b,
        make(a, b) as producer,
    ):
        a.wait_for(lambda: producer.stats.links == 2)
        a.hold_acks()
        b.hold_acks()
        for i in range(1, 21):
            producer.send(bytes(300_000), id=i)
        a.wait_for(lambda: len(archive.ids()) == 20)
        assert (a.count(Put), b.count(Put)) == (10, 10)
        a.release_acks()
        b.release_acks()


def test_receivers_come_and_go_at_the_brokers_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "REFRESH_S", 0.1)
    archive = Archive()
    with (
        FakeReceiver(archive=archive, receiver_id="a") as a,
        FakeReceiver(archive=archive, receiver_id="b") as b,
        FakeBroker() as broker,
    ):
        with Producer(broker.address, beamtime="bt", source="det") as producer:
            early = producer.send(b"x", id=1)
            broker.wait_for(lambda: broker.count(Hello) == 1)
            broker.receivers = [a]
            early.result(WAIT_S)
            assert a.count(Put) == 1
            broker.receivers = [b]
            b.wait_for(lambda: b.count(Hello) == 1)
            a.wait_for(lambda: a.count(Bye) == 1)
            assert [event.final for event in a.heard if type(event) is Bye] == [False]
            producer.send(b"y", id=2).result(WAIT_S)
            assert (a.count(Put), b.count(Put)) == (1, 1)
            broker.stop()
            producer.send(b"z", id=3).result(WAIT_S)
        assert [event.final for event in b.heard if type(event) is Bye] in ([True], [])


def test_ipc_works_like_tcp(tmp_path: Any) -> None:
    with FakeReceiver(f"ipc://{tmp_path}/r") as receiver, make(receiver) as producer:
        assert producer.send(np.zeros(1 << 20, "|u1")).result(WAIT_S) == 1


def test_a_refusal_for_good_fails_everything() -> None:
    with FakeReceiver(greeting=BeamtimeForbidden("not yours")) as receiver:
        producer = make(receiver)
        with contextlib.suppress(BeamtimeForbidden):
            assert isinstance(producer.send(b"x", id=1).exception(WAIT_S), BeamtimeForbidden)
        with pytest.raises(BeamtimeForbidden):
            producer.finish_stream("other")
        with pytest.raises(BeamtimeForbidden):
            producer.send(b"x", id=2)
        with pytest.raises(BeamtimeForbidden):
            producer.close()


def test_a_passing_error_is_retried(receiver: FakeReceiver) -> None:
    fails = iter([DiskFull("full", free_bytes=0)] * 2)
    receiver.refuse = lambda stream, i: next(fails, None)
    with make(receiver) as producer:
        assert producer.send(b"x", id=1).result(WAIT_S) == 1
        assert producer.stats.resent == 2


def test_an_error_that_does_not_pass_reaches_the_handle(receiver: FakeReceiver) -> None:
    receiver.refuse = lambda stream, i: DiskFull("full", free_bytes=7)
    with make(receiver, retry_s=0.15) as producer:
        with pytest.raises(DiskFull) as caught:
            producer.send(b"x", id=1).result(WAIT_S)
        assert caught.value.free_bytes == 7
        assert producer.stats.resent >= 1


def test_many_threads_may_send(producer: Producer, receiver: FakeReceiver) -> None:
    def work() -> None:
        for _ in range(200):
            producer.send(b"x" * 50)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    producer.flush(WAIT_S)
    assert receiver.archive.ids() == list(range(1, 801))


def test_closing_without_receivers_fails_what_waits() -> None:
    producer = Producer(beamtime="b", source="s", receivers=["tcp://127.0.0.1:9"])
    handle = producer.send(b"x", id=1)
    with pytest.raises(DeadlineExceeded):
        producer.close(0.05)
    assert isinstance(handle.exception(0), LinkLost)
    producer.close()
    for use in (lambda: producer.send(b"x", id=2), producer.flush, producer.finish_stream):
        with pytest.raises(LocalProtocolError, match="closed"):
            use()


def test_an_error_in_the_block_is_what_is_raised() -> None:
    def block() -> None:
        with Producer(beamtime="b", source="s", receivers=["tcp://127.0.0.1:9"]) as producer:
            producer.send(b"x", id=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0}, {"id": -1}, {"id": 2**63}, {"id": 1.5}, {"id": True}, {"stream": ""}, {"stream": "x" * 256},
        {"meta": {"a": float("nan")}}, {"meta": []}, {"substream": 1}, {"dataset_size": 2},
        {"substream": 3, "dataset_size": 2}, {"substream": 1, "dataset_size": 2.5},
        {"substream": True, "dataset_size": 2}, {"substream": 1, "dataset_size": 2**63},
        {"origin": Origin("", "scan", 1)}, {"origin": Origin("raw", "scan", 0)},
        {"data": 5}, {"acquired_ns": 2**63}, {"origin": "raw"}, {"codec": "zip"},
    ],
)  # fmt: skip
def test_wrong_input_is_refused_at_once(producer: Producer, wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"data": b"x", "id": 1, **wrong}
    with pytest.raises(WrongInput):
        producer.send(**arguments)
    assert producer.stats.sent == 0


@pytest.mark.parametrize("wrong", [{"level": "synced"}, {"transport": "rdma"}, {"beamtime": ""}, {"receivers": []}])
def test_wrong_settings_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(WrongInput):
        Producer(**{"beamtime": "b", "source": "s", **wrong})


def test_buffers_of_the_sdk_are_recycled(producer: Producer, receiver: FakeReceiver) -> None:
    for i in range(1, 30):
        frame = producer.get_buffer(shape=(256, 512), dtype="uint16")
        frame[:] = i
        handle = producer.send(frame, id=i)
        del frame
        handle.result(WAIT_S)
        handle.wait_released(WAIT_S)
    assert producer.stats.recycled > 0
    assert all(
        receiver.archive.messages["default", 0, i].data == np.full(1 << 17, i, "<u2").tobytes() for i in range(1, 30)
    )


@pytest.mark.needs_linux
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_needs_its_own_producer(producer: Producer) -> None:
    producer.send(b"x", id=1).result(WAIT_S)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            producer.send(b"y", id=2)
        except AsapoError as exc:
            os.write(write, exc.message.encode())
        finally:
            producer.close()
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        assert b"make a new Producer in the forked process" in pipe.read()
    producer.send(b"y", id=2).result(WAIT_S)


SCRIPT = """
import sys
from asapo import Producer
producer = Producer(beamtime="b", source="s", receivers=[sys.argv[1]])
for i in range(1, 101):
    producer.send(b"x", id=i)
if sys.argv[2] == "forgotten":
    del producer
"""


@pytest.mark.parametrize("how", ["unclosed", "forgotten"])
def test_a_program_that_just_ends_still_gets_its_acks(receiver: FakeReceiver, how: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, receiver.address, how], check=True, timeout=WAIT_S)
    assert receiver.archive.ids() == list(range(1, 101))


def test_a_program_without_receivers_ends(capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, "tcp://127.0.0.1:9", "unclosed"], check=True, timeout=WAIT_S)
    assert "Traceback" not in capfd.readouterr().err


def test_a_dropped_producer_ends_its_thread(receiver: FakeReceiver) -> None:
    producer = make(receiver)
    handle = producer.send(b"x", id=1)
    del producer
    handle.result(WAIT_S)
    receiver.wait_for(lambda: receiver.count(Bye) == 1)


def test_handles_say_what_they_are(producer: Producer, receiver: FakeReceiver) -> None:
    receiver.hold_acks()
    handle, batch = producer.send(b"x", id=1), producer.send_batch([b"y"], ids=[2])
    with pytest.raises(DeadlineExceeded):
        handle.result(0)
    assert "waiting" in repr(handle)
    assert "waiting" in repr(batch)
    receiver.release_acks()
    producer.flush(WAIT_S)
    assert "acknowledged" in repr(handle)
    assert "done" in repr(batch)
    assert "2 of 2" in repr(producer)
