"""Ways of reading over real services: incomplete datasets, chunks, live view, ranges, gaps, what stages tell."""

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest

from asapo import AsyncConsumer, Consumer, Producer
from asapo.cli import main
from asapo.errors import GroupMismatch, NothingYet, PartialDataset, StreamFinished, WrongInput
from asapo.testing.launch import LocalServices
from asapo_work import Message, Result, Stage
from tests.e2e.ledger import BEAMTIME, PATIENCE_S, SOURCE, consumer_of, producer_of, wait_until

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]


def send_part(producer: Producer, stream: str, message_id: int, part: int, size: int = 3) -> None:
    data = bytes([message_id, part])
    producer.send(data, id=message_id, stream=stream, substream=part, dataset_size=size).result()


def ids(messages: Any) -> list[int]:
    return [message.id for message in messages]


# -- datasets --------------------------------------------------------------------------------------------------------


def test_an_incomplete_dataset_is_given_in_its_time_marked_and_read_whole_by_id_later(
    services: LocalServices, producer: Producer, consumer: Consumer
) -> None:
    stream = "timeout"
    with producer_of(services) as other:
        send_part(producer, stream, 1, 1)
        send_part(other, stream, 1, 3)
        began_s = time.monotonic()
        found = consumer.get_next("g", stream=stream, dataset_timeout_s=1.5, timeout_s=PATIENCE_S)
        assert time.monotonic() - began_s > 1.0
        assert (found.id, found.complete, found.missing_parts) == (1, False, (2,))
        assert [bytes(part.raw) for part in found.parts] == [b"\x01\x01", b"\x01\x03"]
        consumer.acknowledge(found, group="g")
        with pytest.raises(PartialDataset):
            consumer.get_by_id(1, stream=stream)
        with pytest.raises(NothingYet):
            consumer.get_last(stream=stream)
        assert len(consumer.get_by_id(1, stream=stream, min_parts=2).parts) == 2
        send_part(other, stream, 1, 2)
        whole = consumer.get_by_id(1, stream=stream)
        assert (whole.complete, whole.missing_parts, len(whole.parts)) == (True, (), 3)
        assert consumer.get_last(stream=stream).id == 1
        producer.finish_stream(stream)
    with pytest.raises(StreamFinished):  # it was given once
        consumer.get_next("g", stream=stream, dataset_timeout_s=1.5, timeout_s=PATIENCE_S)


def test_min_parts_goes_on_without_the_others_and_late_parts_are_counted(
    services: LocalServices, producer: Producer, consumer: Consumer
) -> None:
    stream = "min-parts"
    for message_id in (1, 2, 3):
        send_part(producer, stream, message_id, 1)
        send_part(producer, stream, message_id, 2)
    found = consumer.get_next("g", n=3, stream=stream, min_parts=2, timeout_s=PATIENCE_S)
    assert [(message.id, len(message.parts)) for message in found] == [(1, 2), (2, 2), (3, 2)]
    consumer.acknowledge(found, group="g")
    before = late_parts(services)
    send_part(producer, stream, 2, 3)
    with pytest.raises(NothingYet):
        consumer.get_next("g", stream=stream, min_parts=2, timeout_s=0.3)
    assert late_parts(services) == before + 1
    with pytest.raises(GroupMismatch, match="min_parts 2"):
        consumer.get_next("g", stream=stream, timeout_s=1)
    with pytest.raises(WrongInput, match="ordered=True"):
        consumer.get_next("h", stream=stream, min_parts=2, ordered=False, timeout_s=1)


def late_parts(services: LocalServices) -> int:
    from asapo.ask import Asker
    from asapo.wire.events import Describe

    asker = Asker(services.native)
    try:
        answer: Any = asker.ask(Describe, source="", stream="")
        return int(answer["late_parts"])
    finally:
        asker.close()


# -- chunks ----------------------------------------------------------------------------------------------------------


