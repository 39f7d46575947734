"""Consumers on real links, against brokers and data servers that do what the test says."""

import asyncio
import contextlib
import gc
import inspect
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo import AsyncConsumer, Consumer
from asapo.errors import (
    ConnectFailed,
    DamagedFile,
    DeadlineExceeded,
    Gap,
    GroupMismatch,
    LocalProtocolError,
    NothingYet,
    StorageError,
    StreamFinished,
    TokenRejected,
    UnknownStream,
    WrongInput,
    to_wire,
)
from asapo.hostinfo import boot_id
from asapo.storage.tier import Tier, read_tier_uuid
from asapo.testing.fake_broker import FakeBroker, FakeStream, row
from asapo.testing.fake_data_server import FakeDataServer
from asapo.wire.events import Acknowledge, Beat, Bye, Fetch, GetById, GetLast, GetNext, Goodbye, Hello, Nack

SILENT_URL = "tcp://127.0.0.1:9"
"""The discard port: nobody listens there."""


@pytest.fixture
def broker() -> Any:
    with FakeBroker() as running:
        yield running


@pytest.fixture
def consumer(broker: FakeBroker) -> Any:
    with Consumer(broker.url, beamtime="bt", source="det") as made:
        yield made


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


def end_with(stream: FakeStream, message_id: int) -> None:
    stream.rows.append(row(message_id))
    stream.finished = True


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


# -- payloads ----------------------------------------------------------------------------------------------------------

FRAME = np.arange(64, dtype="<u2").reshape(8, 8)


@pytest.fixture
def frames(broker: FakeBroker, tmp_path: Path) -> Any:
    """A stream with one frame, in a segment on this host and at a data server."""
    Tier.open(tmp_path)
    path = tmp_path / "bt" / "det" / "default" / "r1-1-000001.seg"
    path.parent.mkdir(parents=True)
    path.write_bytes(FRAME.tobytes())
    with FakeDataServer() as server:
        server.payloads["det", "default", 1] = FRAME.tobytes()
        broker.segments[1] = [str(path), "r1", boot_id(), read_tier_uuid(tmp_path), server.url]
        broker.formats[1] = ["<u2", [8, 8], "raw"]
        broker.stream().rows.append(row(1, size=FRAME.nbytes, format=1))
        yield server


@pytest.mark.needs_linux
def test_mapped_and_fetched_payloads_are_the_same_bytes(broker: FakeBroker, frames: FakeDataServer) -> None:
    with Consumer(broker.url, beamtime="bt", source="det", access="map") as near:
        mapped = near.get_last()
        assert np.array_equal(mapped.data, FRAME)
        assert frames.heard == []
    with Consumer(broker.url, beamtime="bt", source="det", access="fetch") as far:
        fetched = far.get_last()
        assert np.array_equal(fetched.data, FRAME)
        assert not fetched.data.flags.writeable
    assert [type(event) for event in frames.heard] == [Hello, Fetch]
    assert [event.role for event in frames.heard if isinstance(event, Hello)] == ["reader"]
    assert mapped.raw == fetched.raw
    assert mapped.data[7, 7] == 63  # views outlive their consumers


def test_another_host_fetches(broker: FakeBroker, frames: FakeDataServer, consumer: Consumer) -> None:
    broker.segments[1][2] = "another boot"
    assert np.array_equal(consumer.get_last().data, FRAME)
    assert len(frames.heard) == 2


def test_a_file_that_is_gone_is_fetched(broker: FakeBroker, frames: FakeDataServer, consumer: Consumer) -> None:
    os.unlink(broker.segments[1][0])
    assert np.array_equal(consumer.get_last().data, FRAME)


def test_what_the_data_server_refuses_is_raised(broker: FakeBroker, frames: FakeDataServer) -> None:
    frames.payloads["det", "default", 1] = DamagedFile("block 3 is bad", path="x", offset=3)
    with Consumer(broker.url, beamtime="bt", source="det", access="fetch") as consumer, pytest.raises(
        DamagedFile, match="block 3"
    ):  # fmt: skip
        _ = consumer.get_last().data


def test_a_payload_of_another_size_is_refused(broker: FakeBroker, frames: FakeDataServer) -> None:
    frames.payloads["det", "default", 1] = b"short"
    with Consumer(broker.url, beamtime="bt", source="det", access="fetch") as consumer, pytest.raises(
        DamagedFile, match="sent 5 bytes"
    ):  # fmt: skip
        _ = consumer.get_last().raw


