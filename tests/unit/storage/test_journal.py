from pathlib import Path

import pytest

from asapo.errors import LocalProtocolError, StorageError, UnsupportedVersion
from asapo.storage import journal as journals
from asapo.storage.files import FileOps
from asapo.storage.journal import (
    CHUNK_BYTES,
    FILE_HEADER,
    PREFIX_BYTES,
    Damage,
    JournalRecord,
    JournalWriter,
    Kind,
    encode_record,
    file_header,
    read_journal,
)

GOLDEN_RECORD = "a55ac33c12000000d421a81d464c7bed92a646494e49534881a76c6173745f696403"
HEAD = {"beamtime": "b", "source": "s", "stream": "t", "receiver": "r", "epoch": 1, "number": 1, "segment": "x.seg"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "r-1-000001.idx"
    writer = JournalWriter(str(path), HEAD, FileOps())
    for number in range(4):
        header = bytes([number]) * (20 + number)
        writer.append(Kind.PUT, {"at": "segment", "offset": 64 * number, "t": number, "put": header})
    writer.append(Kind.FINISH, {"last_id": 4, "next_stream": ""})
    writer.append("NEWER_KIND", {"x": [1, 2]})
    writer.close()
    return path


def records(path: Path) -> list[JournalRecord]:
    return [item for item in read_journal(path) if isinstance(item, JournalRecord)]


def test_head_comes_first_and_the_wire_header_is_kept_as_received(path: Path) -> None:
    found = list(read_journal(path))
    assert all(isinstance(item, JournalRecord) for item in found)
    kinds = [item.kind for item in found if isinstance(item, JournalRecord)]
    assert kinds == ["HEAD", "PUT", "PUT", "PUT", "PUT", "FINISH", "NEWER_KIND"]
    head, put = records(path)[0], records(path)[2]
    assert head.fields == {**HEAD, "version": [1, 0]}
    assert put.fields == {"at": "segment", "offset": 64, "t": 1, "put": b"\x01" * 21}


def test_a_cut_at_every_byte_of_the_last_three_records_loses_nothing_before(path: Path, tmp_path: Path) -> None:
    whole, before = path.read_bytes(), records(path)
    cut = tmp_path / "cut.idx"
    for length in range(before[-3].offset, len(whole)):
        cut.write_bytes(whole[:length])
        expected = [item for item in before if item.offset + item.size <= length]
        items = list(read_journal(cut))
        assert [item for item in items if isinstance(item, JournalRecord)] == expected
        end = expected[-1].offset + expected[-1].size
        damages = [item for item in items if isinstance(item, Damage)]
        assert [(item.offset, item.size, item.torn) for item in damages] == [(end, length - end, True)] * (end < length)


def test_a_cut_within_file_header_or_head_is_a_torn_tail(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / "cut.idx"
    for length in range(1, records(path)[1].offset):
        cut.write_bytes(whole[:length])
        items = list(read_journal(cut))
        if length in {8, records(path)[1].offset}:
            continue
        assert [type(item) for item in items] == [Damage], length
        assert isinstance(items[0], Damage)
        assert items[0].torn, length


def test_an_empty_journal_of_a_process_killed_at_once_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "e.idx").touch()
    assert list(read_journal(tmp_path / "e.idx")) == []


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_any_flipped_byte_is_reported_and_costs_at_most_its_record(path: Path, tmp_path: Path, mask: int) -> None:
    whole, before = path.read_bytes(), records(path)
    bad = tmp_path / "bad.idx"
    for at in range(len(whole)):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        items = list(read_journal(bad))
        found = [item for item in items if isinstance(item, JournalRecord)]
        assert found == [item for item in before if not item.offset <= at < item.offset + item.size], at
        damages = [item for item in items if isinstance(item, Damage)]
        assert len(damages) == 1, at
        assert damages[0].path == str(bad)
        assert damages[0].offset <= at < damages[0].offset + damages[0].size


def test_blocks_that_power_loss_left_unwritten_are_a_torn_tail(path: Path) -> None:
    before = records(path)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(5000))
    items = list(read_journal(path))
    assert items[:-1] == before
    assert isinstance(items[-1], Damage)
    assert (items[-1].offset, items[-1].size, items[-1].torn) == (size, 5000, True)


def test_reading_goes_on_behind_damage_that_is_longer_than_a_chunk(path: Path) -> None:
    last = encode_record("PUT", {"offset": 7})
    with path.open("ab") as file:
        file.write(b"\xa5" * (CHUNK_BYTES + 3) + last)
    items = list(read_journal(path))
    assert isinstance(items[-1], JournalRecord)
    assert items[-1].fields == {"offset": 7}
    assert isinstance(items[-2], Damage)
    assert not items[-2].torn


def test_a_length_beyond_the_file_takes_no_memory_and_hides_no_record(path: Path) -> None:
    before = records(path)
    raw = bytearray(path.read_bytes())
    raw[before[2].offset + 4 : before[2].offset + 8] = (2**32 - 1).to_bytes(4, "little")
    path.write_bytes(raw)
    assert records(path) == before[:2] + before[3:]


def test_another_major_version_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "new.idx"
    path.write_bytes(file_header(2, 0) + b"whatever version 2 writes")
    with pytest.raises(UnsupportedVersion) as caught:
        list(read_journal(path))
    assert caught.value.theirs == [2, 0]
    path.write_bytes(file_header(2, 3) + encode_record("HEAD", {"version": [2, 3]}))
    with pytest.raises(UnsupportedVersion):
        list(read_journal(path))


def test_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new.idx"
    path.write_bytes(file_header(1, 9) + encode_record("HEAD", {"version": [1, 9], "new": 1}))
    assert [item.kind for item in records(path)] == ["HEAD"]
    assert not any(isinstance(item, Damage) for item in read_journal(path))


def test_the_bytes_of_version_1_stay_readable(tmp_path: Path) -> None:
    golden = bytes.fromhex("41534a0100000000") + bytes.fromhex(GOLDEN_RECORD)
    path = tmp_path / "golden.idx"
    path.write_bytes(golden)
    assert [(item.kind, item.fields) for item in records(path)] == [("FINISH", {"last_id": 3})]
    assert FILE_HEADER + encode_record("FINISH", {"last_id": 3}) == golden


def test_a_record_that_nobody_would_believe_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MAX_BODY_BYTES", 50)
    assert len(encode_record("PUT", {"put": bytes(30)})) == PREFIX_BYTES + 42
    with pytest.raises(LocalProtocolError, match="expected at most 50"):
        encode_record("PUT", {"put": bytes(50)})


def test_a_missing_journal_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        list(read_journal(tmp_path / "none.idx"))
    assert caught.value.path == str(tmp_path / "none.idx")
