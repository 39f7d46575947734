"""Groups as such: dead letters, seek, listing, deletion; by consumers of all kinds and the command line."""

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asapo
from asapo import AsyncConsumer, Consumer, Producer
from asapo.cli import main
from asapo.errors import LeaseLost, StreamFinished, UnknownGroup, UnknownStream, WrongInput
from asapo.testing.launch import LocalServices
from asapo_work import DeadLetter, GroupInfo
from tests.e2e.ledger import PATIENCE_S, wait_until

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("groups"), session_timeout_s=2.0) as running:
        yield running


def fill(services: LocalServices, stream: str, ids: list[int]) -> None:
    """Send a finished stream whose message i was acquired in second i."""
    with Producer(services.native, beamtime="bt", source="det") as producer:
        for number in ids:
            producer.send(b"x", id=number, stream=stream, meta={"n": number}, acquired_ns=number * 10**9)
        producer.finish_stream(stream)


def connect(services: LocalServices, name: str = "w1") -> Consumer:
    return Consumer(services.native, beamtime="bt", source="det", timeout_s=PATIENCE_S, name=name)


class BrokenFrameError(Exception):
    """User code failed."""


def no_threes(number: int) -> None:
    if number == 3:
        raise BrokenFrameError(f"cannot do {number}")


def read(consumer: Consumer, stream: str, **settings: Any) -> list[int]:
    done = []
    for message in consumer.stream(group="g", stream=stream, max_attempts=2, timeout_s=PATIENCE_S, **settings):
        no_threes(message.id)
        done.append(message.id)
    return done


def letters(consumer: Consumer, stream: str, n: int = 1) -> list[DeadLetter]:
    """Return the dead letters, once there are so many; what explains them was sent before."""
    return list(wait_until(lambda: _enough(consumer.dead_letters("g", stream=stream), n), f"{n} dead letters"))


def _enough(found: list[DeadLetter], n: int) -> list[DeadLetter]:
    return found if len(found) >= n else []


def plain(services: LocalServices, stream: str) -> None:
    with connect(services) as consumer:
        read(consumer, stream)


def closing(services: LocalServices, stream: str) -> None:
    with connect(services) as consumer, contextlib.suppress(BrokenFrameError):
        settings: dict[str, Any] = {"group": "g", "stream": stream, "max_attempts": 2, "timeout_s": PATIENCE_S}
        with contextlib.closing(consumer.stream(**settings)) as messages:
            for message in messages:
                no_threes(message.id)
    raise BrokenFrameError


def kept_loop(services: LocalServices, stream: str) -> None:
    with connect(services) as consumer:
        messages = consumer.stream(group="g", stream=stream, max_attempts=2, timeout_s=PATIENCE_S)
        for message in messages:
            no_threes(message.id)


def by_hand(services: LocalServices, stream: str) -> None:
    with connect(services) as consumer:
        for _ in range(3):
            message = consumer.get_next("g", stream=stream, max_attempts=2)
            try:
                no_threes(message.id)
                consumer.acknowledge(message, group="g")
            except BrokenFrameError as exc:
                consumer.nack(message, group="g", reason=exc)
                raise


def asynchronous(services: LocalServices, stream: str) -> None:
    async def work() -> None:
        async with AsyncConsumer(services.native, beamtime="bt", source="det", name="w1") as consumer:
            async for message in consumer.stream(group="g", stream=stream, max_attempts=2, timeout_s=PATIENCE_S):
                no_threes(message.id)

    asyncio.run(work())


@pytest.mark.parametrize("worker", [plain, closing, kept_loop, by_hand, asynchronous], ids=lambda one: one.__name__)
def test_a_message_that_fails_too_often_is_listed_with_its_traceback(services: LocalServices, worker: Any) -> None:
    stream = f"fails-{worker.__name__}"
    fill(services, stream, [1, 2, 3, 4])
    for _ in range(2):
        with pytest.raises(BrokenFrameError):
            worker(services, stream)
    with connect(services, "w2") as consumer:
        found = wait_until(
            lambda: [one for one in consumer.dead_letters("g", stream=stream) if one.traceback], "the traceback"
        )
        assert [(one.id, one.attempts, one.worker) for one in found] == [(3, 2, "w1")]
        assert found[0].reason.endswith("BrokenFrameError: cannot do 3")
        assert "in no_threes\n" in found[0].traceback
        assert found[0].failed_ns > 10**18
        assert read(consumer, stream) in ([4], []), "the stream goes on without it"
        (group,) = consumer.groups(stream=stream)
        assert (group.lag, group.dead_letters) == (0, 1)


