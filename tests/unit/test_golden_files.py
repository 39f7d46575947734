"""Data folders of every version that was ever made are read; what is newer is ignored or refused, never guessed at."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
from xxhash import xxh3_64_intdigest

import asapo
from asapo.errors import UnsupportedVersion
from asapo.index import SqliteIndex, UnitRecord
from asapo.index.rebuild import rebuild
from asapo.index.schema import MAJOR, MINOR
from asapo.index.snapshot import TRAILER, Snapshot
from asapo.models import StreamRef
from asapo.query import parse
from asapo.storage.journal import JournalRecord, encode_record, file_header, read_journal
from asapo.storage.recorded import find_recorded
from asapo.storage.tier import read_tier_uuid
from asapo.verify import verify
from tests.golden.make_files import ROOT, expected
from tests.recording import BEAMTIME

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("files-*"))
NEWEST = GOLDEN[-1]
INDEX = f"state/{BEAMTIME}/index.sqlite"


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of a folder of one version."""
    shutil.copytree(request.param, tmp_path / "data")
    return tmp_path / "data"


def said(folder: Path) -> Any:
    return json.loads((folder / "expected.json").read_text())


def bytes_of(folder: Path) -> dict[tuple[str, int], bytes]:
    """Return what is read offline, by stream and id."""
    found = {}
    with asapo.open(folder / "beamline" / BEAMTIME, source="det", verify=True) as consumer:
        for name in ("s", "hits"):
            for message in consumer.stream(group="g", stream=name, follow=None):
                found[name, message.id] = bytes(message.raw)
        assert consumer.beamtime_meta() == {"proposal": 42}
    return found


CONTENT = {
    ("s", 1): b"a" * 12, ("s", 2): b"b" * 12, ("s", 3): b"c" * 12,
    ("hits", 1): b"", ("hits", 5): b"a file", ("hits", 7): b"7 of hits",
}  # fmt: skip


def test_there_is_a_folder_of_the_present_version() -> None:
    assert NEWEST.name == f"files-{MAJOR}.{MINOR}", "run python -m tests.golden.make_files"


def test_journals_and_payloads_are_read(folder: Path, tmp_path: Path) -> None:
    index = SqliteIndex(tmp_path / "anew" / "index.sqlite", BEAMTIME)
    report = rebuild(index, find_recorded([folder / "beamline" / BEAMTIME]))
    index.close()
    assert not report.damages
    text = json.dumps(expected(tmp_path / "anew" / "index.sqlite"), ensure_ascii=False)
    assert json.loads(text.replace(str(folder), ROOT)) == said(folder)
    assert read_tier_uuid(folder / "beamline")
    for path in folder.rglob("index.snapshot"):
        path.unlink()
    assert bytes_of(folder) == CONTENT
    assert [one.path for one in verify(folder / "beamline" / BEAMTIME).damages] == []


def test_snapshots_are_read(folder: Path) -> None:
    assert bytes_of(folder) == CONTENT
    with asapo.open(folder / "beamline" / BEAMTIME, source="det") as consumer:
        consumer.streams()
        assert set(consumer.report.streams.values()) == {"snapshot"}


