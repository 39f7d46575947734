"""What readers get: the same bytes by every way, datasets, levels, ends of streams, the four answers."""

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from asapo import Consumer, Producer
from asapo.errors import (
    Gap,
    GroupMismatch,
    NothingYet,
    PartialDataset,
    StorageError,
    StreamFinished,
    UnknownStream,
    WrongInput,
)
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import PATIENCE_S, Ledger, OrderedReader, consumer_of, producer_of, sparse_ids, wait_until

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]

DTYPES = ["|u1", "<u2", ">i4", "<f4", ">f8", "<c16", "|b1"]


def _array(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(nbytes).integers(0, 2 if dtype == "|b1" else 256, nbytes, np.uint8)
    return raw.view(dtype).reshape(shape)


# -- bytes -----------------------------------------------------------------------------------------------------------


def test_mapped_and_fetched_payloads_are_the_same_arrays(services: LocalServices, producer: Producer) -> None:
    stream = "arrays"
    shapes = [(3,), (2, 5), (4, 512, 1024), (1, 1, 1, 7), (0, 4), ()]
    sent = [_array(dtype, shape) for dtype, shape in itertools.product(DTYPES, shapes[:2])]
    sent += [_array("<u2", shape) for shape in shapes[2:]]
    for message_id, array in enumerate(sent, 1):
        producer.send(array, id=message_id, stream=stream, meta={"n": message_id})
    producer.finish_stream(stream)
    with consumer_of(services, access="map") as near, consumer_of(services, access="fetch") as far:
        for group, consumer in (("near", near), ("far", far)):
            found = list(consumer.stream(group=group, stream=stream, timeout_s=PATIENCE_S))
            assert len(found) == len(sent)
            for message, array in zip(found, sent, strict=True):
                assert (message.data.dtype, message.data.shape) == (array.dtype, array.shape)
                assert message.data.tobytes() == array.tobytes()
                assert not message.data.flags.writeable


def test_batches_and_all_kinds_of_buffers_come_back_bit_for_bit(
    producer: Producer, consumer: Consumer, tmp_path: Any
) -> None:
    stream = "buffers"
    frames = _array("<u2", (7, 33, 65))
    file = tmp_path / "frame"
    file.write_bytes(b"from a file" * 1000)
    filled = producer.get_buffer(shape=(100, 100), dtype="<f4")
    filled[...] = 3.25
    producer.send_batch(frames, ids=range(1, 8), metas=[{"n": n} for n in range(7)], stream=stream)
    producer.send_batch([b"a", b"bc", b""], ids=[10, 20, 30], stream=stream)
    producer.send(bytearray(b"bytearray"), id=40, stream=stream)
    producer.send(memoryview(b"memoryview"), id=50, stream=stream, copy=True)
    producer.send(file, id=60, stream=stream)
    producer.send(filled, id=70, stream=stream)
    producer.send(frames[:, ::2, ::3], id=80, stream=stream)
    producer.send(id=90, stream=stream, meta={"only": "metadata"})
    producer.finish_stream(stream)
    found = {message.id: message for message in consumer.stream(group="g", stream=stream, timeout_s=PATIENCE_S)}
    for n in range(7):
        np.testing.assert_array_equal(found[n + 1].data, frames[n])
        assert found[n + 1].meta == {"n": n}
    plain = {10: b"a", 20: b"bc", 30: b"", 40: b"bytearray", 50: b"memoryview", 60: b"from a file" * 1000, 90: b""}
    assert {message_id: bytes(found[message_id].raw) for message_id in plain} == plain
    assert (found[70].data == 3.25).all()
    np.testing.assert_array_equal(found[80].data, frames[:, ::2, ::3])
    assert found[90].meta == {"only": "metadata"}


def test_level_memory_is_delivered_from_the_right_receiver_and_writes_no_payload(services: LocalServices) -> None:
    place = {"source": "live"}
    addresses = [services.ready(name)["addresses"][0] for name in ("r1", "r2")]
    sent = {}
    for number, address in enumerate(addresses):  # both memories begin alike
        with producer_of(services, level="memory", receivers=[address], **place) as producer:
            for message_id in (2 + number, 4 + number, 6 + number):
                sent[message_id] = b"%d live" % message_id
                producer.send(sent[message_id], id=message_id).result(PATIENCE_S)
    with producer_of(services, **place) as producer:
        producer.finish_stream()
    with consumer_of(services, **place) as consumer, consumer_of(services, access="map", **place) as mapped:
        found = list(consumer.stream(group="g", timeout_s=PATIENCE_S))
        assert {message.id: bytes(message.raw) for message in found} == sent
        with pytest.raises(StorageError):
            mapped.get_by_id(2).raw  # noqa: B018
    assert not [path for path in services.data_dir.glob("beamline/bt/live/**/*.seg") if path.stat().st_size]


def test_fetched_payloads_are_those_of_their_beamtime(services: LocalServices) -> None:
    address = services.ready("r1")["addresses"][0]
    for beamtime in ("one", "two"):  # their segments have the same numbers, and payloads lie at the same places
        with producer_of(services, beamtime=beamtime, receivers=[address]) as producer:
            producer.send(f"of {beamtime}".encode(), id=1).result(PATIENCE_S)
    for beamtime in ("one", "two"):
        with consumer_of(services, beamtime=beamtime, access="fetch", verify=False) as consumer:
            assert bytes(consumer.get_last().raw) == f"of {beamtime}".encode()


# -- datasets --------------------------------------------------------------------------------------------------------


def test_datasets_are_delivered_when_complete_and_once(services: LocalServices, consumer: Consumer) -> None:
    stream, size, ids = "modules", 3, (5, 8, 13)
    with producer_of(services) as one, producer_of(services) as other:
        # While the second module is known to be sending, its missing parts are waited for and not passed over.
        other.send(b"2/2", id=2, stream=stream, substream=2, dataset_size=size).result(PATIENCE_S)
        for message_id in (2, *ids):
            for part in (1, 3):
                one.send(b"%d/%d" % (message_id, part), id=message_id, stream=stream, substream=part, dataset_size=size)
        one.flush(PATIENCE_S)
        assert consumer.get_next("g", stream=stream, timeout_s=PATIENCE_S).id == 2
        with pytest.raises(NothingYet):
            consumer.get_next("g", stream=stream, timeout_s=0.2)
        with pytest.raises(PartialDataset) as partial:
            consumer.get_by_id(8, stream=stream)
        assert (partial.value.have, partial.value.dataset_size) == (2, 3)
        assert consumer.get_last(stream=stream).id == 2
        for message_id in ids:
            other.send(b"%d/2" % message_id, id=message_id, stream=stream, substream=2, dataset_size=size)
        other.flush(PATIENCE_S)
        one.finish_stream(stream)
        found = list(consumer.stream(group="g", stream=stream, timeout_s=PATIENCE_S))
        assert [(message.id, message.late) for message in found] == [(one_id, False) for one_id in ids]
        for message in [*found, consumer.get_last(stream=stream), consumer.get_by_id(8, stream=stream)]:
            assert [part.substream for part in message.parts] == [1, 2, 3]
            assert [bytes(part.raw) for part in message.parts] == [b"%d/%d" % (message.id, n) for n in (1, 2, 3)]
        assert consumer.stream_info(stream=stream)["n_messages"] == (1 + len(ids)) * size


# -- streams ---------------------------------------------------------------------------------------------------------


def test_readers_follow_the_next_stream(producer: Producer, consumer: Consumer) -> None:
    got: list[tuple[str, int]] = []

    def read() -> None:
        for message in consumer.stream(group="g", stream="scan 1", timeout_s=PATIENCE_S):
            got.append((message.stream, message.id))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()  # before the first stream exists
    expected = []
    for number in range(1, 5):
        for message_id in (1, 5, 7):
            producer.send(b"x", id=message_id, stream=f"scan {number}")
            expected.append((f"scan {number}", message_id))
        producer.finish_stream(f"scan {number}", next_stream=f"scan {number + 1}" if number < 4 else "")
    reader.join(PATIENCE_S)
    assert got == expected


def test_finishing_again_is_fine_and_sending_behind_the_end_is_refused(services: LocalServices) -> None:
    with producer_of(services) as producer, producer_of(services) as other:
        producer.send(b"x", id=4, stream="ended")
        producer.finish_stream("ended", next_stream="on")
        producer.finish_stream("ended", next_stream="on")
        with pytest.raises(StreamFinished):
            producer.send(b"y", id=5, stream="ended")
        late = other.send(b"y", id=5, stream="ended")
        assert isinstance(late.exception(PATIENCE_S), StreamFinished)
        assert other.send(b"below", id=3, stream="ended").result(PATIENCE_S) == 3
        with pytest.raises(WrongInput):
            other.finish_stream("ended", next_stream="elsewhere")


def test_the_four_answers(services: LocalServices, producer: Producer, consumer: Consumer) -> None:
    def code(call: Any) -> tuple[type, dict[str, Any]]:
        with pytest.raises((NothingYet, StreamFinished, UnknownStream, Gap)) as answer:
            call()
        return type(answer.value), answer.value.fields

    assert code(lambda: consumer.get_next("g", stream="answers", timeout_s=0))[0] is UnknownStream
    assert code(lambda: consumer.get_last(stream="answers"))[0] is UnknownStream
    producer.send(b"x", id=2, stream="answers").result(PATIENCE_S)
    producer.send(b"x", id=5, stream="answers").result(PATIENCE_S)
    wait_until(lambda: consumer.stream_info(stream="answers")["closed_below"] == 6, "all ids below 6 are settled")
    assert [m.id for m in consumer.get_next("g", n=10, stream="answers")] == [2, 5]
    assert code(lambda: consumer.get_next("g", stream="answers", timeout_s=0.1)) == (NothingYet, {"id_max": 5})
    assert code(lambda: consumer.get_by_id(3, stream="answers"))[0] is Gap
    assert code(lambda: consumer.get_by_id(9, stream="answers"))[0] is NothingYet
    producer.finish_stream("answers", next_stream="more")
    consumer.acknowledge([2, 5], group="g", stream="answers")
    kind, fields = code(lambda: consumer.get_next("g", stream="answers"))
    assert (kind, fields["id_max"], fields["next_stream"]) == (StreamFinished, 5, "more")
    assert code(lambda: consumer.get_by_id(9, stream="answers"))[0] is StreamFinished
    assert code(lambda: consumer.get_by_id(3, stream="answers"))[0] is Gap


def test_a_reader_waits_for_a_stream_that_does_not_exist_yet(services: LocalServices, consumer: Consumer) -> None:
    found: list[Any] = []
    waiting = threading.Thread(
        target=lambda: found.append(consumer.get_next("g", stream="dawn", timeout_s=PATIENCE_S)), daemon=True
    )
    waiting.start()
    with pytest.raises(UnknownStream):
        consumer.get_next("g2", stream="dawn", timeout_s=0.3)
    with producer_of(services) as producer:
        producer.send(b"first light", id=77, stream="dawn").result(PATIENCE_S)
        waiting.join(PATIENCE_S)
    assert [(message.id, bytes(message.raw)) for message in found] == [(77, b"first light")]


def test_queries_select_and_order(producer: Producer, consumer: Consumer) -> None:
    for message_id in range(1, 51):
        meta = {"score": message_id % 10 / 10, "detector": {"name": "ab"[message_id % 2]}, "n": message_id}
        producer.send(b"x", id=message_id, stream="queried", meta=meta)
    producer.flush(PATIENCE_S)

    def ids(text: str, **options: Any) -> list[int]:
        return [message.id for message in consumer.query(text, stream="queried", **options)]

    assert ids("meta.score > 0.75 AND meta.detector.name = 'a'") == [8, 18, 28, 38, 48]
    assert ids("NOT (meta.n <= 45) OR meta.n = 3") == [3, 46, 47, 48, 49, 50]
    assert ids("meta.score >= 0.9 ORDER BY meta.n DESC LIMIT 2") == [49, 39]
    assert ids("meta.missing = 1") == []
    assert ids("meta.n > 0", limit=7) == [1, 2, 3, 4, 5, 6, 7]


def test_results_lead_back_to_their_origin(services: LocalServices, producer: Producer, consumer: Consumer) -> None:
    for message_id in (3, 6, 9):
        producer.send(b"raw%d" % message_id, id=message_id, stream="raw")
    producer.finish_stream("raw")
    with producer_of(services, source="scores") as scores:
        for message in consumer.stream(group="g", stream="raw", timeout_s=PATIENCE_S):
            scores.send(id=message.id, stream="raw", meta={"score": message.id}, origin=message)
        scores.flush(PATIENCE_S)
    best = consumer.query("meta.score > 5", stream="raw", source="scores", resolve="origin")
    assert [(message.source, bytes(message.raw)) for message in best] == [("det", b"raw6"), ("det", b"raw9")]


# -- groups and order ------------------------------------------------------------------------------------------------


def test_two_producers_with_interleaved_sparse_ids_are_read_in_order(services: LocalServices) -> None:
    ledger = Ledger("interleaved")
    ids = list(itertools.islice(sparse_ids(3), 600))
    addresses = [services.ready(name)["addresses"][0] for name in ("r1", "r2")]
    with producer_of(services, receivers=addresses[:1]) as one, producer_of(services, receivers=addresses[1:]) as other:
        ledger.send(other, ids[1]).result(PATIENCE_S)
        ledger.send(one, ids[0]).result(PATIENCE_S)  # now both sessions are known
        reader = OrderedReader(services, ledger)
        reader.start()

        def send(producer: Producer, some: list[int]) -> None:
            for message_id in some:
                ledger.send(producer, message_id)

        # Each sends to its own end; the slower one holds the reader back, never the other way round.
        thread = threading.Thread(target=send, args=(one, ids[2::2]), daemon=True)
        thread.start()
        send(other, ids[3::2])
        thread.join(PATIENCE_S)
        one.flush(PATIENCE_S)
        other.finish_stream(ledger.stream)
        one.close()
        assert reader.finish() == ids == sorted(ledger.acked)
    assert ledger.check_all(services) == ids


def test_groups_are_independent_and_keep_their_filter(producer: Producer, consumer: Consumer) -> None:
    for message_id in range(1, 21):
        producer.send(b"x", id=message_id, stream="grouped", meta={"even": message_id % 2 == 0})
    producer.finish_stream("grouped")
    first = [m.id for m in consumer.stream(group="all", stream="grouped", timeout_s=PATIENCE_S)]
    second = [m.id for m in consumer.stream(group="unordered", stream="grouped", ordered=False, timeout_s=PATIENCE_S)]
    even = [
        m.id for m in consumer.stream(group="even", stream="grouped", where="meta.even = true", timeout_s=PATIENCE_S)
    ]
    assert first == sorted(second) == list(range(1, 21))
    assert even == list(range(2, 21, 2))
    with pytest.raises(GroupMismatch):
        consumer.get_next("even", stream="grouped", where="meta.even = false")
    with pytest.raises(GroupMismatch):
        consumer.get_next("all", stream="grouped", ordered=False)
    with pytest.raises(StreamFinished):
        consumer.get_next("all", stream="grouped")


def test_workers_of_one_group_share_without_overlap(services: LocalServices) -> None:
    ledger = Ledger("shared", sizes=(0, 100, 5000))
    shares: list[list[int]] = [[], [], []]

    def work(share: list[int]) -> None:
        with consumer_of(services) as consumer:
            for message in consumer.stream(group="g", stream=ledger.stream, timeout_s=PATIENCE_S):
                ledger.check_content(message.id, message.raw, "a worker")
                assert message.attempt == 1
                share.append(message.id)

    threads = [threading.Thread(target=work, args=(share,), daemon=True) for share in shares]
    for thread in threads:
        thread.start()
    with producer_of(services) as producer:
        for message_id in itertools.islice(sparse_ids(5), 1500):
            ledger.send(producer, message_id)
        producer.finish_stream(ledger.stream)
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    ledger.check_whole(itertools.chain(*shares), "the workers together")
    assert all(share == sorted(share) for share in shares)
    assert sum(map(bool, shares)) >= 2, "one worker got everything"


def test_ids_numbered_by_the_sdk_go_on_where_the_stream_ends(services: LocalServices, consumer: Consumer) -> None:
    for start in (1, 4):
        with producer_of(services) as producer:
            handles = [producer.send(b"x", stream="numbered") for _ in range(3)]
            assert [handle.result(PATIENCE_S) for handle in handles] == list(range(start, start + 3))
    assert consumer.stream_info(stream="numbered")["id_max"] == 6