def test_dead_letters_are_given_again_or_dropped_and_outlive_the_broker(tmp_path: Path) -> None:
    with LocalServices(tmp_path) as services, connect(services) as consumer:
        fill(services, "s", [1, 3, 5, 7])
        for message in consumer.get_next("g", stream="s", n=4, max_attempts=1):
            consumer.nack(message, group="g", reason=f"no good: {message.id}")
        assert [one.reason for one in letters(consumer, "s", 4)] == [f"no good: {number}" for number in (1, 3, 5, 7)]
        wait_until(lambda: _count(tmp_path) == 4, "they are on disk")
        services.kill("broker")
        services.restart("broker")
        assert [one.id for one in consumer.dead_letters("g", stream="s")] == [1, 3, 5, 7]
        assert consumer.requeue_dead_letters("g", [5, 6], stream="s") == 1
        again = consumer.get_next("g", stream="s", max_attempts=1)
        assert (again.id, again.attempt) == (5, 1)
        consumer.acknowledge(again, group="g")
        assert consumer.drop_dead_letters("g", consumer.dead_letters("g", stream="s")[0], stream="s") == 1
        assert consumer.requeue_dead_letters("g", stream="s") == 2
        assert consumer.dead_letters("g", stream="s") == []
        found = consumer.get_next("g", stream="s", n=9, max_attempts=1)
        assert [message.id for message in found] == [3, 7]
        consumer.acknowledge(found, group="g")
        with pytest.raises(StreamFinished):
            consumer.get_next("g", stream="s", max_attempts=1)
        assert consumer.drop_dead_letters("g", stream="s") == 0


def _count(folder: Path) -> int:
    with contextlib.suppress(sqlite3.OperationalError):  # being made
        for store in folder.rglob("delivery.sqlite"):
            with contextlib.closing(sqlite3.connect(store)) as connection:
                return int(connection.execute("SELECT COUNT(*) FROM letter").fetchone()[0])
    return 0


@pytest.mark.parametrize("ordered", [True, False])
def test_a_group_goes_on_where_it_is_told(services: LocalServices, ordered: bool) -> None:
    stream = f"seek-{ordered}"
    fill(services, stream, [2, 4, 6, 8, 10])

    def rest(consumer: Consumer) -> list[int]:
        with contextlib.suppress(StreamFinished):
            found = consumer.get_next("g", n=9, stream=stream, ordered=ordered)
            consumer.acknowledge(found, group="g")
            return [message.id for message in found]
        return []

    with connect(services) as consumer, connect(services, "other") as other:
        assert rest(consumer) == [2, 4, 6, 8, 10]
        assert rest(consumer) == []
        for target, expected in (
            ({"to": "start"}, [2, 4, 6, 8, 10]), ({"to": "end"}, []), ({"id": 6}, [6, 8, 10]),
            ({"time_ns": 7 * 10**9}, [8, 10]), ({"time_ns": 11 * 10**9}, []), ({"fraction": 0.8}, [10]),
        ):  # fmt: skip
            consumer.seek("g", stream=stream, **target)
            assert rest(consumer) == expected, target
        consumer.seek("g", stream=stream, to="start")
        held = consumer.get_next("g", n=2, stream=stream, ordered=ordered)
        other.seek("g", stream=stream, id=4)
        with pytest.raises(LeaseLost) as lost:
            consumer.acknowledge(held, group="g")
        assert lost.value.message_ids == [2, 4]
        assert rest(other) == [4, 6, 8, 10]
        with pytest.raises(WrongInput, match="seek to id 12"):
            consumer.seek("g", stream=stream, id=12)
        with pytest.raises(WrongInput, match="exactly one"):
            consumer.seek("g", stream=stream, id=2, fraction=0.5)
        with pytest.raises(UnknownGroup, match="never read the stream"):
            consumer.seek("nobody", stream=stream, to="end")
        with pytest.raises(UnknownStream):
            consumer.seek("g", stream="nothing", to="end")


