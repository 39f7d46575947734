"""`index.snapshot`: what it holds, how it is known to be out of date, and that damage is always seen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asapo.errors import AsapoError, DamagedFile, UnsupportedVersion
from asapo.index.answers import rows_by_id, rows_by_seq
from asapo.index.snapshot import Snapshot, why_stale
from asapo.index.snapshot_write import NotReady, write_snapshot
from asapo.models import MAX_ID, Format, Origin, StreamRef
from asapo.storage.recorded import journals_in
from tests.recording import BEAMTIME, Recording

REF = StreamRef(BEAMTIME, "det", "s")


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    found = Recording(tmp_path / "data")
    yield found
    found.directory.close()


def written(recording: Recording, **settings: Any) -> Path:
    folder = recording.folder / "det" / "s"
    return write_snapshot(
        folder, recording.directory.path(BEAMTIME), REF, list(journals_in(folder).values()), **settings
    )


def fill(recording: Recording, kind: str) -> None:
    """Record a stream of some kind and finish it."""
    if kind == "dense":
        for first in range(1, 40, 4):
            recording.put(range(first, first + 4), metas=["{}"] * 4, payloads=[b"1234"] * 4)
    elif kind == "shuffled":
        for message_id in (9, 3, 4, 1, 40, 2):
            recording.put([message_id], metas=[f'{{"ä":{"é" * message_id!r}}}'.replace("'", '"')])
    elif kind == "datasets":
        for message_id in (3, 1, 2):
            for part in (2, 1, 3)[: 2 if message_id == 3 else 3]:
                recording.put([message_id], substream=part, dataset_size=3, form=Format("<u2", (1,)), payloads=[b"ab"])
    elif kind == "memory":
        recording.put([1, 2])
        recording.put([3], level="memory")
        recording.put([4], origins=[Origin("det", "other", 7)])
    elif kind == "extreme":
        recording.put([1, MAX_ID - 1])
        recording.put([MAX_ID])
    recording.finish(MAX_ID if kind == "extreme" else 50, next_stream="more")


KINDS = ["dense", "shuffled", "datasets", "memory", "extreme", "empty"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_index(recording: Recording, kind: str) -> None:
    fill(recording, kind)
    snapshot = Snapshot(written(recording))
    columns = snapshot.load()
    index = recording.index
    no = index.stream_no(REF)
    assert no is not None
    stored = [row for row in index.rows_after_seq(no, 0, 1000) if row[4] > 0]
    assert columns.after_seq(0, 1000) == stored
    assert columns.after_seq(2, 2) == [row for row in stored if row[1] > 2][:2]
    by_id = [row for row in index.rows_from_id(no, 0, MAX_ID + 1, 1000) if row[4] > 0]
    assert columns.from_id(0, MAX_ID, 1000) == by_id
    assert columns.by_id(0, 1000) == by_id
    assert columns.from_id(2, 4, 2) == [row for row in by_id if 2 <= row[0] <= 4][:2]
    assert columns.from_id(4, 2, 9) == []
    last = index.last_row(no)
    assert columns.last_complete() == (0 if last is None else last[0])
    forms = index.formats({row[8] for row in stored})
    assert snapshot.formats == {no: [form.dtype, list(form.shape), form.codec] for no, form in forms.items()}
    assert {name for _, name in snapshot.origins.values()} == ({"other"} if kind == "memory" else set())
    index.close_session(b"s" * 16)
    info = index.stream_info(REF)
    assert (snapshot.info.ref, snapshot.info.last_id, snapshot.info.next_stream) == (REF, info.last_id, "more")
    assert snapshot.info.closed_below == info.closed_below
    assert (snapshot.info.n_messages, snapshot.lost) == (len(stored), info.n_messages - len(stored))


def test_it_is_written_only_when_the_index_has_everything(recording: Recording) -> None:
    recording.put([1])
    with pytest.raises(NotReady, match="not finished"):
        written(recording)
    other = Recording(recording.state.parent, receiver="r2")
    other.put([2])
    recording.finish(9)
    with pytest.raises(NotReady, match=r"r2-1-000001\.idx is open"):
        written(recording)
    other.close()
    snapshot = Snapshot(written(recording))
    assert [mark.name for mark in snapshot.journals] == ["r1-1-000001.idx", "r2-1-000001.idx"]
    assert list(snapshot.load().ids) == [1, 2]


def test_nothing_is_left_of_a_write_that_failed(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(recording, "dense")
    monkeypatch.setattr("asapo.index.snapshot_write._fill", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(recording)
    assert not list((recording.folder / "det" / "s").glob("index.snapshot*"))


def test_drafts_of_killed_processes_are_removed(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(recording, "dense")
    draft = recording.folder / "det" / "s" / "index.snapshot.0123"
    draft.write_bytes(b"half")
    written(recording)
    assert draft.exists()  # somebody may be at it
    monkeypatch.setattr("asapo.index.snapshot_write.DRAFT_S", -1.0)
    written(recording)
    assert not draft.exists()


def test_what_changes_nothing_leaves_it_good(recording: Recording) -> None:
    fill(recording, "dense")
    snapshot = Snapshot(written(recording))
    assert recording.put([1], payloads=[b"other"]) == [0]
    assert recording.put([1], metas=["{}"], payloads=[b"1234"]) == [0]
    recording.store.close_stream(REF)
    folder = recording.folder / "det" / "s"
    # The units were stored before the index refused them, so their journal has PUTs and must be read.
    assert "PUT record behind" in why_stale(snapshot, journals_in(folder))
    fresh = Snapshot(written(recording))
    recording.store.journal(REF, "SUPERSEDED", {"ids": [], "segment": "x.seg", "offset": 0, "t": 0, "indices": []})
    recording.store.close_stream(REF)
    assert why_stale(fresh, journals_in(folder)) == ""


@pytest.mark.parametrize("what", ["put", "meta", "damage", "torn"])
def test_what_came_later_makes_it_stale(recording: Recording, what: str) -> None:
    fill(recording, "dense")
    snapshot = Snapshot(written(recording))
    folder = recording.folder / "det" / "s"
    assert why_stale(snapshot, journals_in(folder)) == ""
    (journal,) = recording.journals()
    if what == "put":
        recording.put([45])
    elif what == "meta":
        recording.meta("{}")
    else:
        with open(journal, "ab") as file:
            file.write(b"\xa5\x5a\xc3\x3c" + b"\x09\0\0\0" + bytes(8) + bytes(30 if what == "damage" else 3))
            file.write(journal.read_bytes()[8:] if what == "damage" else b"")
    why = why_stale(snapshot, journals_in(folder))
    assert ("damaged" in why) if what == "damage" else (why == "") if what == "torn" else (what.upper() in why)


def test_a_shorter_journal_than_before_is_no_news(recording: Recording) -> None:
    fill(recording, "dense")
    snapshot = Snapshot(written(recording))
    (journal,) = recording.journals()
    journal.write_bytes(journal.read_bytes()[:100])
    assert why_stale(snapshot, journals_in(journal.parent)) == ""


def test_every_flipped_byte_is_seen(recording: Recording) -> None:
    fill(recording, "shuffled")
    path = written(recording)
    whole = path.read_bytes()
    good = Snapshot(path)
    rows = good.load().after_seq(0, 100)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            found = Snapshot(path)
            again = found.load().after_seq(0, 100)
        except (DamagedFile, UnsupportedVersion):
            continue
        assert whole[at] == 0, at  # padding between sections, which nobody reads
        assert (found.info, again) == (good.info, rows)


def test_every_cut_is_seen(recording: Recording) -> None:
    fill(recording, "memory")
    path = written(recording)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedFile):
            Snapshot(path)


def test_a_newer_major_version_is_refused(recording: Recording) -> None:
    fill(recording, "dense")
    path = written(recording)
    path.write_bytes(b"ASN\x02" + path.read_bytes()[4:])
    with pytest.raises(UnsupportedVersion, match=r"version 2\.0") as caught:
        Snapshot(path)
    assert caught.value.theirs == [2, 0]


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(AsapoError):
        Snapshot(tmp_path / "none")


def test_rows_by_id_and_by_arrival_bring_whole_datasets(recording: Recording) -> None:
    from asapo_work.offline.folder import Folder

    fill(recording, "datasets")
    written(recording)
    stream = Folder([recording.folder], BEAMTIME).stream("det", "s")
    assert stream is not None
    rows, covered = rows_by_id(stream, 0, 1, 100, 2)
    assert ([row[0] for row in rows], covered) == ([1, 1, 1], 2)
    rows, covered = rows_by_seq(stream, 0, 4, 100, 1)
    assert ([row[:3] for row in rows], covered) == ([(1, 4, 1), (1, 3, 2), (1, 5, 3)], 6)
