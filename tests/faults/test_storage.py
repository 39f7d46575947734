"""Storage under faults: what the journal says is there, whatever happened and whenever."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import xxhash

from asapo.errors import DiskFull, StorageError
from asapo.models import StreamRef
from asapo.storage.files import FileOps
from asapo.storage.journal import Damage, JournalRecord, read_journal
from asapo.storage.layout import find_journals, parse_segment_name
from asapo.storage.store import SegmentHandle, StreamStore
from asapo.storage.tier import Tier
from asapo.testing.faults import VARIABLE, Fault, FaultyFiles, FullDisk, SlowFiles

REF = StreamRef("b", "s", "t")

WRITER = """
import sys
from asapo.models import StreamRef
from asapo.storage.store import StreamStore
from asapo.storage.tier import Tier
from asapo.testing.faults import install_from_environment
import xxhash
install_from_environment()
store = StreamStore(Tier.open(sys.argv[1]), "r1", int(sys.argv[2]), segment_bytes=20_000, open_segments=2)
for number in range(40):
    payload = bytes([number]) * (500 + 37 * number)
    slot = store.reserve(StreamRef("b", "s", f"t{number % 3}"), len(payload))
    store.write(slot, [payload])
    store.journal_put(slot, xxhash.xxh3_64_digest(payload) + len(payload).to_bytes(8, "little"), number)
    print(number, flush=True)