def test_a_reader_that_waits_gets_what_a_seek_brings(services: LocalServices) -> None:
    with Producer(services.native, beamtime="bt", source="det") as producer, connect(services) as consumer:
        for number in (1, 2):
            producer.send(b"x", id=number, stream="live").result()
        consumer.acknowledge(consumer.get_next("g", n=2, stream="live"), group="g")
        found: list[int] = []
        reader = threading.Thread(target=lambda: found.append(consumer.get_next("g", stream="live").id))
        reader.start()
        with connect(services) as other:
            wait_until(lambda: other.groups(stream="live")[0].workers == ("w1",), "the reader waits")
            other.seek("g", stream="live", id=2)
        reader.join(PATIENCE_S)
        assert found == [2]


def test_groups_tell_how_far_they_are(services: LocalServices) -> None:
    fill(services, "far", list(range(1, 11)))
    fill(services, "far2", [5, 10])
    with connect(services, "w1") as one, connect(services, "w2") as two:
        held = one.get_next("g", n=4, stream="far", max_attempts=1)
        one.acknowledge(held[1], group="g")
        one.nack(held[2], group="g", reason="bad")
        two.nack(two.get_next("h", stream="far"), group="h", delay_s=60)
        two.get_next("i", stream="far2", ordered=False, where="n > 1")
        g, h = two.groups(stream="far")
        assert (g.group, g.held, g.waiting, g.unread, g.lag) == ("g", 2, 0, 6, 8)
        assert (g.position, g.floor, g.dead_letters, g.workers) == (5, 0, 1, ("w1",))
        assert 0 < g.oldest_s < PATIENCE_S
        assert (h.group, h.held, h.waiting, h.unread, h.lag, h.failed, h.oldest_s) == ("h", 0, 1, 9, 10, 1, 0.0)
        (i,) = two.groups(stream="far2", source="det")
        assert i == GroupInfo(
            source="det", stream="far2", group="i", ordered=False, where="n > 1", position=2, floor=0, held=1,
            unread=1, lag=2, oldest_s=i.oldest_s, workers=("w2",),
        )  # fmt: skip
        names = [(entry.stream, entry.group) for entry in two.groups()]
        assert names == sorted(names)
        assert {("far", "g"), ("far", "h"), ("far2", "i")} <= set(names)
        with pytest.raises(WrongInput):
            Consumer(services.native, beamtime="bt").groups(stream="far")
    with connect(services) as later:
        assert [entry.held for entry in later.groups(stream="far")] == [0, 0]


def test_a_deleted_group_begins_anew_and_its_readers_are_told(services: LocalServices) -> None:
    with Producer(services.native, beamtime="bt", source="det") as producer, connect(services) as consumer:
        producer.send(b"x", id=1, stream="gone").result()
        held = consumer.get_next("g", stream="gone", max_attempts=1)
        consumer.nack(held, group="g")
        errors: list[Exception] = []

        def wait() -> None:
            try:
                consumer.get_next("g", stream="gone", max_attempts=1)
            except UnknownGroup as exc:
                errors.append(exc)

        reader = threading.Thread(target=wait)
        reader.start()
        with connect(services) as other:
            wait_until(lambda: other.groups(stream="gone")[0].workers == ("w1",), "the reader waits")
            other.delete_group("g", stream="gone")
            reader.join(PATIENCE_S)
            assert errors
            assert other.groups(stream="gone") == []
            with pytest.raises(UnknownGroup):
                other.dead_letters("g", stream="gone")
            with pytest.raises(UnknownGroup):
                other.delete_group("g", stream="gone")
        again = consumer.get_next("g", stream="gone", max_attempts=7)
        assert (again.id, again.attempt) == (1, 1)
        assert consumer.dead_letters("g", stream="gone") == []


