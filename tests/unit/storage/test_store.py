from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asapo.errors import DiskFull, LocalProtocolError, StorageError
from asapo.models import StreamRef
from asapo.storage.journal import Damage, JournalRecord, read_journal
from asapo.storage.layout import journal_path, parse_segment_name
from asapo.storage.store import SegmentHandle, Slot, StreamStore
from asapo.storage.tier import Tier

REF = StreamRef("bt", "det", "scan 1")


class Watched:
    """A store, and what it told."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.begun: list[SegmentHandle] = []
        self.existed: list[bool] = []
        self.closed: list[SegmentHandle] = []
        self.store = StreamStore(
            Tier.open(root), "r1", 1, on_opening=self._begin, on_closed=self.closed.append, **settings
        )

    def _begin(self, segment: SegmentHandle) -> None:
        self.begun.append(segment)
        self.existed.append(Path(segment.path).exists())

    def put(self, ref: StreamRef, payload: bytes, header: bytes = b"header") -> Slot:
        slot = self.store.reserve(ref, len(payload))
        self.store.write(slot, [payload])
        self.store.journal_put(slot, header, 1)
        return slot


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path, segment_bytes=100_000, open_segments=3)
    yield watched
    assert watched.store.close()


def journal_of(segment: SegmentHandle) -> list[JournalRecord]:
    items = list(read_journal(journal_path(segment.path)))
    assert not [item for item in items if isinstance(item, Damage)]
    return [item for item in items if isinstance(item, JournalRecord)]


def test_a_unit_lies_where_its_journal_says(watched: Watched) -> None:
    watched.put(REF, b"a" * 100)
    slot = watched.store.reserve(REF, 150)
    watched.store.write(slot, [b"b" * 100, memoryview(b"c" * 50)])
    watched.store.journal_put(slot, b"wire header", 77, skip=[1])
    record = journal_of(slot.segment)[-1]
    assert record.fields == {"at": "segment", "offset": 128, "t": 77, "put": b"wire header", "skip": [1]}
    assert Path(slot.segment.path).read_bytes()[128:278] == b"b" * 100 + b"c" * 50


def test_head_names_the_stream_and_the_segment(watched: Watched) -> None:
    slot = watched.put(REF, b"a")
    fields = journal_of(slot.segment)[0].fields
    assert (fields["beamtime"], fields["source"], fields["stream"]) == ("bt", "det", "scan 1")
    assert (fields["receiver"], fields["epoch"], fields["number"]) == ("r1", 1, 1)
    assert fields["segment"] == Path(slot.segment.path).name == "r1-1-000001.seg"
    assert fields["created_ns"] > 0


def test_big_units_start_at_a_page_and_small_ones_at_64_bytes(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    offsets = [watched.put(REF, bytes(size)).offset for size in (1, 65, 1_000_000, 10, 999_999, 1_000_001)]
    assert offsets == [0, 64, 4096, 1_004_096, 1_004_160, 2_007_040]
    assert watched.store.close()


def test_a_closed_segment_ends_at_its_last_byte_and_its_journal_says_so(watched: Watched) -> None:
    slot = watched.put(REF, b"x" * 1000)
    assert Path(slot.segment.path).stat().st_size > 1000
    watched.store.close_stream(REF)
    assert Path(slot.segment.path).stat().st_size == 1000
    assert [record.kind for record in journal_of(slot.segment)] == ["HEAD", "PUT", "CLOSED"]
    assert journal_of(slot.segment)[-1].fields == {"bytes": 1000}
    assert watched.closed == [slot.segment]


def test_a_full_segment_is_followed_by_a_new_one(watched: Watched) -> None:
    slots = [watched.put(REF, bytes(40_000)) for _ in range(5)]
    assert [(slot.segment.number, slot.offset) for slot in slots] == [(1, 0), (1, 40_000), (2, 0), (2, 40_000), (3, 0)]
    assert [segment.number for segment in watched.begun] == [1, 2, 3]
    assert [segment.number for segment in watched.closed] == [1, 2]


def test_a_unit_longer_than_a_segment_gets_its_own(watched: Watched) -> None:
    numbers = [watched.put(REF, bytes(size)).segment.number for size in (10, 300_000, 10)]
    assert numbers == [1, 2, 3]


def test_a_unit_that_fills_the_segment_to_its_last_byte_still_fits(watched: Watched) -> None:
    assert [watched.put(REF, bytes(size)).segment.number for size in (64, 100_000 - 64, 1)] == [1, 1, 2]


def test_open_segments_are_bounded_and_the_longest_unused_goes_first(watched: Watched) -> None:
    refs = [StreamRef("b", "s", f"t{number}") for number in range(4)]
    for ref in refs[:3]:
        watched.put(ref, b"x")
    watched.put(refs[0], b"x")
    watched.put(refs[3], b"x")
    assert watched.store.open_segments == 3
    assert [segment.ref for segment in watched.closed] == [refs[1]]
    again = watched.put(refs[1], b"x").segment
    assert again.number == 5
    assert again.path != watched.closed[0].path


def test_a_segment_with_slots_out_is_not_closed_under_them(watched: Watched) -> None:
    refs = [StreamRef("b", "s", f"t{number}") for number in range(4)]
    slots = [watched.store.reserve(ref, 10) for ref in refs]
    assert watched.store.open_segments == 4
    for slot in slots:
        watched.store.write(slot, [b"0123456789"])
        watched.store.journal_put(slot, b"h", 1)
    assert [journal_of(slot.segment)[1].kind for slot in slots] == ["PUT"] * 4


def test_rotation_waits_for_the_slots_of_the_old_segment(watched: Watched) -> None:
    first = watched.store.reserve(REF, 60_000)
    second = watched.store.reserve(REF, 60_000)
    assert second.segment.number == first.segment.number + 1
    assert watched.closed == []
    watched.store.write(first, [b"1" * 60_000])
    watched.store.journal_put(first, b"h", 1)
    assert watched.closed == [first.segment]
    assert Path(first.segment.path).read_bytes() == b"1" * 60_000
    watched.store.abort(second)


def test_a_segment_is_told_of_before_it_is_there(watched: Watched) -> None:
    slot = watched.store.reserve(REF, 3)
    assert (watched.begun, watched.existed) == ([slot.segment], [False])


def test_a_segment_that_nobody_can_be_told_of_is_not_made(tmp_path: Path) -> None:
    def fail(segment: SegmentHandle) -> None:
        raise DiskFull("no room", free_bytes=0, path=segment.path)

    store = StreamStore(Tier.open(tmp_path), "r1", 1, on_opening=fail)
    with pytest.raises(DiskFull):
        store.reserve(REF, 3)
    assert [path for path in tmp_path.rglob("*") if parse_segment_name(path.name)] == []
    assert store.close()


def test_a_segment_without_records_leaves_no_file_and_no_word(watched: Watched, tmp_path: Path) -> None:
    slot = watched.store.reserve(REF, 3)
    watched.store.abort(slot)
    watched.store.close_stream(REF)
    assert [path for path in tmp_path.rglob("*") if parse_segment_name(path.name)] == []
    assert watched.closed == []


def test_the_room_of_an_aborted_slot_is_used_again(watched: Watched) -> None:
    first = watched.store.reserve(REF, 100)
    watched.store.abort(first)
    watched.store.abort(first)
    assert watched.put(REF, b"x" * 50).offset == 0


def test_an_abort_before_the_last_slot_leaves_a_hole_and_no_overlap(watched: Watched) -> None:
    first, second = watched.store.reserve(REF, 100), watched.store.reserve(REF, 100)
    watched.store.abort(first)
    watched.store.write(second, [b"2" * 100])
    watched.store.journal_put(second, b"h", 1)
    assert watched.put(REF, b"3").offset == 256


def test_a_unit_without_payload_is_journaled_as_such(watched: Watched) -> None:
    slot = watched.put(REF, b"")
    assert journal_of(slot.segment)[-1].fields["at"] == "none"


def test_records_about_a_stream_or_a_unit_go_to_the_open_journal(watched: Watched) -> None:
    old = watched.put(REF, bytes(90_000))
    new = watched.put(REF, bytes(90_000))
    watched.store.journal(REF, "SUPERSEDED", {"ids": [4], "offset": old.offset}, slot=old)
    watched.store.journal(REF, "FINISH", {"last_id": 4})
    found = journal_of(new.segment)[-2:]
    assert [(record.kind, record.fields) for record in found] == [
        ("SUPERSEDED", {"ids": [4], "offset": 0, "segment": "r1-1-000001.seg"}),
        ("FINISH", {"last_id": 4}),
    ]


def test_a_beamtime_has_a_journal_of_its_own(watched: Watched, tmp_path: Path) -> None:
    watched.store.journal_beamtime("bt 1", "META", {"meta": {"a": 1}})
    watched.store.journal_beamtime("bt 1", "META", {"meta": {"a": 2}})
    (path,) = (tmp_path / "bt%201").iterdir()
    records = [item for item in read_journal(path) if isinstance(item, JournalRecord)]
    assert records[0].fields["beamtime"] == "bt 1"
    assert [record.fields for record in records[1:]] == [{"meta": {"a": 1}}, {"meta": {"a": 2}}]


def test_idle_segments_are_closed_when_asked(watched: Watched) -> None:
    watched.put(REF, b"x")
    assert watched.store.close_idle(3600) == 0
    assert watched.store.close_idle(0) == 1
    assert watched.store.open_segments == 0


def test_more_bytes_than_reserved_are_our_own_fault(watched: Watched) -> None:
    slot = watched.store.reserve(REF, 10)
    with pytest.raises(LocalProtocolError, match="where 10 were reserved"):
        watched.store.write(slot, [b"x" * 11])
    watched.store.abort(slot)


def test_a_slot_is_journaled_once(watched: Watched) -> None:
    slot = watched.put(REF, b"x")
    with pytest.raises(LocalProtocolError, match="already"):
        watched.store.journal_put(slot, b"h", 1)
    with pytest.raises(LocalProtocolError, match="already"):
        watched.store.write(slot, [b"y"])


def test_a_file_of_the_same_name_is_never_written_into(tmp_path: Path) -> None:
    first, second = Watched(tmp_path), Watched(tmp_path)
    first.put(REF, b"first")
    with pytest.raises(StorageError, match="File exists"):
        second.store.reserve(REF, 1)
    slot = second.put(REF, b"second")
    assert slot.segment.number == 2
    assert first.store.close()
    assert second.store.close()
    assert Path(first.begun[0].path).read_bytes() == b"first"


def test_nothing_is_opened_after_close(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.store.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        watched.store.reserve(REF, 1)
    with pytest.raises(LocalProtocolError, match="closed"):
        watched.store.journal_beamtime("b", "META", {})