def test_a_long_payload_comes_in_pieces(
    broker: FakeBroker, frames: FakeDataServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asapo_work.payload.PIECE_BYTES", 50)
    with Consumer(broker.url, beamtime="bt", source="det", access="fetch", verify=False) as consumer:
        message = consumer.get_last()
        assert np.array_equal(message.data, FRAME)
        assert not message.data.flags.writeable
        frames.payloads["det", "default", 1] = FRAME.tobytes()[:70]
        with pytest.raises(DamagedFile, match="sent 50 bytes of 70, expected 50 of 128"):
            _ = consumer.get_last().raw
    asked = [(event.offset, event.length) for event in frames.fetched()]
    assert asked == [(0, 50), (50, 50), (100, 28), (0, 50)]


def test_a_data_server_that_is_away_is_named(broker: FakeBroker, frames: FakeDataServer) -> None:
    broker.segments[1][4] = SILENT_URL
    with Consumer(broker.url, beamtime="bt", source="det", access="fetch", timeout_s=0.3) as consumer, pytest.raises(
        StorageError, match=r"r1-1-000001\.seg cannot be read here, and no data server answered"
    ):  # fmt: skip
        _ = consumer.get_last().raw


@pytest.mark.parametrize("known", ["", SILENT_URL])
def test_the_broker_is_asked_again_for_a_data_server_that_can_be_reached(
    broker: FakeBroker, frames: FakeDataServer, known: str
) -> None:
    there = broker.segments[1][4]
    broker.segments[1][4] = known
    with Consumer(broker.url, beamtime="bt", source="det", access="fetch") as consumer:
        message = consumer.get_last()
        broker.segments[1][4] = there  # the receiver has registered with a core that was just started
        assert np.array_equal(message.data, FRAME)
    assert broker.seen(GetById)


# -- asyncio -----------------------------------------------------------------------------------------------------------


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_both_consumers_have_the_same_calls() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert names(AsyncConsumer) - {"load"} == names(Consumer)
    for name in names(Consumer):
        sync, other = (inspect.signature(getattr(kind, name)).parameters for kind in (Consumer, AsyncConsumer))
        assert [str(one) for one in sync.values()] == [str(one) for one in other.values()], name


def test_an_async_consumer_lists_and_finds_as_the_other_does(broker: FakeBroker) -> None:
    broker.stream(n=3)

    async def ask() -> Any:
        async with AsyncConsumer(broker.url, beamtime="bt", source="det") as consumer:
            one, some = await consumer.get_by_id(2), await consumer.get_by_id([3, 1])
            return one.id, [message.id for message in some], await consumer.sources(), await consumer.receivers()

    with Consumer(broker.url, beamtime="bt", source="det") as consumer:
        assert run(ask()) == (2, [3, 1], consumer.sources(), consumer.receivers())
        assert consumer.sources() == ["det"]


def test_coroutines_wait_side_by_side(broker: FakeBroker) -> None:
    broker.stream(n=2)

    async def work() -> Any:
        async with AsyncConsumer(broker.url, beamtime="bt", source="det") as consumer:
            waiting = asyncio.create_task(consumer.get_next("g", stream="later"))
            assert (await consumer.get_last()).id == 2
            assert [m.id for m in await consumer.get_by_id([2, 1])] == [2, 1]
            assert [m.id for m in await consumer.query("", limit=1)] == [1]
            assert (await consumer.stream_info())["n_messages"] == 2
            assert len(await consumer.streams()) == 1
            await asyncio.to_thread(broker.stream, stream="later", n=1)
            message = await waiting
            await consumer.nack(message, group="g")
            message = await consumer.get_next("g", stream="later")
            await consumer.acknowledge(message, group="g")
            return message.attempt

    assert run(work()) == 2
    assert broker.streams["det", "later"].done["g"] == {1}


@pytest.mark.parametrize("batch", [None, 7])
def test_an_async_loop_sees_every_message_once_and_acknowledges_all(broker: FakeBroker, batch: Any) -> None:
    stream = broker.stream(n=100, finished=True)

    async def work() -> Any:
        seen = []
        async with AsyncConsumer(broker.url, beamtime="bt", source="det") as consumer:
            async for item in consumer.stream(group="g", batch=batch):
                seen += [item.id] if batch is None else [message.id for message in item]
        return seen

    assert run(work()) == list(range(1, 101))
    assert stream.done["g"] == set(range(1, 101))


def test_an_async_loop_reports_what_is_done_while_it_waits_for_more(broker: FakeBroker) -> None:
    stream = broker.stream(n=3)

    async def work() -> Any:
        async with AsyncConsumer(broker.url, beamtime="bt", source="det") as consumer:

            async def read() -> list[int]:
                return [message.id async for message in consumer.stream(group="g")]

            loop = asyncio.create_task(read())
            await asyncio.to_thread(broker.wait_until, lambda: stream.done.get("g") == {1, 2, 3})
            broker.change(lambda: end_with(stream, 4))
            return await loop

    assert run(work()) == [1, 2, 3, 4]
    assert stream.done["g"] == {1, 2, 3, 4}


def test_an_async_loop_left_early_hands_back(broker: FakeBroker) -> None:
    stream = broker.stream(n=40)

    async def work() -> Any:
        async with AsyncConsumer(broker.url, beamtime="bt", source="det") as consumer:
            async with contextlib.aclosing(consumer.stream(group="g")) as loop:
                async for message in loop:
                    if message.id == 3:
                        break
            await consumer.get_last()

    run(work())
    broker.wait_until(lambda: stream.given["g"] == {1, 2})
    assert stream.done["g"] == {1, 2}


def test_a_cancelled_wait_gives_back_what_comes_too_late(broker: FakeBroker) -> None:
    stream = broker.stream()

    async def work() -> Any:
        async with AsyncConsumer(broker.url, beamtime="bt", source="det") as consumer:
            waiting = asyncio.create_task(consumer.get_next("g", timeout_s=20))
            await asyncio.to_thread(broker.wait_until, lambda: bool([r for r in broker.requests if type(r) is GetNext]))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            broker.change(lambda: stream.rows.append(row(1)))
            await asyncio.to_thread(broker.wait_until, lambda: bool([r for r in broker.requests if type(r) is Nack]))

    run(work())
    assert stream.given["g"] == set()


def test_an_async_consumer_says_when_nobody_is_there() -> None:
    async def work() -> Any:
        async with AsyncConsumer(SILENT_URL, beamtime="bt", source="det", timeout_s=0.2) as consumer:
            with pytest.raises(ConnectFailed):
                await consumer.get_last()

    run(work())


def test_an_async_consumer_loads_a_payload_off_the_loop(broker: FakeBroker, frames: FakeDataServer) -> None:
    async def work() -> Any:
        async with AsyncConsumer(broker.url, beamtime="bt", source="det", access="fetch") as consumer:
            message = await consumer.load(await consumer.get_last())
            return message.data

    assert np.array_equal(run(work()), FRAME)


def test_acknowledgements_outlive_a_lost_link(broker: FakeBroker, consumer: Consumer) -> None:
    stream = broker.stream(n=3)
    consumer.get_next("g", n=3)
    broker.cut_links()
    consumer.acknowledge([1, 2, 3], group="g")
    assert stream.done["g"] == {1, 2, 3}
    assert len(broker.seen(Acknowledge)) >= 1


def test_payloads_are_asked_for_ahead_once_they_are_read_in_order(
    broker: FakeBroker, frames: FakeDataServer, consumer: Consumer
) -> None:
    broker.segments[1][2] = "another boot"
    for message_id in range(1, 201):
        frames.payloads["det", "default", message_id] = bytes([message_id]) * 100
    broker.streams["det", "default"].rows[:] = [row(i, size=100) for i in range(1, 201)]
    messages = consumer.get_next("g", n=200)
    assert messages[0].raw[0] == 1
    assert len(frames.fetched()) == 1
    assert [message.raw[0] for message in messages] == list(range(1, 201))
    assert messages[150].raw[0] == 151
    assert [fetch.message_id for fetch in frames.fetched()] == list(range(1, 201))


def test_payloads_may_be_read_in_any_order(broker: FakeBroker, frames: FakeDataServer, consumer: Consumer) -> None:
    broker.segments[1][2] = "another boot"
    for message_id in range(1, 51):
        frames.payloads["det", "default", message_id] = bytes([message_id]) * 10
    broker.streams["det", "default"].rows[:] = [row(i, size=10) for i in range(1, 51)]
    messages = consumer.get_next("g", n=50)
    order = [0, 1, 2, 40, 41, 7, 8, 9, 3, 49, 0]
    assert [messages[i].raw[0] for i in order] == [i + 1 for i in order]