def test_the_index_is_read_and_written_on(folder: Path) -> None:
    assert expected(folder / INDEX) == said(folder)
    with closing(sqlite3.connect(folder / INDEX)) as connection:
        folder_version = divmod(connection.execute("PRAGMA user_version").fetchone()[0], 1 << 16)
    index = SqliteIndex(folder / INDEX, BEAMTIME)
    ref = StreamRef(BEAMTIME, "det", "new")
    try:
        assert index.declared_keys() == ["n"]
        assert index.sorted_keys() == ([] if folder_version < (1, 2) else ["sample.name"])
        hits = index.stream_no(StreamRef(BEAMTIME, "det", "hits"))
        assert hits is not None
        assert [row[0] for row in index.query(hits, parse("n > 5 ORDER BY n"))] == [7]
        assert any("sorted" in line for line in index.explain(hits, parse("n > 5")).plan) == (folder_version >= (1, 2))
        (outcome,) = index.commit([
            UnitRecord(ref=ref, ids=[1], offsets=[0], sizes=[1], checksums=[1], metas=['{"n":1}'], t_acq_ns=[0],
                       t_ingest_ns=1, segment=1)
        ])  # fmt: skip
        assert outcome.first_seq == 1
        index.finish_stream(ref, 1, "")
        assert not index.sort_finished(ref)
    finally:
        index.close()
    with closing(sqlite3.connect(folder / INDEX)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (MAJOR << 16 | MINOR,)


# -- newer versions


def journal_of(folder: Path) -> Path:
    return next((folder / "beamline" / BEAMTIME / "det" / "hits").glob("*.idx"))


def rewritten(folder: Path, version: tuple[int, int], change: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
    """Write the journal of a stream as another version would."""
    path = journal_of(folder)
    records = [item for item in read_journal(path) if isinstance(item, JournalRecord)]
    body = b"".join(encode_record(record.kind, change(record.kind, record.fields)) for record in records)
    path.write_bytes(file_header(*version) + body)


def newer(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a newer minor version writes: more of them, everywhere."""
    if kind == "PUT":
        head, body = fields["put"][:5], msgpack.unpackb(fields["put"][5:], strict_map_key=False)
        put = head[:3] + b"\x07" + head[4:] + msgpack.packb({**body, "colour": "blue", 9: [1]})
        return {**fields, "put": put, "colour": "blue"}
    return {**fields, "colour": {"a": 1}, **({"version": [1, 7]} if kind == "HEAD" else {})}


def test_unknown_keys_and_kinds_of_a_newer_minor_version_are_ignored(folder: Path) -> None:
    for path in folder.rglob("index.snapshot"):
        path.unlink()
    rewritten(folder, (1, 7), newer)
    with open(journal_of(folder), "ab") as journal:
        journal.write(encode_record("PAINTED", {"colour": "blue"}))
    assert bytes_of(folder) == CONTENT


def test_another_major_version_of_a_journal_is_named(folder: Path) -> None:
    rewritten(folder, (2, 0), lambda kind, fields: {**fields, **({"version": [2, 0]} if kind == "HEAD" else {})})
    with pytest.raises(UnsupportedVersion, match=r"version \[2, 0\]") as caught:
        list(read_journal(journal_of(folder)))
    assert (caught.value.ours[0], caught.value.theirs) == (1, [2, 0])


def with_directory(path: Path, version: tuple[int, int], more: dict[str, Any]) -> None:
    """Write a snapshot as another version would."""
    whole = path.read_bytes()
    at, length, _ = TRAILER.unpack(whole[-TRAILER.size :])
    head = whole[:3] + bytes(version) + whole[5:8]
    text = msgpack.packb({**msgpack.unpackb(whole[at : at + length], strict_map_key=False), **more})
    path.write_bytes(head + whole[8:at] + text + TRAILER.pack(at, len(text), xxh3_64_intdigest(head + text)))


def test_snapshots_of_newer_versions_are_read_or_refused(folder: Path) -> None:
    path = folder / "beamline" / BEAMTIME / "det" / "hits" / "index.snapshot"
    with_directory(path, (1, 7), {"colour": "blue"})
    assert len(Snapshot(path).load()) == 3
    with_directory(path, (2, 0), {})
    with pytest.raises(UnsupportedVersion):
        Snapshot(path)
    assert bytes_of(folder) == CONTENT  # from the journals


def test_indexes_of_newer_versions_are_used_or_refused(folder: Path) -> None:
    def make(version: int) -> None:
        with closing(sqlite3.connect(folder / INDEX)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS painted(colour TEXT)")
            connection.execute(f"PRAGMA user_version = {version}")

    make(MAJOR << 16 | 77)
    index = SqliteIndex(folder / INDEX, BEAMTIME)
    assert index.stream_no(StreamRef(BEAMTIME, "det", "hits")) is not None
    index.close()
    with closing(sqlite3.connect(folder / INDEX)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (MAJOR << 16 | 77,)
    make(2 << 16)
    with pytest.raises(UnsupportedVersion, match="rebuild the index"):
        SqliteIndex(folder / INDEX, BEAMTIME)
