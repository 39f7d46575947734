"""Where payload bytes come from: mapped on the receiver's host, else fetched; and what is said when neither works."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from asapo.errors import ChecksumMismatch, DamagedFile, RemoteProtocolError, StorageError, WrongInput
from asapo.hostinfo import boot_id
from asapo.reader import SegmentMaps
from asapo.storage.tier import Tier, read_tier_uuid
from asapo.testing.fake_broker import row
from asapo.wire.events import Hello, Rows
from asapo_work.message import Message, messages_of
from asapo_work.payload import MessagePayloads

FRAME = np.arange(32, dtype="<u2").reshape(4, 8)
HELLO = Hello("consumer", b"s" * 16, "bt")


@pytest.fixture
def payloads() -> Any:
    made = []

    def make(access: Any = "auto", *, verify: Any = False) -> Any:
        made.append(MessagePayloads(HELLO, access=access, verify=verify, timeout_s=0.3, locate=lambda *_: None))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def segment(tmp_path: Any) -> Any:
    """A segment on a tier of this host that holds FRAME at byte 64; its entry in a table of segments."""
    Tier.open(tmp_path)
    path = tmp_path / "bt" / "det" / "run" / "r1-1-000001.seg"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(64) + FRAME.tobytes())
    return [str(path), "r1", boot_id(), read_tier_uuid(tmp_path), ""]


def signed(digest: int) -> int:
    return digest - 2**64 if digest >= 2**63 else digest


def answer_of(segment: Any, payloads: Any, *places: tuple[int, int]) -> list[Message]:
    """Messages of one answer with plain bytes at these (offset, size) of a segment."""
    rows = [row(1 + at, offset=offset, size=size) for at, (offset, size) in enumerate(places)]
    return messages_of("bt", "det", "run", Rows(1, rows, {1: segment}, {}), payloads)


def message_in(segment: Any, payloads: Any, /, **columns: Any) -> Any:
    checksum = signed(xxh3_64_intdigest(FRAME.tobytes()))
    one = row(1, **{"offset": 64, "size": FRAME.nbytes, "checksum": checksum, **columns})
    answer = Rows(1, [one], {} if segment is None else {one.segment: segment}, {1: ["<u2", [4, 8], "raw"]})
    return messages_of("bt", "det", "run", answer, payloads)[0]


@pytest.mark.needs_linux
def test_an_array_on_this_host_is_a_read_only_view_of_the_file(segment: Any, payloads: Any) -> None:
    message = message_in(segment, payloads("map"), format=1)
    assert np.array_equal(message.data, FRAME)
    assert message.data.dtype == FRAME.dtype
    assert not message.data.flags.writeable
    assert message.raw.readonly
    assert np.shares_memory(message.data, np.frombuffer(message.raw, np.uint8))


@pytest.mark.needs_linux
def test_plain_bytes_are_a_memoryview(segment: Any, payloads: Any) -> None:
    message = message_in(segment, payloads("map"))
    assert message.data == FRAME.tobytes()
    assert message.data is message.raw


def test_an_empty_payload_needs_no_file(payloads: Any) -> None:
    assert message_in(None, payloads(), size=0).data == b""


@pytest.mark.needs_linux
def test_verify_accepts_what_was_sent_and_refuses_what_was_changed(segment: Any, payloads: Any) -> None:
    reader = payloads("map", verify=True)
    assert message_in(segment, reader).raw == FRAME.tobytes()
    with pytest.raises(ChecksumMismatch, match="message 1"):
        _ = message_in(segment, reader, checksum=5).raw


@pytest.mark.needs_linux
def test_views_outlive_the_consumer(segment: Any, payloads: Any) -> None:
    reader = payloads("map")
    data = message_in(segment, reader, format=1).data
    reader.close()
    assert data.sum() == FRAME.sum()


@pytest.mark.needs_linux
def test_a_file_that_ends_too_early_is_damaged(segment: Any, payloads: Any) -> None:
    with pytest.raises(DamagedFile) as caught:
        _ = message_in(segment, payloads("map"), size=4096).raw
    assert caught.value.path == segment[0]


@pytest.mark.needs_linux
def test_one_message_beyond_the_end_leaves_the_others_of_its_answer_readable(segment: Any, payloads: Any) -> None:
    first, beyond, last = answer_of(segment, payloads("map"), (64, 8), (120, 9), (72, 8))
    assert first.raw == FRAME.tobytes()[:8]
    with pytest.raises(DamagedFile) as caught:
        _ = beyond.raw
    assert caught.value.offset == 128
    assert last.raw == FRAME.tobytes()[8:16]


@pytest.mark.needs_linux
def test_a_segment_that_was_cut_between_two_answers_is_damaged_and_not_a_crash(segment: Any, payloads: Any) -> None:
    path, reader = Path(segment[0]), payloads("map")
    path.write_bytes(bytes(range(256)) * 64)
    (whole,) = answer_of(segment, reader, (12_288, 4))
    assert bytes(whole.raw) == b"\x00\x01\x02\x03"
    os.truncate(path, 4096)
    kept, cut = answer_of(segment, reader, (16, 4), (12_288, 4))
    with pytest.raises(DamagedFile) as caught:
        _ = cut.raw
    assert caught.value.offset == 4096
    assert bytes(kept.raw) == b"\x10\x11\x12\x13"


@pytest.mark.needs_linux
def test_a_segment_that_grew_while_an_answer_is_read_is_read_to_its_new_end(segment: Any, payloads: Any) -> None:
    first, second, third = answer_of(segment, payloads("map"), (64, 8), (128, 4), (132, 4))
    assert first.raw == FRAME.tobytes()[:8]
    with open(segment[0], "ab") as file:
        file.write(b"new and more")
    assert (bytes(second.raw), bytes(third.raw)) == (b"new ", b"and ")


@pytest.mark.needs_linux
def test_the_size_of_a_file_is_asked_once_for_an_answer(
    segment: Any, payloads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, content = [], FRAME.tobytes()
    window = SegmentMaps.window

    def count(self: SegmentMaps, info: Any, end: int) -> memoryview:
        asked.append(end)
        return window(self, info, end)

    monkeypatch.setattr(SegmentMaps, "window", count)
    reader = payloads("map")
    for _ in range(2):
        found = [bytes(message.raw) for message in answer_of(segment, reader, (64, 8), (72, 8), (80, 0), (80, 8))]
        assert found == [content[0:8], content[8:16], b"", content[16:24]]
    assert asked == [72, 72]


@pytest.mark.needs_linux
def test_verify_looks_at_every_message_of_an_answer(segment: Any, payloads: Any) -> None:
    reader, content = payloads("map", verify=True), FRAME.tobytes()
    rows = [row(1, offset=64, size=8, checksum=signed(xxh3_64_intdigest(content[:8]))), row(2, offset=72, size=8)]
    good, changed = messages_of("bt", "det", "run", Rows(1, rows, {1: segment}, {}), reader)
    assert good.raw == content[:8]
    with pytest.raises(ChecksumMismatch, match="message 2"):
        _ = changed.raw


@pytest.mark.needs_linux
def test_a_file_that_is_gone_is_named_with_the_next_step(segment: Any, payloads: Any, tmp_path: Path) -> None:
    (tmp_path / "bt" / "det" / "run" / "r1-1-000001.seg").unlink()
    with pytest.raises(StorageError, match=r"r1-1-000001\.seg.*check that"):
        _ = message_in(segment, payloads()).raw


def test_map_only_refuses_what_lies_on_another_host(segment: Any, payloads: Any) -> None:
    segment[2] = "another boot"
    with pytest.raises(StorageError, match="cannot be mapped"):
        _ = message_in(segment, payloads("map")).raw


def test_bytes_in_a_receivers_memory_need_that_receiver(payloads: Any) -> None:
    with pytest.raises(StorageError, match="memory of a receiver"):
        _ = message_in(None, payloads(), segment=0).raw


@pytest.mark.parametrize("entry", [["path"], 5])
def test_a_table_of_segments_that_is_none_is_the_brokers_fault(entry: Any, payloads: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        _ = message_in(entry, payloads()).raw


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(WrongInput, match="access"):
        MessagePayloads(HELLO, access="guess", verify=False, timeout_s=1.0, locate=lambda *_: None)  # type: ignore[arg-type]