def test_workers_of_a_group_get_disjoint_chunks_and_those_of_a_dead_one_come_whole(
    services: LocalServices, producer: Producer, consumer: Consumer
) -> None:
    stream, n, size = "chunks", 103, 8
    with consumer_of(services) as doomed:
        for message_id in range(1, n + 1):
            producer.send(b"x", id=message_id, stream=stream)
        producer.finish_stream(stream)
        lost = doomed.get_next("g", n=size, aligned=True, stream=stream, timeout_s=PATIENCE_S)
        doomed.acknowledge(lost[:3], group="g", stream=stream)
    found: list[list[int]] = []
    lock = threading.Lock()

    def work() -> None:
        with consumer_of(services) as mine:
            for chunk in mine.stream(group="g", stream=stream, batch=size, aligned=True, timeout_s=PATIENCE_S):
                with lock:
                    found.append(ids(chunk))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE_S)
    assert sorted(found) == [list(range(at, min(at + size, n + 1))) for at in range(1, n + 1, size)]
    with pytest.raises(WrongInput, match="`n=` or `batch=`"):
        consumer.get_next("g", stream=stream, aligned=True)


# -- live view -------------------------------------------------------------------------------------------------------


def test_a_live_view_shows_the_newest_only_and_goes_on_with_the_next_stream(
    services: LocalServices, producer: Producer, consumer: Consumer
) -> None:
    shown: list[tuple[str, int, float]] = []
    for message_id in range(1, 101):
        producer.send(b"x", id=message_id, stream="live-1")
    producer.flush()
    view = consumer.live(stream="live-1", rate_hz=20, timeout_s=PATIENCE_S)
    assert next(view).id == 100

    def watch() -> None:
        shown.extend((message.stream, message.id, time.monotonic()) for message in view)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for message_id in range(101, 301):
        producer.send(b"x", id=message_id, stream="live-1").result()
    producer.finish_stream("live-1", next_stream="live-2")
    producer.send(b"x", id=7, stream="live-2").result()
    producer.finish_stream("live-2")
    watcher.join(PATIENCE_S)
    seen = [(stream, message_id) for stream, message_id, _ in shown]
    assert seen == sorted(seen)
    assert seen[-2:] == [("live-1", 300), ("live-2", 7)]
    times = [time_s for _, _, time_s in shown]
    assert min(b - a for a, b in zip(times, times[1:], strict=False)) > 0.04
    # Groups are not touched by it.
    assert len(list(consumer.stream(group="all", stream="live-1", follow=None, timeout_s=PATIENCE_S))) == 300


def test_a_live_view_turns_to_the_newest_stream_of_its_source(services: LocalServices) -> None:
    with (
        Producer(services.native, beamtime=BEAMTIME, source="cam") as producer,
        Consumer(services.native, beamtime=BEAMTIME, source="cam") as consumer,
    ):
        producer.send(b"x", id=1, stream="a").result()
        view = consumer.live(stream="a", rate_hz=50, follow="source", timeout_s=PATIENCE_S)
        assert next(view).id == 1
        for name in ("b", "c"):  # the first was never finished
            producer.send(b"x", id=5, stream=name).result()
        assert next(view).stream == "c"


def test_a_view_of_nothing_new_ends_in_time(producer: Producer, consumer: Consumer) -> None:
    producer.send(b"x", id=1, stream="still").result()
    view = consumer.live(stream="still", timeout_s=0.3)
    assert next(view).id == 1
    with pytest.raises(NothingYet, match="nothing new in det/still"):
        next(view)


# -- the same, async -------------------------------------------------------------------------------------------------


