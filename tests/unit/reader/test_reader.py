import gc
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from asapo.errors import ChecksumMismatch, DamagedFile, StorageError
from asapo.hostinfo import boot_id
from asapo.models import Format, SegmentInfo, StreamRef
from asapo.reader import PayloadReader, SegmentMaps, array_of, check_payload
from asapo.reader.payloads import pread_payload
from asapo.storage.store import StreamStore
from asapo.storage.tier import Tier

REF = StreamRef("b", "s", "t")


def info(path: str | Path, tier: Tier, **changes: str) -> SegmentInfo:
    facts = {"receiver_id": "r1", "boot_id": boot_id(), "tier_uuid": tier.uuid, **changes}
    return SegmentInfo(path=str(path), **facts)


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return Tier.open(tmp_path)


def segment_of(tier: Tier, name: str, content: bytes) -> SegmentInfo:
    path = tier.root / "b" / "s" / "t" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return info(path, tier)


def no_fetch() -> bytes:
    raise AssertionError("fetched although the file is here")


def digest(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


@pytest.mark.needs_linux
def test_what_a_store_wrote_is_mapped_without_a_copy(tier: Tier) -> None:
    store = StreamStore(tier, "r1", 1)
    frame = np.arange(12, dtype="<u2").reshape(3, 4)
    slot = store.reserve(REF, frame.nbytes)
    store.write(slot, [frame.tobytes()])
    store.journal_put(slot, b"h", 1)
    reader = PayloadReader(verify=True)
    segment = info(slot.segment.path, tier)
    payload = reader.read(
        segment, slot.offset, slot.size, checksum=digest(frame.tobytes()), fetch=no_fetch
    )  # while the receiver still writes
    array = array_of(payload, Format("<u2", (3, 4)))
    np.testing.assert_array_equal(array, frame)
    assert isinstance(payload.obj, mmap.mmap)
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert store.close()
    np.testing.assert_array_equal(array, frame)
    reader.close()


def test_a_segment_is_mapped_once_for_all_its_messages(tier: Tier) -> None:
    maps = SegmentMaps()
    segment = segment_of(tier, "a.seg", bytes(range(256)) * 16)
    views = [maps.view(segment, 16 * number, 16) for number in range(256)]
    assert len({id(view.obj) for view in views}) == len(maps) == 1
    assert maps.mapped_bytes == 4096
    assert [bytes(view) for view in views[:16]] == [bytes(range(16 * n, 16 * n + 16)) for n in range(16)]
    assert all(view.readonly for view in views)


def test_a_segment_that_grew_is_mapped_anew(tier: Tier) -> None:
    maps = SegmentMaps()
    segment = segment_of(tier, "a.seg", b"a" * 100)
    first = maps.view(segment, 0, 100)
    with open(segment.path, "ab") as file:
        file.write(b"b" * 100)
    second = maps.view(segment, 100, 100)
    assert (bytes(first), bytes(second)) == (b"a" * 100, b"b" * 100)
    assert len(maps) == 1
    assert maps.mapped_bytes == 200


def test_maps_are_bounded_and_eviction_leaves_live_views_alone(tier: Tier) -> None:
    maps = SegmentMaps(limit_maps=2)
    segments = [segment_of(tier, f"{n}.seg", bytes([65 + n]) * 5000) for n in range(5)]
    views = [maps.view(segment, 1000, 4000) for segment in segments]
    assert len(maps) == 2
    assert maps.mapped_bytes == 10_000
    gc.collect()
    assert [bytes(view) for view in views] == [bytes([65 + n]) * 4000 for n in range(5)]
    maps.close()
    assert len(maps) == maps.mapped_bytes == 0
    assert bytes(views[4]) == b"E" * 4000


def test_address_space_is_bounded_too(tier: Tier) -> None:
    maps = SegmentMaps(limit_bytes=10_000)
    for n in range(4):
        maps.view(segment_of(tier, f"{n}.seg", bytes(4000)), 0, 1)
    assert len(maps) == 2
    maps.view(segment_of(tier, "big.seg", bytes(50_000)), 0, 1)
    assert len(maps) == 1


@pytest.mark.needs_linux
def test_an_evicted_map_is_unmapped_when_its_last_view_is_gone(tier: Tier) -> None:
    maps = SegmentMaps(limit_maps=1)
    segment = segment_of(tier, "first.seg", b"x" * 5000)
    view: Any = maps.view(segment, 0, 5000)
    maps.view(segment_of(tier, "second.seg", b"y"), 0, 1)
    assert "first.seg" in Path("/proc/self/maps").read_text()
    del view
    gc.collect()
    assert "first.seg" not in Path("/proc/self/maps").read_text()


def test_reading_beyond_the_end_names_file_and_place(tier: Tier) -> None:
    segment = segment_of(tier, "a.seg", b"x" * 100)
    for read in (SegmentMaps().view, lambda s, offset, size: pread_payload(s.path, offset, size)):
        with pytest.raises(DamagedFile) as caught:
            read(segment, 90, 11)
        assert (caught.value.path, caught.value.offset) == (segment.path, 100)
    empty = segment_of(tier, "e.seg", b"")
    with pytest.raises(DamagedFile):
        SegmentMaps().view(empty, 0, 1)


def test_a_file_that_was_cut_after_it_was_mapped_is_damaged_and_not_a_crash(tier: Tier) -> None:
    maps = SegmentMaps()
    segment = segment_of(tier, "a.seg", b"x" * 10_000)
    maps.view(segment, 0, 10)
    os.truncate(segment.path, 4096)
    with pytest.raises(DamagedFile) as caught:
        maps.view(segment, 9000, 100)
    assert caught.value.offset == 4096


def test_a_window_reaches_to_the_end_that_the_file_has_when_it_is_asked_for(tier: Tier) -> None:
    maps = SegmentMaps()
    segment = segment_of(tier, "a.seg", b"x" * 100)
    assert maps.window(segment, 10).nbytes == 100
    with open(segment.path, "ab") as file:
        file.write(b"y" * 100)
    assert maps.window(segment, 100).nbytes == 100
    grown = maps.window(segment, 101)
    assert bytes(grown) == b"x" * 100 + b"y" * 100
    assert grown.readonly
    os.truncate(segment.path, 150)
    assert maps.window(segment, 150).nbytes == 150
    with pytest.raises(DamagedFile) as caught:
        maps.window(segment, 151)
    assert caught.value.offset == 150


@pytest.mark.needs_linux
def test_only_a_file_of_this_host_and_of_the_named_tier_is_mapped(tier: Tier) -> None:
    maps = SegmentMaps()
    segment = segment_of(tier, "a.seg", b"x")
    assert maps.can_map(segment)
    assert not maps.can_map(info(segment.path, tier, boot_id="another"))
    assert not maps.can_map(info(segment.path, tier, boot_id=""))
    assert not maps.can_map(info(segment.path, tier, tier_uuid=""))
    assert not maps.can_map(info(segment.path, tier, tier_uuid="11111111-1111-1111-1111-111111111111"))
    assert not maps.can_map(info("/no/tier/b/s/t/x.seg", tier))


def test_a_payload_of_another_host_is_fetched(tier: Tier) -> None:
    segment = segment_of(tier, "a.seg", b"wrong")
    other = info(segment.path, tier, boot_id="another host")
    reader = PayloadReader(verify=True)
    payload = reader.read(other, 0, 5, checksum=digest(b"right"), fetch=lambda: bytearray(b"right"))
    assert bytes(payload) == b"right"
    assert payload.readonly
    assert bytes(reader.read(None, 0, 2, checksum=digest(b"ab"), fetch=lambda: b"ab")) == b"ab"


def test_a_file_that_is_gone_here_is_fetched(tier: Tier) -> None:
    segment = segment_of(tier, "a.seg", b"right")
    os.unlink(segment.path)
    payload = PayloadReader().read(segment, 0, 5, checksum=0, fetch=lambda: b"right")
    assert bytes(payload) == b"right"


def test_a_fetched_payload_of_another_size_is_refused(tier: Tier) -> None:
    with pytest.raises(StorageError, match="3 bytes of a message of 5"):
        PayloadReader().read(None, 0, 5, checksum=0, fetch=lambda: b"abc")


@pytest.mark.needs_linux
def test_when_no_map_can_be_had_the_file_is_read(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = segment_of(tier, "a.seg", b"0123456789")
    reader = PayloadReader(verify=True)

    def refuse(*_args: Any, **_keywords: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    payload = reader.read(segment, 2, 5, checksum=digest(b"23456"), fetch=no_fetch)
    assert bytes(payload) == b"23456"
    assert payload.readonly


def test_an_empty_payload_needs_no_file() -> None:
    assert PayloadReader().read(None, 0, 0, checksum=digest(b""), fetch=no_fetch).nbytes == 0


def test_changed_bytes_are_found_by_the_checksum(tier: Tier) -> None:
    segment = segment_of(tier, "a.seg", b"changed")
    for place in (segment, None):
        with pytest.raises(ChecksumMismatch) as caught:
            PayloadReader(verify=True).read(place, 0, 7, checksum=digest(b"correct"), fetch=lambda: b"changed")
        assert caught.value.expected == digest(b"correct")
        assert caught.value.found == digest(b"changed")
    assert bytes(PayloadReader().read(segment, 0, 7, checksum=0, fetch=lambda: b"changed")) == b"changed"
    check_payload(b"correct", digest(b"correct"))
