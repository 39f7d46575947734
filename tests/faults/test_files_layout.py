"""Layout `files` over real services: read everywhere, refused without a trace, and whole after every death."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

import asapo
from asapo.client_path import check_client_path
from asapo.errors import DuplicateFile, DuplicateId, UnsafePath, WrongInput
from asapo.failpoints import NAMES
from asapo.models import PLAIN
from asapo.testing.launch import LocalServices
from asapo.wire.codec import PUT_KIND, encode
from asapo.wire.events import Goodbye, Hello
from asapo.wire.put import pack_column, put_map
from tests.e2e.ledger import BEAMTIME, SOURCE, Ledger, consumer_of, producer_of, wait_until
from tests.faults.target import header, replies
from tests.recording import dump
from tests.unit.storage.test_message_files import tree
from tests.unit.test_client_path import BAD

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]
MESSAGES = 6
SIZES = (0, 700, 300_000)
FILE_PLACES = [name for name in NAMES if name.startswith("file")]
OTHER_PLACES = [name for name in NAMES if name.startswith(("ingest", "index")) and not name.endswith("-payload")]
"""Those around the payload are for segments."""


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    with LocalServices(tmp_path / "data", session_timeout_s=2.0, log_level="error") as found:
        yield found


def path_of(message_id: int) -> str:
    return f"scan {message_id % 2}/ä/img_{message_id:04d}.cbf"


def stream_folder(services: LocalServices, stream: str) -> Path:
    return services.data_dir / "beamline" / BEAMTIME / SOURCE / stream


def restart(services: LocalServices, faults: str = "") -> None:
    services.kill("r1")
    services.inject("r1", faults)
    services.restart("r1")


def check_files(services: LocalServices, ledger: Ledger) -> None:
    """Every acknowledged message is the whole file at its path, and nothing is left of drafts."""
    files = stream_folder(services, ledger.stream) / "files"
    for message_id in ledger.acked:
        ledger.check_content(message_id, (files / path_of(message_id)).read_bytes(), "the file")
    assert list(services.data_dir.rglob("*.part")) == []


def test_a_file_is_read_mapped_fetched_offline_and_after_a_reindex(services: LocalServices) -> None:
    ledger = Ledger("files", sizes=SIZES)
    with producer_of(services) as producer:
        for number in range(1, MESSAGES + 1):
            ledger.send(producer, number, **({"path": path_of(number)} if number != 3 else {}))
        producer.send(ledger.payload(1), id=1, stream="files", path=path_of(1), meta={"n": 1}).result(45.0)  # again
        producer.finish_stream("files")
    assert not ledger.failed
    for access in ("map", "fetch"):
        with consumer_of(services, access=access) as consumer:
            messages = consumer.get_by_id(range(1, MESSAGES + 1), stream="files")
            for message in messages:
                ledger.check_content(message.id, message.raw, access)
                assert message.path == ("" if message.id == 3 else path_of(message.id))
    assert ledger.check_all(services) == list(range(1, MESSAGES + 1))
    services.stop()
    folder = stream_folder(services, "files")
    for number in range(1, MESSAGES + 1):
        assert (folder / "files" / path_of(number)).is_file() == (number != 3)
    database = services.data_dir / "state" / BEAMTIME / "index.sqlite"
    before = dump(database)
    (folder / "index.snapshot").unlink(missing_ok=True)
    assert read_offline(folder) == "journals: it has no snapshot"
    command = [sys.executable, "-m", "asapo", "reindex", str(services.data_dir)]
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 0, again.stderr
    assert dump(database) == before
    assert read_offline(folder) == "snapshot"


def read_offline(folder: Path) -> str:
    """Check what a copy without services gives; return what it was read from."""
    with asapo.open(folder.parents[1], source=SOURCE, verify=True) as offline:
        found = {
            message.id: (message.path, len(message.raw))
            for message in offline.stream(group="g", stream="files", follow=None)
        }
        ledger = Ledger("files", sizes=SIZES)
        assert found == {
            number: ("" if number == 3 else path_of(number), len(ledger.payload(number)))
            for number in range(1, MESSAGES + 1)
        }
        return offline.report.streams[f"{SOURCE}/files"]


def test_a_recorded_stream_of_files_is_replayed(services: LocalServices) -> None:
    ledger = Ledger("files", sizes=SIZES)
    with producer_of(services) as producer:
        for number in range(1, MESSAGES + 1):
            ledger.send(producer, number, path=path_of(number))
        producer.finish_stream("files")
    command = [
        sys.executable, "-m", "asapo", "replay", services.native, str(stream_folder(services, "files")),
        "--beamtime", BEAMTIME, "--source", "again",
    ]  # fmt: skip
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 0, again.stderr
    with consumer_of(services, source="again") as consumer:
        for message in consumer.get_by_id(range(1, MESSAGES + 1), stream="files"):
            ledger.check_content(message.id, message.raw, "the replay")


def test_another_message_never_gets_the_path(services: LocalServices) -> None:
    with producer_of(services) as producer:
        producer.send(b"first", id=1, path="a/img").result(45.0)
        refused = {
            (2, b"other", "a/img"): DuplicateFile,
            (2, b"first", "a/img"): DuplicateFile,
            (1, b"other", "b/img"): DuplicateId,
            (3, b"x", "a"): DuplicateFile,
            (3, b"x", "a/img/x"): UnsafePath,
        }
        for (message_id, content, path), kind in refused.items():
            with pytest.raises(kind) as caught:
                producer.send(content, id=message_id, path=path).result(45.0)
            assert not caught.value.retriable
        producer.send(b"first", id=1, path="a/img").result(45.0)
        producer.send(b"other", id=4, path="b/img").result(45.0)  # its first message was refused: the file is adopted
        producer.finish_stream()
    with consumer_of(services) as consumer:
        assert {m.id: (m.path, bytes(m.raw)) for m in consumer.stream(group="g", follow=None)} == {
            1: ("a/img", b"first"), 4: ("b/img", b"other")
        }  # fmt: skip


@pytest.mark.parametrize("place", FILE_PLACES)
def test_a_receiver_that_dies_while_it_stores_files_loses_and_doubles_none(services: LocalServices, place: str) -> None:
    dies_at(services, place)


@pytest.mark.soak
@pytest.mark.parametrize("place", OTHER_PLACES)
def test_a_receiver_that_dies_around_the_storing_of_files_loses_and_doubles_none(
    services: LocalServices, place: str
) -> None:
    dies_at(services, place)


def dies_at(services: LocalServices, place: str) -> None:
    """Let the receiver die at the first and at the third passing of a place."""
    ledger = Ledger("files", sizes=SIZES)
    for at in (1, 3):
        restart(services, f"{place}:{at}:kill")
        first = 1 if at == 1 else MESSAGES + 1
        with producer_of(services) as producer:
            handles = [ledger.send(producer, n, path=path_of(n)) for n in range(first, first + MESSAGES)]
            if at == 1:
                wait_until(lambda: services.ended("r1"), f"{place} is passed")
            else:  # so many passings may not come: several messages share one
                wait_until(lambda: services.ended("r1") or all(one.done() for one in handles), "death or success")  # noqa: B023
            restart(services)
            producer.flush(45.0)
            if at > 1:
                producer.finish_stream("files")
    assert not ledger.failed
    assert len(ledger.acked) == 2 * MESSAGES
    check_files(services, ledger)
    assert ledger.check_all(services) == sorted(ledger.acked)


# -- hostile paths


def bad_paths() -> list[str]:
    return [path for group in BAD.values() for path in group if path and "\ud800" not in path]


def put_header(path: object, **changes: object) -> bytes:
    """Return a Put of one message with any path, as no SDK of ours sends it."""
    payload = b"evil"
    good = put_map(
        unit=1, stream="s", ids=[1], sizes=[len(payload)], checksums=pack_column([xxh3_64_intdigest(payload)]),
        metas=["{}"], acquired_ns=bytes(8), closed_below=0, form=PLAIN,
        substream=0, dataset_size=0, level="written", origins=(),
    )  # fmt: skip
    import msgpack

    return header(PUT_KIND, msgpack.packb({**good, "p": path, **changes}))


def test_hostile_paths_on_the_wire_create_nothing(services: LocalServices, tmp_path: Path) -> None:
    before = tree(tmp_path / "data" / "beamline")
    hello = encode(Hello("producer", b"h" * 16, BEAMTIME, SOURCE))
    address = next(url for url in services.ready("r1")["addresses"] if url.startswith("tcp"))
    for path in [*bad_paths(), 7, ["a"], b"a", {"a": 1}, True]:
        answers = replies(
            address, [(hello, b""), (put_header(path), b"evil")], until=lambda one: type(one.event) is Goodbye
        )
        goodbye = answers[-1].event
        assert isinstance(goodbye, Goodbye), path
        assert "path" in goodbye.error["message"], goodbye.error
    for changes in ({"l": "memory"}, {"k": 2, "i": [1, 2], "z": 2, "c": bytes(16), "m": ["{}"] * 2, "t": bytes(16)}):
        answers = replies(
            address, [(hello, b""), (put_header("good", **changes), b"evil")],
            until=lambda one: type(one.event) is Goodbye,
        )  # fmt: skip
        assert isinstance(answers[-1].event, Goodbye)
    assert tree(tmp_path / "data" / "beamline") == before
    with producer_of(services) as producer:  # others are served on
        producer.send(b"x", id=1, path="fine").result(45.0)


def test_the_sdk_refuses_such_paths_before_anything_is_sent(services: LocalServices) -> None:
    with producer_of(services) as producer:
        for path in ["", *bad_paths()]:
            with pytest.raises(WrongInput, match="path"):
                producer.send(b"x", id=1, path=path)
        assert producer.stats.sent == 0
    with producer_of(services, level="memory") as producer, pytest.raises(WrongInput, match="memory"):
        producer.send(b"x", id=1, path=check_client_path("good"))


def test_a_link_planted_in_the_data_folder_leads_nobody_out(services: LocalServices, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in (f"{SOURCE}/s/files/sub", "s/files/sub", "files/sub", "sub"):
        (outside / name).mkdir(parents=True)
    (outside / "img").write_bytes(b"precious")
    before = tree(outside)
    for number, where in enumerate(["", SOURCE, f"{SOURCE}/s", f"{SOURCE}/s/files", f"{SOURCE}/s/files/sub"]):
        link = services.data_dir / "beamline" / f"bt{number}" / where
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside)
        with producer_of(services, beamtime=f"bt{number}") as producer:
            with pytest.raises(UnsafePath, match="link") as caught:
                producer.send(b"x", id=1, stream="s", path="sub/img").result(45.0)
            assert caught.value.path == str(link)
            if number < 3:  # nor does a segment get out
                with pytest.raises(UnsafePath):
                    producer.send(b"x", id=1, stream="s").result(45.0)
            else:
                producer.send(b"x", id=1, stream="s").result(45.0)
        assert tree(outside) == before, where