def test_the_async_consumer_reads_in_all_these_ways(services: LocalServices, producer: Producer) -> None:
    stream = "async"
    for message_id in (1, 2, 4):
        for part in (1, 2)[: 2 if message_id != 2 else 1]:
            send_part(producer, stream, message_id, part, size=2)
    producer.finish_stream(stream)

    async def read() -> None:
        async with AsyncConsumer(services.native, beamtime=BEAMTIME, source=SOURCE) as consumer:
            reading: dict[str, Any] = {"stream": stream, "timeout_s": PATIENCE_S}
            chunks = consumer.stream(group="g", batch=2, aligned=True, dataset_timeout_s=0.2, **reading)
            async with contextlib.aclosing(chunks):
                assert [[(m.id, m.complete) for m in chunk] async for chunk in chunks] == [
                    [(1, True), (2, False)],
                    [(4, True)],
                ]
            first = await consumer.get_next("h", n=3, min_parts=1, **reading)
            assert ids(first) == [1, 2, 4]
            assert [message.id async for message in consumer.messages(first=2, stream=stream)] == [2, 4]
            assert (await consumer.get_by_id(2, stream=stream, min_parts=1)).missing_parts == (2,)
            gaps = await consumer.gaps(stream=stream)
            assert (gaps.missing, gaps.incomplete, gaps.finished) == (((3, 3),), ((2, 1, 2),), True)
            async with contextlib.aclosing(consumer.live(**reading)) as view:
                assert [message.id async for message in view] == [4]
            assert [len(page) async for page in consumer.query_pages("", stream=stream, page=2)] == [1, 1, 1]
            assert await consumer.stages() == []

    asyncio.run(read())


# -- gaps ------------------------------------------------------------------------------------------------------------


def test_gaps_tell_what_is_missing_from_what_may_still_come(
    services: LocalServices, producer: Producer, consumer: Consumer
) -> None:
    stream = "gaps"
    for message_id in (1, 2, 5, 6, 9):
        producer.send(b"x", id=message_id, stream=stream).result()
    wait_until(lambda: consumer.stream_info(stream=stream)["closed_below"] == 10, "the producer closed its ids")
    found = consumer.gaps(stream=stream)
    assert (found.missing, found.awaited, found.n_missing, found.whole) == (((3, 4), (7, 8)), (), 4, False)
    with producer_of(services) as other:
        other.send(b"x", id=12, stream=stream).result()
        producer.send(b"x", id=3, stream=stream).result()
        producer.send(b"x", id=14, stream=stream).result()
    producer.finish_stream(stream)
    found = consumer.gaps(stream=stream)
    assert found.missing == ((4, 4), (7, 8), (10, 11), (13, 13))
    assert (found.id_max, found.last_id, found.finished, found.n_messages) == (14, 14, True, 8)


# -- what stages tell ------------------------------------------------------------------------------------------------


def test_what_a_stage_does_is_seen_from_outside(
    services: LocalServices, producer: Producer, consumer: Consumer, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = "staged"
    for message_id in range(1, 31):
        producer.send(bytes(100), id=message_id, stream=stream)
    producer.flush()
    seen = threading.Event()

    def process(messages: list[Message]) -> list[Result | None]:
        if messages[-1].id == 30:
            seen.wait(PATIENCE_S)
        return [Result(meta={"n": one.id}) if one.id % 2 else None for one in messages]

    with (
        Consumer(services.native, beamtime=BEAMTIME, source=SOURCE, name="worker 1") as mine,
        Producer(services.native, beamtime=BEAMTIME, source="results") as results,
    ):
        settings: dict[str, Any] = {"batch": 10, "aligned": True, "follow": None, "timeout_s": PATIENCE_S}
        stage = Stage(mine, results, process, group="odd", stream=stream, **settings)
        runner = threading.Thread(target=stage.run)
        runner.start()
        told = wait_until(
            lambda: [one for one in consumer.stages() if one["stream"] == stream and one["taken"] == 20],
            "the stage's work is told",
        )
        assert len(told) == 1
        facts = {key: told[0][key] for key in ("name", "group", "published", "bytes", "errors", "running")}
        assert facts == {
            "name": "worker 1", "group": "odd", "published": 10, "bytes": 2000, "errors": 0, "running": True,
        }  # fmt: skip
        assert main(["stages", services.native, BEAMTIME]) == 0
        printed = capsys.readouterr().out
        assert "bt/det/staged" in printed
        assert "worker 1" in printed
        seen.set()
        producer.finish_stream(stream)
        runner.join(PATIENCE_S)
    assert stage.counts.taken == 30
    wait_until(lambda: not [one for one in consumer.stages() if one["stream"] == stream], "the stage is gone")
