"""An index made anew from journals is the one that was there before; what is damaged is left out and named."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from asapo.errors import WrongInput
from asapo.index import SqliteIndex
from asapo.index.rebuild import Rebuilt, rebuild
from asapo.models import Format, Origin, StreamRef
from asapo.storage.journal import FILE_HEADER, JournalRecord, read_journal
from asapo.storage.recorded import find_recorded
from asapo.testing.memory_index import MemoryIndex
from tests.recording import BEAMTIME, Recording, dump

FRAME = Format("<u2", (2, 3))


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    found = Recording(tmp_path / "data")
    yield found
    found.directory.close()


def anew(folders: list[Path], place: Path) -> tuple[Path, Rebuilt]:
    """Rebuild an index at `place`; return its file and the report."""
    database = place / "index.sqlite"
    index = SqliteIndex(database, BEAMTIME)
    try:
        return database, rebuild(index, find_recorded(folders))
    finally:
        index.close()


def every_kind(recording: Recording) -> None:
    """Record everything that a receiver writes today."""
    recording.meta('{"proposal":42}', stream="")
    recording.meta('{"proposal":43}', stream="")
    recording.put([1, 2, 3], payloads=[b"a" * 12, b"b" * 12, b"c" * 12], form=FRAME)
    recording.meta('{"sample":"water"}')
    recording.put([7, 9])
    assert recording.put([2, 3, 4], payloads=[b"b" * 12, b"c" * 12, b"d" * 12], form=FRAME) == [0, 1]
    assert recording.put([7], payloads=[b"other"]) == [0]
    for part in (1, 2, 3):
        recording.put([5], stream="modules", substream=part, dataset_size=3)
    recording.put([6], stream="modules", substream=1, dataset_size=3)
    recording.put([1], source="hits", origins=[Origin("det", "s", 7)])
    recording.put([2], source="hits", origins=[Origin("far", "away", 1)])
    recording.put([1], stream="empty payload", payloads=[b""])
    recording.put([1], stream="files", path="scan1/one.cbf", payloads=[b"one"])
    assert recording.put([1], stream="files", path="scan1/one.cbf", payloads=[b"one"]) == [0]  # the same file
    assert recording.put([2], stream="files", path="scan1/one.cbf", payloads=[b"one"]) == [0]
    recording.put([3], stream="files", payloads=[b"in a segment"])
    recording.put([4], stream="files", path="scan1/ä.cbf", payloads=[b""])
    assert recording.put([3], stream="files", path="late.cbf", payloads=[b"in a segment"]) == [0]  # spare
    recording.finish(9, next_stream="s2")
    with pytest.raises(WrongInput):
        recording.finish(8)  # refused, but in the journal
    assert recording.put([10]) == [0]  # above the end
    assert recording.put([8]) == []  # below it: late, but good
    recording.finish(0, stream="nothing")


def test_every_kind_of_record_is_in_the_index_as_before(recording: Recording, tmp_path: Path) -> None:
    every_kind(recording)
    recording.close()
    after, report = anew([recording.folder], tmp_path)
    assert dump(after) == dump(recording.directory.path(BEAMTIME))
    assert not report.damages
    assert not report.mixed
    assert report.withdrawn == 7
    assert report.messages == 17


def test_notes_that_were_never_written_change_nothing(recording: Recording, tmp_path: Path) -> None:
    recording.put([1, 2])
    for ids in ([2, 3], [1, 4]):
        original, recording.store.journal = recording.store.journal, lambda *_, **__: None  # type: ignore[method-assign]
        recording.put(ids, payloads=[b"other", b"new"])
        recording.store.journal = original  # type: ignore[method-assign]
    recording.close()
    after, _ = anew([recording.folder], tmp_path)
    assert dump(after) == dump(recording.directory.path(BEAMTIME))


def test_streams_that_followed_restarts_keep_their_order(recording: Recording, tmp_path: Path) -> None:
    for epoch in (1, 2, 10):
        life = Recording(tmp_path / "data", epoch=epoch, segment_bytes=2**20)
        life.put([epoch * 10 + 2])
        life.put([epoch * 10 + 1])
        life.close()
    after, report = anew([recording.folder], tmp_path)
    assert dump(after) == dump(recording.directory.path(BEAMTIME))
    assert report.journals == 3


def test_between_receivers_the_time_of_arrival_decides(tmp_path: Path) -> None:
    first, second = Recording(tmp_path / "data"), Recording(tmp_path / "data", receiver="r2")
    for number in range(1, 21):
        one = (first, second)[number % 2]
        one.now_ns = first.now_ns + second.now_ns - one.now_ns  # both clocks go on together
        one.put([number])
    assert second.put([2, 50]) == [0]  # the same again by another receiver: its bytes are spare
    assert first.put([1], payloads=[b"other"]) == [0]
    second.finish(50)
    for one in (first, second):
        one.close()
    after, report = anew([first.folder], tmp_path)
    before = first.directory.path(BEAMTIME)
    assert dump(after, seq=False) == dump(before, seq=False)
    assert [str(ref) for ref in report.mixed] == ["bt1/det/s"]


def test_a_clock_that_was_set_back_does_not_turn_the_order_around(recording: Recording, tmp_path: Path) -> None:
    recording.put([1])
    recording.now_ns -= 3_600_000_000_000
    recording.put([2])
    recording.finish(2)
    recording.close()
    after, _ = anew([recording.folder], tmp_path)
    assert dump(after) == dump(recording.directory.path(BEAMTIME))


def test_a_beamtime_on_two_tiers_becomes_one_index(tmp_path: Path) -> None:
    first, second = Recording(tmp_path / "data"), Recording(tmp_path / "data", receiver="r2", tier="fast")
    first.put([1, 2])
    second.now_ns = first.now_ns
    second.put([3])
    second.put([1], stream="only there")
    for one in (first, second):
        one.close()
    after, report = anew([first.folder, second.folder], tmp_path)
    assert dump(after) == dump(first.directory.path(BEAMTIME))
    assert report.messages == 4


def small(root: Path) -> Recording:
    """Record a stream whose journal is short: every byte of it is tried."""
    recording = Recording(root)
    recording.put([1])
    recording.put([2], payloads=[b"two"])
    recording.put([2], payloads=[b"other"])
    recording.put([3])
    recording.close()
    return recording


def rows_anew(folder: Path) -> tuple[dict[int, tuple[int, int, str]], Rebuilt]:
    """Rebuild in memory, which is fast; return size, checksum and metadata by id, and the report."""
    index = MemoryIndex(BEAMTIME)
    report = rebuild(index, find_recorded([folder]))
    no = index.stream_no(StreamRef(BEAMTIME, "det", "s"))
    rows = index.rows_from_id(no, 1, 100, 100) if no is not None else []
    return {row[0]: (row[6], row[7], row[9]) for row in rows}, report


def whole_before(path: Path, size: int) -> set[int]:
    """Return the ids of messages whose PUT is whole within the first `size` bytes."""
    puts = [item for item in read_journal(path) if isinstance(item, JournalRecord) and item.kind == "PUT"]
    ids = [1, 2, 2, 3]
    return {ids[at] for at, record in enumerate(puts) if record.offset + record.size <= size}


def test_a_journal_cut_anywhere_in_its_last_records_keeps_the_whole_ones(tmp_path: Path) -> None:
    recording = small(tmp_path / "data")
    (path,) = recording.journals()
    whole = path.read_bytes()
    records = [item for item in read_journal(path) if isinstance(item, JournalRecord)]
    copy = tmp_path / "copy" / BEAMTIME
    shutil.copytree(recording.folder, copy)
    (cut,) = copy.rglob("*.idx")
    ends = {record.offset for record in records} | {len(whole)}
    for size in range(records[-3].offset, len(whole) + 1):
        cut.write_bytes(whole[:size])
        found, report = rows_anew(copy)
        assert set(found) == whole_before(path, size)
        assert [damage.torn for damage in report.damages] == ([] if size in ends else [True])
        assert all(damage.path == str(cut) and damage.offset in ends for damage in report.damages)
        assert not report.damaged


def test_one_flipped_byte_costs_one_record_and_is_named(tmp_path: Path) -> None:
    recording = small(tmp_path / "data")
    (path,) = recording.journals()
    whole = path.read_bytes()
    records = [item for item in read_journal(path) if isinstance(item, JournalRecord)]
    before, _ = rows_anew(recording.folder)
    copy = tmp_path / "copy" / BEAMTIME
    shutil.copytree(recording.folder, copy)
    (flipped,) = copy.rglob("*.idx")
    for at in range(len(whole)):
        flipped.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        found, report = rows_anew(copy)
        hit = next((record for record in records if record.offset <= at < record.offset + record.size), None)
        lost = before.keys() - found.keys()
        assert len(report.damages) == 1, at
        damage = report.damages[0]
        assert (damage.path, damage.offset) == (str(flipped), 0 if hit is None else hit.offset)
        if hit is None or hit.kind != "PUT":
            assert at < len(FILE_HEADER) or hit is not None
            assert not lost
        else:
            assert len(lost) <= 1
        # A flipped REFUSED brings nothing in: the first record of an id counts.
        assert all(found[message_id] == before[message_id] for message_id in found if message_id != 2)
        assert found.get(2) == before[2] or hit is records[2]


def test_records_that_check_but_make_no_sense_are_named(recording: Recording, tmp_path: Path) -> None:
    recording.put([1])
    slot = recording.store.reserve(StreamRef(BEAMTIME, "det", "s"), 3)
    recording.store.write(slot, [b"abc"])
    recording.store.journal_put(slot, b"no header of a Put", 1)
    recording.put([2])
    recording.close()
    after, report = anew([recording.folder], tmp_path)
    assert {key[2] for key in dump(after)["messages"]} == {1, 2}
    (damage,) = report.damaged
    assert "PUT record that cannot be used" in damage.reason


def test_a_stream_nobody_can_name_is_refused(recording: Recording, tmp_path: Path) -> None:
    recording.put([1])
    recording.close()
    (path,) = recording.journals()
    path.write_bytes(bytes(len(path.read_bytes())))
    odd = recording.folder / "det" / "not a name"
    path.parent.rename(odd)
    with pytest.raises(WrongInput, match="neither a journal nor the folder's name tells"):
        anew([recording.folder], tmp_path)