store.close()
"""


def units(root: Path) -> tuple[list[int], list[Damage]]:
    """Return the numbers of all journaled units, each checked against its payload, and the damage met."""
    numbers, damages = [], []
    for path in find_journals(root):
        for item in read_journal(path):
            if isinstance(item, Damage):
                damages.append(item)
            elif item.kind == "PUT":
                fields, header = item.fields, item.fields["put"]
                size = int.from_bytes(header[8:16], "little")
                with open(path.with_suffix(".seg"), "rb") as file:
                    file.seek(fields["offset"])
                    assert xxhash.xxh3_64_digest(file.read(size)) == header[:8]
                numbers.append(fields["t"])
    return numbers, damages


@pytest.mark.parametrize(
    "fault",
    [
        f"{operation}:{at}:{action}"
        for operation, at in (("pwrite", 1), ("pwrite", 23), ("append", 4), ("append", 41), ("create", 5))
        for action in ("kill", "tear", "after")
        if not (operation == "create" and action == "tear")
    ]
    + ["truncate:2:kill", "close:3:after"],
)
def test_a_writer_killed_anywhere_loses_no_unit_it_has_reported(tmp_path: Path, fault: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    killed = subprocess.run(
        [*command, "1"], env={**os.environ, VARIABLE: fault}, capture_output=True, text=True, check=False, timeout=30
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    reported = [int(line) for line in killed.stdout.split()]
    assert len(reported) < 40
    found, damages = units(tmp_path)
    assert set(reported) <= set(found)
    assert len(set(found)) == len(found) <= len(reported) + 1
    assert all(damage.torn for damage in damages)
    again = subprocess.run([*command, "2"], capture_output=True, text=True, check=False, timeout=30)
    assert again.returncode == 0, again.stderr
    after, _ = units(tmp_path)
    assert sorted(after) == sorted([*found, *range(40)])


def put(store: StreamStore, ref: StreamRef, payload: bytes, number: int) -> SegmentHandle:
    slot = store.reserve(ref, len(payload))
    try:
        store.write(slot, [payload])
        store.journal_put(slot, xxhash.xxh3_64_digest(payload) + len(payload).to_bytes(8, "little"), number)
    finally:
        store.abort(slot)
    return slot.segment


@pytest.mark.parametrize("operation", ["pwrite", "append"])
@pytest.mark.parametrize("action", ["EIO", "short", "ENOSPC"])
def test_an_error_seals_the_segment_and_the_stream_goes_on_in_the_next(
    tmp_path: Path, operation: str, action: str
) -> None:
    at = 3 if operation == "pwrite" else 4  # the append of HEAD comes first
    path_part = ".seg" if operation == "pwrite" else ".idx"
    files = FaultyFiles(Fault(operation, at, action, path_part))
    closed: list[SegmentHandle] = []
    store = StreamStore(Tier.open(tmp_path), "r1", 1, files=files, on_closed=closed.append)
    failed = []
    for number in range(6):
        try:
            put(store, REF, bytes([number]) * 1000, number)
        except DiskFull:
            failed.append((number, "ENOSPC"))
        except StorageError:
            failed.append((number, "EIO"))
    assert store.close()
    assert failed == ([] if action == "short" else [(2, action)])
    assert [segment.number for segment in closed] == ([1] if action == "short" else [1, 2])
    found, damages = units(tmp_path)
    assert found == [number for number in range(6) if number != 2 or not failed]
    assert damages == []


def test_a_torn_record_is_never_followed_by_another_in_the_same_journal(tmp_path: Path) -> None:
    files = FaultyFiles(
        Fault("append", 3, "short", ".idx"), Fault("append", 4, "ENOSPC", ".idx")
    )  # half of the second PUT gets in, then the disk is full
    store = StreamStore(Tier.open(tmp_path), "r1", 1, files=files)
    put(store, REF, b"0" * 100, 0)
    with pytest.raises(DiskFull):
        put(store, REF, b"1" * 100, 1)
    put(store, REF, b"2" * 100, 2)
    assert store.close()
    found, damages = units(tmp_path)
    assert found == [0, 2]
    assert [(Path(damage.path).name, damage.torn) for damage in damages] == [("r1-1-000001.idx", True)]


def test_other_slots_of_a_sealed_segment_are_still_written(tmp_path: Path) -> None:
    files = FaultyFiles(Fault("pwrite", 2, "EIO", ".seg"))
    store = StreamStore(Tier.open(tmp_path), "r1", 1, files=files)
    slots = [store.reserve(REF, 100) for _ in range(3)]
    store.write(slots[0], [b"0" * 100])
    with pytest.raises(StorageError):
        store.write(slots[1], [b"1" * 100])
    store.write(slots[2], [b"2" * 100])
    for number in (2, 0):
        payload = bytes(str(number), "ascii") * 100
        store.journal_put(slots[number], xxhash.xxh3_64_digest(payload) + (100).to_bytes(8, "little"), number)
    assert store.open_segments == 0
    assert put(store, REF, b"3" * 100, 3).number == 2
    assert store.close()
    assert units(tmp_path)[0] == [2, 0, 3]


def test_a_full_disk_leaves_no_litter_and_ends_when_there_is_room(tmp_path: Path) -> None:
    tier = Tier.open(tmp_path)
    files = FullDisk(5_000)
    store = StreamStore(tier, "r1", 1, files=files)
    stored = 0
    while files.left > 2000:
        put(store, REF, bytes(1000), stored)
        stored += 1
    assert stored >= 2
    for _ in range(20):
        files.make_room(500)
        with pytest.raises(DiskFull):
            put(store, REF, bytes(1_000_000), 99)
    before = [path for path in tmp_path.rglob("*") if parse_segment_name(path.name)]
    assert len(before) == 2
    files.make_room(2_000_000)
    put(store, REF, bytes(1_000_000), stored)
    assert store.close()
    assert units(tmp_path)[0] == list(range(stored + 1))


def test_streams_beside_a_failing_one_are_not_touched(tmp_path: Path) -> None:
    files = FaultyFiles(Fault("pwrite", 1, "EIO", "/bad/", times=100))
    store = StreamStore(Tier.open(tmp_path), "r1", 1, files=files)
    for number in range(10):
        with pytest.raises(StorageError):
            put(store, StreamRef("b", "bad", "t"), b"x", number)
        put(store, REF, b"y", number)
    assert store.close()
    assert units(tmp_path)[0] == list(range(10))


def test_an_error_at_close_is_logged_and_the_journal_stays_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FaultyFiles(Fault("close", 1, "EIO", ".seg"))
    closed: list[SegmentHandle] = []
    store = StreamStore(Tier.open(tmp_path), "r1", 1, files=files, on_closed=closed.append)
    put(store, REF, b"x", 0)
    assert store.close()
    assert len(closed) == 1
    assert "closing a segment" in caplog.text
    assert units(tmp_path) == ([0], [])


def test_a_stuck_disk_holds_up_its_writer_only(tmp_path: Path) -> None:
    files = SlowFiles("pwrite")
    store = StreamStore(Tier.open(tmp_path), "r1", 1, files=files)
    files.block()
    writer = threading.Thread(target=put, args=(store, REF, b"x" * 100, 0))
    writer.start()
    assert files.waiting.acquire(timeout=10)
    assert units(tmp_path) == ([], [])
    files.unblock()
    writer.join(10)
    assert not writer.is_alive()
    assert store.close()
    assert units(tmp_path) == ([0], [])


def test_a_tier_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    files = FaultyFiles(Fault("append", 1, "ENOSPC"))
    with pytest.raises(DiskFull):
        Tier.open(tmp_path, files)
    assert list(tmp_path.iterdir()) == []
    assert Tier.open(tmp_path, FileOps()).uuid


def test_a_segment_is_removed_when_its_journal_cannot_begin(tmp_path: Path) -> None:
    tier = Tier.open(tmp_path)
    files = FaultyFiles(Fault("create", 1, "EIO", ".idx"), Fault("append", 1, "ENOSPC", ".idx"))
    store = StreamStore(tier, "r1", 1, files=files)
    with pytest.raises(StorageError):
        store.reserve(REF, 1)
    with pytest.raises(DiskFull):
        store.reserve(REF, 1)
    assert [path for path in tmp_path.rglob("*") if parse_segment_name(path.name)] == []
    put(store, REF, b"x", 0)
    assert store.close()
    records = [item for path in find_journals(tmp_path) for item in read_journal(path)]
    assert [item.kind for item in records if isinstance(item, JournalRecord)] == ["HEAD", "PUT", "CLOSED"]
