"""A process dies while a stream is deleted: the stream is there as before, or gone for good, and nothing comes back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from asapo import Consumer, Producer
from asapo.cli import main
from asapo.errors import AsapoError, StorageError, UnknownStream
from asapo.supervise import ServiceFailed
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import PATIENCE_S, consumer_of, wait_until
from tests.faults.test_failpoints import restart

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]

RECEIVER_PLACES = [
    "delete.before-commit", "delete.after-commit", "delete.after-move",
    *(pytest.param(place, marks=pytest.mark.soak) for place in ("delete.before-rename", "delete.after-finish")),
]  # fmt: skip


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    with LocalServices(tmp_path, session_timeout_s=2.0, log_level="error") as found:
        yield found


def fill(services: LocalServices, values: list[bytes], stream: str = "s") -> None:
    with Producer(services.native, beamtime="bt", source="det") as producer:
        for value in values:
            producer.send(value, stream=stream)
        producer.finish_stream(stream)


def read(consumer: Consumer, stream: str = "s") -> list[tuple[int, bytes]]:
    return [(msg.id, bytes(msg.data)) for msg in consumer.stream(group="g", stream=stream, timeout_s=PATIENCE_S)]


def is_there(consumer: Consumer) -> bool:
    return "s" in {entry["stream"] for entry in consumer.streams()}


def trash(services: LocalServices) -> list[Path]:
    return list((services.data_dir / "beamline").glob("*/*/.deleted-*"))


def back(services: LocalServices, consumer: Consumer, *names: str) -> None:
    """Wait until the present lives of these receivers have registered."""
    folder = services.data_dir / "state/.receivers"
    lives = {name: int((folder / f"{name}.epoch").read_text()) for name in names}

    def registered() -> bool:
        known = {one["receiver_id"]: one["epoch"] for one in consumer.receivers()}
        return all(known.get(name) == epoch for name, epoch in lives.items())

    wait_until(registered, "the receivers are back")


def delete(consumer: Consumer) -> None:
    try:
        consumer.delete_stream("s", timeout_s=1.5)
    except AsapoError:
        return


@pytest.mark.parametrize("place", RECEIVER_PLACES)
@pytest.mark.parametrize("revived", ["receiver", pytest.param("reindex", marks=pytest.mark.soak)])
def test_a_receiver_that_dies_while_it_deletes_leaves_all_or_nothing(
    services: LocalServices, place: str, revived: str
) -> None:
    fill(services, [b"a", b"b"])
    fill(services, [b"c"], "other")
    with consumer_of(services) as consumer:
        assert read(consumer) == [(1, b"a"), (2, b"b")]
        restart(services, "r1", f"{place}:1:kill")
        back(services, consumer, "r1")
        delete(consumer)
    wait_until(lambda: services.ended("r1"), "the receiver has met its end")
    if revived == "reindex":
        services.end("broker")
        assert main(["reindex", str(services.data_dir)]) == 0
        services.restart("broker")
    restart(services, "r1")
    with consumer_of(services) as consumer:
        there = is_there(consumer)
        assert there == (place == "delete.before-commit")
        assert (services.data_dir / "beamline/bt/det/s").exists() == there
        if there:
            assert [bytes(msg.data) for msg in consumer.get_by_id([1, 2], stream="s")] == [b"a", b"b"]
            consumer.delete_stream("s")
        fill(services, [b"new"])
        assert read(consumer) == [(1, b"new")]
        assert read(consumer, "other") == [(1, b"c")]
    wait_until(lambda: not trash(services), "the room is returned")
    assert main(["verify", str(services.data_dir)]) == 0


def test_a_core_that_dies_before_it_forgets_the_groups_forgets_them_later(services: LocalServices) -> None:
    fill(services, [b"a", b"b"])
    with consumer_of(services) as consumer:
        assert len(read(consumer)) == 2
    restart(services, "broker", "delete.before-forget:1:kill")
    with consumer_of(services) as consumer:
        back(services, consumer, "r1")
        delete(consumer)
    wait_until(lambda: services.ended("broker"), "the core has met its end")
    restart(services, "broker")
    with consumer_of(services) as consumer:
        assert not is_there(consumer)
        fill(services, [b"new"])
        assert read(consumer) == [(1, b"new")]


@pytest.mark.parametrize(
    "faults",
    ["", pytest.param("ingest.after-journal:2:kill", marks=pytest.mark.soak)],
    ids=["killed", "killed before it indexed"],
)
def test_the_part_of_a_receiver_that_is_down_does_not_come_back(services: LocalServices, faults: str) -> None:
    services.add_receiver()
    fill(services, [b"x"], "warm up")
    services.kill("r1")
    restart(services, "r2", faults)
    with Producer(services.native, beamtime="bt", source="det") as producer:
        handles = [producer.send(bytes([number]) * 300_000, stream="s", id=number) for number in range(1, 9)]
        if faults:  # what it has journaled is in no index
            wait_until(lambda: services.ended("r2"), "the receiver has met its end")
        else:
            producer.flush(PATIENCE_S)
            services.kill("r2")
        restart(services, "r1")
        producer.flush(PATIENCE_S)
        assert all(handle.done() for handle in handles)
        producer.finish_stream("s")
    with consumer_of(services) as consumer:
        assert consumer.stream_info(stream="s")["n_messages"] == 8
        consumer.delete_stream("s")
        restart(services, "r2")
        assert not is_there(consumer)
        with pytest.raises(UnknownStream):
            consumer.get_by_id(1, stream="s")
        fill(services, [b"new"])
        assert read(consumer) == [(1, b"new")]
    for name in ("r1", "r2", "broker"):
        services.end(name)
    assert main(["reindex", str(services.data_dir)]) == 0
    for name in ("broker", "r1"):
        services.restart(name)
    with consumer_of(services) as consumer:
        assert consumer.stream_info(stream="s")["n_messages"] == 1


def test_a_receiver_that_dies_while_it_finishes_a_deletion_at_its_start_finishes_it_then(
    services: LocalServices,
) -> None:
    fill(services, [b"a"])
    restart(services, "r1", "delete.after-commit:1:kill")
    with consumer_of(services) as consumer:
        back(services, consumer, "r1")
        delete(consumer)
        wait_until(lambda: services.ended("r1"), "the receiver has met its end")
        for place in ("delete.before-rename", "delete.after-move"):
            services.kill("r1")
            services.inject("r1", f"{place}:1:kill")
            with pytest.raises(ServiceFailed, match="did not become ready"):
                services.restart("r1")
        restart(services, "r1")
        fill(services, [b"new"])
        assert read(consumer) == [(1, b"new")]


@pytest.mark.soak
def test_another_receiver_finishes_a_deletion_before_it_writes(services: LocalServices) -> None:
    services.add_receiver()
    fill(services, [b"a"])
    for name in ("r1", "r2"):  # whichever is asked
        restart(services, name, "delete.after-commit:1:kill")
    with consumer_of(services) as consumer:
        back(services, consumer, "r1", "r2")
        delete(consumer)
        wait_until(lambda: services.ended("r1") or services.ended("r2"), "one has met its end")
        fill(services, [b"new"])  # to the other one
        assert read(consumer) == [(1, b"new")]
        assert len(list((services.data_dir / "beamline/bt/det/s").glob("*.idx"))) == 1


def test_a_stream_whose_files_cannot_be_moved_is_gone_all_the_same_until_they_can(services: LocalServices) -> None:
    fill(services, [b"a"], "warm up")
    source = services.data_dir / "beamline/bt/det"
    with Producer(services.native, beamtime="bt", source="det") as producer, consumer_of(services) as consumer:
        restart(services, "r1", "rename:1:EACCES:.deleted-")
        back(services, consumer, "r1")
        producer.send(b"a", stream="s").result(PATIENCE_S)  # its segment stays open
        with pytest.raises(StorageError, match="could not be moved"):
            consumer.delete_stream("s", force=True)
        assert not is_there(consumer)
        for _ in range(2):
            assert (source / "s").exists()
            services.kill("r1")
            services.restart("r1")
            assert not is_there(consumer)
        restart(services, "r1")
        assert not (source / "s").exists()
        assert not is_there(consumer)
