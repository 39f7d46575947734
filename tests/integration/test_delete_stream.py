"""Streams are deleted: by consumers of all kinds and the command line, with everything that belongs to them."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asapo
from asapo import AsyncConsumer, Consumer, Producer
from asapo.cli import main
from asapo.errors import (
    AsapoError,
    IndexUnavailable,
    LeaseLost,
    OfflineUnsupported,
    StorageError,
    StreamBusy,
    UnknownGroup,
    UnknownStream,
    WrongInput,
)
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import PATIENCE_S, wait_until

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("delete"), session_timeout_s=2.0, receivers=2) as running:
        yield running


def sender(services: LocalServices, beamtime: str = "bt", source: str = "det") -> Producer:
    return Producer(services.native, beamtime=beamtime, source=source)


def fill(services: LocalServices, stream: str, values: list[int], **settings: Any) -> None:
    """Send a finished stream whose message i is an array of the i-th value."""
    with sender(services, **settings) as producer:
        for number, value in enumerate(values, 1):
            producer.send(np.full(1000, value, "<u2"), id=number, stream=stream, meta={"v": value})
        producer.finish_stream(stream)


def connect(services: LocalServices, beamtime: str = "bt", **settings: Any) -> Consumer:
    return Consumer(services.native, beamtime=beamtime, source="det", timeout_s=PATIENCE_S, **settings)


def folder_of(services: LocalServices, stream: str, source: str = "det", beamtime: str = "bt") -> Path:
    return services.data_dir / "beamline" / beamtime / source / stream


def nothing_left(services: LocalServices) -> bool:
    return not list((services.data_dir / "beamline").glob("*/*/.deleted-*"))


def names(consumer: Consumer) -> list[str]:
    return [entry["stream"] for entry in consumer.streams()]


def test_a_deleted_stream_is_gone_with_its_files_and_groups_and_others_stay(services: LocalServices) -> None:
    fill(services, "gone", [1, 2, 3])
    fill(services, "stays", [7])
    fill(services, "gone", [8], source="monitor")
    fill(services, "gone", [9], beamtime="bt2")
    with connect(services) as consumer, connect(services, "bt2") as elsewhere:
        assert [int(msg.data[0]) for msg in consumer.stream(group="g", stream="gone")] == [1, 2, 3]
        consumer.delete_stream("gone")
        assert names(consumer) == ["stays"]
        with pytest.raises(UnknownStream):
            consumer.get_last(stream="gone")
        with pytest.raises(UnknownStream):
            consumer.get_by_id(1, stream="gone")
        assert consumer.groups(stream="gone") == []
        assert not folder_of(services, "gone").exists()
        wait_until(lambda: nothing_left(services), "the room is returned")
        with pytest.raises(UnknownStream):
            consumer.delete_stream("gone")
        consumer.delete_stream("gone", missing_ok=True)
        assert int(consumer.get_last(stream="stays").data[0]) == 7
        assert int(consumer.get_last(stream="gone", source="monitor").data[0]) == 8
        assert int(elsewhere.get_last(stream="gone").data[0]) == 9


def test_a_stream_of_the_same_name_begins_anew(services: LocalServices) -> None:
    fill(services, "again", [1, 2, 3])
    with connect(services) as consumer:
        for msg in consumer.stream(group="g", stream="again"):
            kept = msg.data
        consumer.delete_stream("again")
        with sender(services) as producer:  # which numbers the messages itself
            for value in (11, 12):
                producer.send(np.full(1000, value, "<u2"), stream="again").result(PATIENCE_S)
            producer.finish_stream("again")
        found = list(consumer.stream(group="g", stream="again"))
        assert [(msg.id, int(msg.data[0])) for msg in found] == [(1, 11), (2, 12)]
        assert consumer.stream_info(stream="again")["n_messages"] == 2
        assert [(one.group, one.unread) for one in consumer.groups(stream="again")] == [("g", 0)]
        assert set(kept) == {3}


@pytest.mark.parametrize("access", ["auto", "fetch"])
@pytest.mark.parametrize("path", [False, True], ids=["segment", "file"])
def test_bytes_of_a_new_stream_are_never_given_under_an_old_message(
    services: LocalServices, access: Any, path: bool
) -> None:
    stream = f"bytes-{access}-{path}"

    def send(value: int) -> None:
        with sender(services) as producer:
            for number in (1, 2):
                where: dict[str, Any] = {"path": f"{number}.bin"} if path else {}
                producer.send(np.full(9000, value, "<u2"), id=number, stream=stream, **where)
            producer.finish_stream(stream)

    send(1)
    with connect(services, access=access) as consumer, connect(services, access=access) as other:
        first, unread = consumer.get_by_id([1, 2], stream=stream)
        mapped = first.data
        assert set(other.get_by_id(1, stream=stream).data) == {1}
        consumer.delete_stream(stream)
        send(5)
        assert set(mapped) == {1}
        if access == "auto" and not path:
            assert set(unread.data) == {1}  # both lie in the segment that was mapped
        else:
            with pytest.raises((StorageError, UnknownStream)):
                unread.raw  # noqa: B018
        for reader in (consumer, other):
            assert [set(msg.data) for msg in reader.get_by_id([1, 2], stream=stream)] == [{5}, {5}]


def test_who_holds_a_message_of_a_deleted_stream_is_told_so(services: LocalServices) -> None:
    fill(services, "held", [1, 2])
    with connect(services) as consumer, connect(services) as other:
        message = consumer.get_next("g", stream="held")
        other.delete_stream("held")
        with pytest.raises((LeaseLost, UnknownStream)):
            consumer.acknowledge(message, group="g")
        fill(services, "held", [3, 4])
        with pytest.raises(LeaseLost):
            consumer.acknowledge(message, group="g")
        assert [int(msg.data[0]) for msg in other.stream(group="g", stream="held")] == [3, 4]


def test_who_waits_for_a_deleted_stream_reads_the_next_one(services: LocalServices) -> None:
    with sender(services) as producer, connect(services) as consumer, connect(services) as other:
        producer.send(b"1", id=1, stream="followed").result(PATIENCE_S)
        messages = consumer.stream(group="g", stream="followed")
        assert next(messages).id == 1
        other.delete_stream("followed", force=True)
        producer.send(b"2", id=1, stream="followed").result(PATIENCE_S)
        assert bytes(next(messages).data) == b"2"
        messages.close()


def test_a_stream_that_is_written_to_is_deleted_by_force_only(services: LocalServices) -> None:
    with sender(services) as producer, connect(services) as consumer:
        producer.send(b"x", stream="busy").result(PATIENCE_S)
        with pytest.raises(StreamBusy, match="finish_stream"):
            consumer.delete_stream("busy")
        assert consumer.get_last(stream="busy").id == 1
        consumer.delete_stream("busy", force=True)
        assert "busy" not in names(consumer)
        producer.send(b"y", stream="busy").result(PATIENCE_S)
        assert bytes(consumer.get_last(stream="busy").data) == b"y"
        assert len(list(folder_of(services, "busy").glob("*.seg"))) == 1
        producer.set_stream_meta("busy", {"a": 1})
        producer.finish_stream("busy")
        consumer.delete_stream("busy")  # a producer that is connected and has finished is not in the way
    with sender(services) as producer, connect(services) as consumer:
        producer.send(b"x", stream="left").result(PATIENCE_S)
        producer.close()
        wait_until(lambda: _deleted(consumer, "left"), "the session has ended")


def _deleted(consumer: Consumer, stream: str) -> bool:
    try:
        consumer.delete_stream(stream)
    except StreamBusy:
        return False
    return True


def test_what_is_acknowledged_after_a_forced_deletion_is_in_the_new_stream(services: LocalServices) -> None:
    with sender(services) as producer, connect(services) as consumer:
        for number in range(1, 2001):
            handle = producer.send(number.to_bytes(4, "little") * 50, id=number, stream="stormed")
            if number % 300 == 0:
                handle.result(PATIENCE_S)
                consumer.delete_stream("stormed", force=True)
                last = number
        producer.flush(PATIENCE_S)
        producer.finish_stream("stormed")
        found = consumer.get_by_id(list(range(last + 1, 2001)), stream="stormed")
        assert [bytes(msg.raw) for msg in found] == [n.to_bytes(4, "little") * 50 for n in range(last + 1, 2001)]


def test_a_name_that_was_deleted_is_not_indexed_anew(services: LocalServices, tmp_path: Path) -> None:
    with LocalServices(tmp_path) as own:
        fill(own, "gone", [1, 2])
        fill(own, "kept", [3])
        with connect(own) as consumer:
            consumer.delete_stream("gone")
        fill(own, "gone", [4])
        with connect(own) as consumer:
            consumer.delete_stream("gone")
    assert main(["reindex", str(tmp_path)]) == 0
    assert main(["verify", str(tmp_path)]) == 0
    with sqlite3.connect(tmp_path / "state/bt/index.sqlite") as index:
        assert index.execute("SELECT stream FROM stream").fetchall() == [("kept",)]
    with asapo.open(tmp_path / "beamline/bt", source="det") as offline:
        assert [entry["stream"] for entry in offline.streams()] == ["kept"]
        with pytest.raises(OfflineUnsupported):
            offline.delete_stream("kept")


def test_without_a_receiver_nothing_is_deleted(tmp_path: Path) -> None:
    with LocalServices(tmp_path) as own:
        fill(own, "s", [1])
        own.end("r1")
        with connect(own) as consumer:
            with pytest.raises(IndexUnavailable, match="no receiver"):
                consumer.delete_stream("s", timeout_s=0.5)
            assert consumer.get_last(stream="s").id == 1


def test_an_async_consumer_deletes_streams(services: LocalServices) -> None:
    fill(services, "async", [1])

    async def delete() -> None:
        async with AsyncConsumer(services.native, beamtime="bt", source="det") as consumer:
            await consumer.delete_stream("async")
            with pytest.raises(UnknownStream):
                await consumer.delete_stream("async")
            await consumer.delete_stream("async", missing_ok=True)

    asyncio.run(delete())


def test_dead_letters_go_with_the_stream(services: LocalServices) -> None:
    fill(services, "letters", [1])
    with connect(services) as consumer:
        message = consumer.get_next("g", stream="letters", max_attempts=1)
        consumer.nack(message, group="g", reason="bad")
        wait_until(lambda: consumer.dead_letters("g", stream="letters"), "the dead letter")
        consumer.delete_stream("letters")
        with pytest.raises(UnknownGroup):
            consumer.dead_letters("g", stream="letters")
    with sqlite3.connect(services.data_dir / "state/bt/delivery.sqlite") as database:
        for table in ("cursor", "letter"):
            assert database.execute(f"SELECT 1 FROM {table} WHERE stream = 'letters'").fetchall() == []


def test_the_command_asks_and_deletes(
    services: LocalServices, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(services, "cli", [1, 2])
    monkeypatch.setenv("ASAPO_URL", services.native)
    monkeypatch.setenv("ASAPO_BEAMTIME", "bt")
    assert main(["delete", "det/cli"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert main(["delete", "det", "--yes"]) == 2
    for answer, status in (("n\n", 1), ("\n", 1), ("yes\n", 0)):
        keyboard, screen = os.openpty()
        os.write(keyboard, answer.encode())
        with os.fdopen(screen) as terminal:
            monkeypatch.setattr("sys.stdin", terminal)
            assert main(["delete", "det/cli"]) == status
        os.close(keyboard)
        assert "2 messages" in capsys.readouterr().err
    assert main(["delete", "det/cli", "--yes"]) == 1
    assert "cli" in capsys.readouterr().err
    assert main(["delete", "det/cli", "--yes", "--missing-ok", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "deleted": False, "beamtime": "bt", "source": "det", "stream": "cli",
    }  # fmt: skip
    fill(services, "cli", [1])
    assert main(["delete", "det/cli", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] is True


def test_a_stream_is_named_wholly(services: LocalServices) -> None:
    with connect(services) as consumer:
        with pytest.raises(WrongInput):
            consumer.delete_stream("")
        with pytest.raises(AsapoError):
            consumer.delete_stream("x", source="")
