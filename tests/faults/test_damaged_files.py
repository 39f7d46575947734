"""Files that were changed behind our back: that frame is named, its neighbours are read, and an index comes back."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import asapo
from asapo.errors import ChecksumMismatch, DamagedFile, IndexUnavailable, NothingYet, StorageError
from asapo.index import SqliteIndex
from asapo.index.snapshot_write import write_snapshot
from asapo.models import StreamRef
from asapo.query import parse
from asapo.reindex import reindex
from asapo.storage.journal import JournalRecord, read_journal
from asapo.storage.recorded import journals_in
from asapo.testing.launch import LocalServices
from asapo.verify import verify
from tests.e2e.ledger import Ledger, consumer_of, producer_of
from tests.recording import BEAMTIME, Recording

IDS = range(1, 9)
SIZE = 1000
PATHS = {7: "scan/seven.cbf", 8: "eight.cbf"}
REF = StreamRef(BEAMTIME, "det", "s")
CODES = {DamagedFile.code, ChecksumMismatch.code}


def content(message_id: int) -> bytes:
    return random.Random(message_id).randbytes(SIZE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "data"
    one = Recording(root)
    for message_id in IDS:
        one.put([message_id], payloads=[content(message_id)], path=PATHS.get(message_id, ""))
    one.meta('{"sample":"water"}')
    one.finish(8)
    one.close()
    folder = one.folder / "det" / "s"
    write_snapshot(folder, one.directory.path(BEAMTIME), REF, list(journals_in(folder).values()))
    return root


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def beamtime(data: Path) -> Path:
    return data / "beamline" / BEAMTIME


def stream(data: Path) -> Path:
    return beamtime(data) / "det" / "s"


def read(data: Path) -> dict[int, str]:
    """Read everything; return of each id how it ended, checking every byte."""
    found: dict[int, str] = {}
    # Where the end of the stream was lost there is NothingYet.
    with asapo.open(beamtime(data), source="det", verify=True) as consumer, suppress(NothingYet):
        for message in consumer.stream(group="g", stream="s", follow=None, timeout_s=0):
            try:
                assert bytes(message.raw) == content(message.id)
                found[message.id] = ""
            except StorageError as exc:
                found[message.id] = exc.code
    return found


def flip(at: int, n: int = 1) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + bytes(byte ^ 0x10 for byte in whole[at : at + n]) + whole[at + n :]


def zero(at: int, n: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + bytes(n) + whole[at + n :]


def cut(at: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at]


STEP = 1024
"""From one payload of 1000 bytes to the next."""
PAYLOADS = {
    "first byte": ("r1-1-000001.seg", flip(0), {1}),
    "middle": ("r1-1-000001.seg", flip(2 * STEP + 500), {3}),
    "last byte": ("r1-1-000001.seg", flip(5 * STEP + SIZE - 1), {6}),
    "between two payloads": ("r1-1-000001.seg", flip(SIZE + 5), set()),
    "zeroed block": ("r1-1-000001.seg", zero(STEP, 4096 - STEP), {2, 3, 4}),
    "cut in a payload": ("r1-1-000001.seg", cut(4 * STEP + 10), {5, 6}),
    "cut to nothing": ("r1-1-000001.seg", cut(0), {1, 2, 3, 4, 5, 6}),
    "file changed": ("files/scan/seven.cbf", flip(3), {7}),
    "file cut": ("files/eight.cbf", cut(999), {8}),
    "file longer": ("files/eight.cbf", lambda whole: whole + b"x", set()),
}


@pytest.mark.parametrize("what", PAYLOADS)
def test_damage_to_payloads_is_a_typed_error_of_these_messages_alone(data: Path, what: str) -> None:
    name, change, hit = PAYLOADS[what]
    path = stream(data) / name
    path.write_bytes(change(path.read_bytes()))
    for _ in ("snapshot", "journals"):
        found = read(data)
        assert {message_id for message_id, code in found.items() if code} == hit
        assert {code for code in found.values() if code} <= CODES
        (stream(data) / "index.snapshot").unlink(missing_ok=True)
    report = verify(beamtime(data))
    named = {(one.source, one.stream, one.id) for one in report.damages}
    assert named == {("det", "s", number) for number in hit | ({8} if what == "file longer" else set())}
    assert all(one.path == str(path) for one in report.damages)
    assert report.messages == len(IDS)


@pytest.mark.parametrize("name", ["r1-1-000001.seg", "files/eight.cbf"])
def test_a_file_that_is_gone_is_named(data: Path, name: str) -> None:
    (stream(data) / name).unlink()
    hit = {1, 2, 3, 4, 5, 6} if name.endswith("seg") else {8}
    assert {message_id for message_id, code in read(data).items() if code} == hit
    assert {one.id for one in verify(beamtime(data)).damages} == hit


def records(data: Path) -> list[JournalRecord]:
    (path,) = stream(data).glob("*.idx")
    return [item for item in read_journal(path) if isinstance(item, JournalRecord)]


@pytest.mark.parametrize("kind", ["HEAD", "PUT", "META", "FINISH", "CLOSED", "file header"])
@pytest.mark.parametrize("change", ["flip", "zero"])
def test_damage_to_any_kind_of_record_costs_that_record_alone(data: Path, kind: str, change: str) -> None:
    (path,) = stream(data).glob("*.idx")
    hit = next((record for record in records(data) if record.kind == kind), None)
    at, n = (hit.offset + 17, hit.size - 17) if hit is not None else (3, 5)
    path.write_bytes((flip(at) if change == "flip" else zero(at, n))(path.read_bytes()))
    report = verify(beamtime(data))
    assert [one.path for one in report.damages] == [str(path)] or report.torn
    assert report.messages == len(IDS) - (kind == "PUT")
    (stream(data) / "index.snapshot").unlink()
    assert read(data) == {number: "" for number in IDS if kind != "PUT" or number != 1}


def test_a_damaged_snapshot_is_named_and_done_without(data: Path) -> None:
    path = stream(data) / "index.snapshot"
    path.write_bytes(flip(70)(path.read_bytes()))
    (damage,) = verify(beamtime(data)).damages
    assert damage.path == str(path)
    assert "remove it" in damage.reason
    assert read(data) == dict.fromkeys(IDS, "")


def test_a_sound_folder_has_nothing_to_report(data: Path) -> None:
    report = verify(beamtime(data))
    assert (report.damages, report.torn, report.spare) == ([], 0, [])
    assert (report.messages, report.payload_bytes) == (len(IDS), len(IDS) * SIZE)


def test_files_of_no_message_and_drafts_are_listed(data: Path) -> None:
    spare = [stream(data) / "files" / "nobody's", stream(data) / "r1-1-000001.part"]
    for path in spare:
        path.write_bytes(b"x")
    report = verify(beamtime(data))
    assert sorted(report.spare) == sorted(map(str, spare))
    assert not report.damages


def test_the_command_lists_damage_and_says_so_by_its_status(data: Path) -> None:
    path = stream(data) / "r1-1-000001.seg"
    command = [sys.executable, "-m", "asapo", "verify", str(data)]
    sound = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (sound.returncode, sound.stderr) == (0, "")
    path.write_bytes(flip(2 * STEP)(path.read_bytes()))
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 1
    assert f"det/s message 3: {path} at byte {2 * STEP}" in found.stderr
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=60)
    (damage,) = json.loads(again.stdout)["damages"]
    assert (damage["id"], damage["offset"]) == (3, 2 * STEP)


# -- the index


N = 2000


@pytest.fixture(scope="module")
def queried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[Any]]:
    """Return a data folder, 200 queries, and their answers."""
    root = tmp_path_factory.mktemp("queried") / "data"
    chance = random.Random(5)
    one = Recording(root)
    one.index.declare_keys(["a", "b"])
    for first in range(1, N, 100):
        ids = range(first, first + 100)
        metas = [json.dumps({"a": chance.randint(0, 50), "b": chance.random(), "c": chance.choice("xyz")}) for _ in ids]
        one.put(ids, payloads=[b"1234"] * 100, metas=metas)
    one.finish(N)
    one.close()
    texts = [
        chance.choice([
            f"a > {chance.randint(0, 50)} AND b < {chance.random():.3f}", f"a = {chance.randint(0, 50)}",
            f"c = '{chance.choice('xyz')}' AND a < 5", f"b > 0.9 AND _id > {chance.randint(1, N)}", "c LIKE 'x%'",
        ]) + chance.choice(["", " ORDER BY b DESC", " ORDER BY a, b", " LIMIT 7"])
        for _ in range(200)
    ]  # fmt: skip
    return root, texts, answers(root, texts)


def answers(root: Path, texts: list[str]) -> list[Any]:
    index = SqliteIndex(root / "state" / BEAMTIME / "index.sqlite", BEAMTIME)
    try:
        no = index.stream_no(REF)
        assert no is not None
        return [[row[:4] + row[5:] for row in index.query(no, parse(text), row_limit=100)] for text in texts]
    finally:
        index.close()


def overwritten(path: Path, page: int, junk: bytes) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: page * 4096] + junk + whole[(page + 1) * 4096 :])


@pytest.mark.parametrize("what", ["gone", "cut", "first page", "zeroed page", "page of junk", "a text file"])
def test_an_index_that_was_damaged_is_noticed_and_comes_back(
    queried: tuple[Path, list[str], list[Any]], tmp_path: Path, what: str
) -> None:
    made, texts, right = queried
    data = tmp_path / "data"
    shutil.copytree(made, data)
    path = data / "state" / BEAMTIME / "index.sqlite"
    junk = random.Random(what).randbytes(4096)
    damage: dict[str, Callable[[], object]] = {
        "gone": path.unlink,
        "cut": lambda: path.write_bytes(path.read_bytes()[: 4096 * 40 + 7]),
        "first page": lambda: overwritten(path, 0, junk),
        "zeroed page": lambda: overwritten(path, 30, bytes(4096)),
        "page of junk": lambda: overwritten(path, 30, junk),
        "a text file": lambda: path.write_text("not a database\n" * 1000),
    }
    damage[what]()
    report = verify(beamtime(data))
    (found,) = report.damages
    assert found.path == str(path)
    assert "asapo reindex" in found.reason
    if what != "gone":
        with pytest.raises((IndexUnavailable, DamagedFile)) as caught:
            answers(data, texts)
        assert what == "zeroed page" or "asapo reindex" in caught.value.message
    made_anew = reindex([beamtime(data)], data / "state")
    assert made_anew.rebuilt.messages == N
    assert verify(beamtime(data)).damages == []
    index = SqliteIndex(path, BEAMTIME)
    index.declare_keys(["a", "b"])  # kept by reindex where the old file could be read
    index.close()
    assert answers(data, texts) == right


@pytest.mark.needs_server
@pytest.mark.needs_linux
def test_an_index_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    ledger = Ledger("s", sizes=(100,))
    with LocalServices(tmp_path / "data", log_level="error") as services:
        with producer_of(services) as producer:
            for number in range(1, 6):
                ledger.send(producer, number)
            producer.flush(45.0)
        services.kill("r1")  # this life's journals alone would come back by themselves
        services.restart("r1")
        with producer_of(services) as producer:
            ledger.send(producer, 6).result(45.0)
        services.kill("r1")
        services.kill("broker")
        for path in (tmp_path / "data/state/bt").glob("index.sqlite*"):
            path.unlink()
        services.restart("broker")
        services.restart("r1")
        with producer_of(services) as producer, pytest.raises(StorageError, match="asapo reindex"):
            producer.send(b"other", id=1, stream="s").result(45.0)
        with producer_of(services, beamtime="bt2") as producer:  # other beamtimes go on
            producer.send(b"x", id=1, stream="s").result(45.0)
        services.stop()
    reindex([tmp_path / "data/beamline/bt"], tmp_path / "data/state")
    with LocalServices(tmp_path / "data", log_level="error") as services:
        with producer_of(services) as producer:
            for number in range(1, 8):
                ledger.send(producer, number)
            producer.finish_stream("s", timeout_s=45.0)
        with consumer_of(services) as consumer:
            ledger.check_by_id(consumer)


def test_sqlite_itself_is_asked(data: Path) -> None:
    """The pages that are overwritten above are ones that hold something."""
    with sqlite3.connect(data / "state" / BEAMTIME / "index.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