def test_the_async_consumer_looks_after_groups_alike(services: LocalServices) -> None:
    fill(services, "async", [1, 2])

    async def work() -> None:
        async with AsyncConsumer(services.native, beamtime="bt", source="det", timeout_s=PATIENCE_S) as consumer:
            for message in await consumer.get_next("g", n=2, stream="async", max_attempts=1):
                await consumer.nack(message, group="g", reason="no")
            assert [one.id for one in await consumer.dead_letters("g", stream="async")] == [1, 2]
            assert await consumer.drop_dead_letters("g", 1, stream="async") == 1
            assert await consumer.requeue_dead_letters("g", stream="async") == 1
            assert await consumer.seek("g", stream="async", to="end") == 3
            (group,) = await consumer.groups(stream="async")
            assert (group.lag, group.dead_letters) == (0, 0)
            await consumer.delete_group("g", stream="async")
            assert await consumer.groups(stream="async") == []

    asyncio.run(work())


def test_an_offline_consumer_looks_after_groups_alike(services: LocalServices) -> None:
    fill(services, "offline", [1, 3, 5])
    folder = next(services.data_dir.rglob("bt"))
    with asapo.open(folder, source="det") as consumer:
        for message in consumer.get_next("g", n=2, stream="offline", max_attempts=1):
            consumer.nack(message, group="g", reason=BrokenFrameError("no"))
        found = consumer.dead_letters("g", stream="offline")
        assert [(one.id, one.attempts) for one in found] == [(1, 1), (3, 1)]
        assert found[0].reason.endswith("BrokenFrameError: no")
        assert consumer.drop_dead_letters("g", 1, stream="offline") == 1
        assert consumer.requeue_dead_letters("g", stream="offline") == 1
        (group,) = consumer.groups(stream="offline")
        assert (group.lag, group.waiting, group.unread, group.dead_letters) == (2, 1, 1, 0)
        assert [message.id for message in consumer.get_next("g", n=9, stream="offline", max_attempts=1)] == [3, 5]
        assert consumer.seek("g", stream="offline", time_ns=2 * 10**9) == 3
        assert [message.id for message in consumer.get_next("g", n=9, stream="offline", max_attempts=1)] == [3, 5]
        consumer.delete_group("g", stream="offline")
        with pytest.raises(UnknownGroup):
            consumer.seek("g", stream="offline", to="end")


def test_the_commands_for_groups(services: LocalServices, capsys: pytest.CaptureFixture[str]) -> None:
    fill(services, "cli", [1, 2, 3])

    def ask(*words: str) -> str:
        assert main([words[0], services.native, *words[1:]]) == 0
        return capsys.readouterr().out

    with connect(services, "w\x1b1") as consumer:
        consumer.nack(
            consumer.get_next("g", stream="cli", max_attempts=1), group="g", reason=BrokenFrameError("\x1bno")
        )
        line = ask("groups", "det/cli").splitlines()[1]
        assert line.split() == ["g", "bt/det/cli", "2", "2", "0", "0", "-", "1", "2", "0"]
        (facts,) = map(json.loads, ask("groups", "bt/det/cli", "--json").splitlines())
        assert (facts["beamtime"], facts["group"], facts["lag"], facts["dead_letters"]) == ("bt", "g", 2, 1)
        shown = ask("dead-letters", "det/cli", "g", "--traceback")
        assert "1 attempts  tests.integration.test_groups.BrokenFrameError: \\x1bno  [w\\x1b1]" in shown
        assert "\x1b" not in shown
        (letter,) = map(json.loads, ask("dead-letters", "det/cli", "g", "1-5", "--json").splitlines())
        assert letter["id"] == 1
        assert main(["dead-letters", services.native, "det/cli", "g", "--requeue"]) == 2
        assert "--all" in capsys.readouterr().err
        assert ask("dead-letters", "det/cli", "g", "7", "--drop").startswith("0 dead letters")
        assert json.loads(ask("dead-letters", "det/cli", "g", "--requeue", "--all", "--json")) == {"requeued": 1}
        assert json.loads(ask("seek", "det/cli", "g", "--id", "3", "--json")) == {"group": "g", "position": 3}
        assert ask("seek", "det/cli", "g", "--time", "1970-01-01T00:00:02") == "group 'g' of bt/det/cli goes on at 2\n"
        assert ask("seek", "det/cli", "g", "--start").endswith("goes on at 1\n")
        assert ask("groups", "det/cli", "--group", "g", "--delete").startswith("group 'g' of bt/det/cli is forgotten")
        assert main(["groups", services.native, "det/cli", "--group", "g"]) == 1
        assert "no group 'g' in bt/det/cli" in capsys.readouterr().err
