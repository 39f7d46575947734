"""Consumers get payloads, mapped and fetched; and the same calls with asyncio."""

import asyncio
import contextlib
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo import AsyncConsumer, Consumer
from asapo.errors import (
    ConnectFailed,
    DamagedFile,
    StorageError,
)
from asapo.hostinfo import boot_id
from asapo.storage.tier import Tier, read_tier_uuid
from asapo.testing.fake_broker import FakeBroker, row
from asapo.testing.fake_data_server import FakeDataServer
from asapo.wire.events import Acknowledge, Fetch, GetById, GetNext, Hello, Nack
from tests.integration.scripted import SILENT_URL, end_with

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
