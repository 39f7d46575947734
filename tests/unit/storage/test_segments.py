import os
import threading
from pathlib import Path

import pytest

from asapo.errors import StorageError
from asapo.storage import segments
from asapo.storage.files import FileOps
from asapo.storage.segments import Housekeeper, SegmentWriter, alignment
from asapo.storage.tier import Tier, file_system_of, read_tier_uuid
from asapo.testing.faults import Fault, FaultyFiles

KIB = 1024


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "AHEAD_FIRST_BYTES", 64 * KIB)
    monkeypatch.setattr(segments, "AHEAD_MAX_BYTES", 256 * KIB)
    monkeypatch.setattr(segments, "AHEAD_AFTER_BYTES", 16 * KIB)


class Allocations(FileOps):
    """Notes allocations instead of making them, so that the test does not depend on the file system."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []
        self.threads: set[int] = set()

    def invoke(self, operation, path, call, *args, **kwargs):  # type: ignore[no-untyped-def]
        if operation == "allocate":
            self.done.append((args[1], args[2]))
            self.threads.add(threading.get_ident())
            return os.ftruncate(args[0], max(args[1] + args[2], os.fstat(args[0]).st_size))
        return call(*args, **kwargs)


def fill(writer: SegmentWriter, total: int, step: int = 8 * KIB) -> None:
    for _ in range(0, total, step):
        writer.write(writer.reserve(step, alignment(step)), [b"x" * step], step)


@pytest.mark.usefixtures("small_steps")
def test_a_stream_that_fills_its_segment_gets_space_ahead_in_doubling_steps(tmp_path: Path) -> None:
    files, keeper = Allocations(), Housekeeper()
    writer = SegmentWriter(str(tmp_path / "x.seg"), files, housekeeper=keeper, limit_bytes=KIB * KIB)
    fill(writer, 1000 * KIB)
    ahead = writer.ahead_bytes
    writer.close()
    assert keeper.close(10)
    lengths = [length // KIB for _, length in files.done]
    assert lengths[:3] == [64, 128, 256]
    assert max(lengths) == 256
    assert [start for start, _ in files.done[1:]] == [start + length for start, length in files.done[:-1]]
    assert files.done[-1][0] + files.done[-1][1] == KIB * KIB
    assert threading.get_ident() not in files.threads
    assert ahead == 256 * KIB
    assert (tmp_path / "x.seg").stat().st_size == 1000 * KIB


@pytest.mark.usefixtures("small_steps")
def test_a_small_stream_is_given_no_disk_blocks_ahead(tmp_path: Path) -> None:
    files, keeper = Allocations(), Housekeeper()
    writer = SegmentWriter(str(tmp_path / "x.seg"), files, housekeeper=keeper, limit_bytes=KIB * KIB)
    fill(writer, 8 * KIB)
    assert writer.ahead_bytes == 0
    writer.close()
    assert keeper.close(10)
    assert files.done == []


@pytest.mark.usefixtures("small_steps")
def test_the_segment_after_a_full_one_begins_with_space_ahead(tmp_path: Path) -> None:
    files, keeper = Allocations(), Housekeeper()
    writer = SegmentWriter(
        str(tmp_path / "x.seg"), files, housekeeper=keeper, limit_bytes=KIB * KIB, ahead_bytes=128 * KIB
    )
    writer.close()
    assert keeper.close(10)
    assert files.done == [(0, 128 * KIB)]
    assert (tmp_path / "x.seg").stat().st_size == 0


@pytest.mark.usefixtures("small_steps")
def test_without_preallocation_the_file_ends_in_a_hole_ahead_of_the_writes(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path / "x.seg"), FileOps(), housekeeper=None, limit_bytes=KIB * KIB)
    sizes = {(tmp_path / "x.seg").stat().st_size}
    for _ in range(0, 1000 * KIB, 8 * KIB):
        fill(writer, 8 * KIB)
        sizes.add((tmp_path / "x.seg").stat().st_size)
        assert max(sizes) >= writer.written_end
    assert len(sizes) <= 6
    writer.close()
    assert (tmp_path / "x.seg").read_bytes() == b"x" * 1000 * KIB


@pytest.mark.usefixtures("small_steps")
def test_failing_to_make_room_ahead_is_no_error(tmp_path: Path) -> None:
    for number, fault in enumerate((Fault("truncate", 1, "EIO"), Fault("allocate", 1, "ENOSPC", times=99))):
        files, keeper = FaultyFiles(fault), Housekeeper()
        path = tmp_path / f"{number}.seg"
        writer = SegmentWriter(str(path), files, housekeeper=keeper, limit_bytes=KIB * KIB)
        fill(writer, 200 * KIB)
        writer.close()
        assert keeper.close(10)
        assert files.hits[fault] >= 1
        assert path.read_bytes() == b"x" * 200 * KIB


def test_a_housekeeper_that_is_stuck_does_not_hold_up_the_close() -> None:
    keeper, free = Housekeeper(), threading.Event()

    def wait() -> None:
        free.wait()

    keeper.submit(wait)
    assert keeper.close(0.01) is False
    free.set()


def test_a_tier_keeps_its_uuid_and_two_openers_agree(tmp_path: Path) -> None:
    uuids = []
    threads = [threading.Thread(target=lambda: uuids.append(Tier.open(tmp_path / "t").uuid)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(uuids) == 8
    assert set(uuids) == {read_tier_uuid(tmp_path / "t")}
    assert [path.name for path in (tmp_path / "t").iterdir()] == [".asapo-tier"]
    assert Tier.open(tmp_path / "t").free_bytes() > 0


def test_a_spoilt_tier_file_is_not_replaced_silently(tmp_path: Path) -> None:
    (tmp_path / ".asapo-tier").write_text("not a uuid")
    with pytest.raises(StorageError, match="expected a uuid"):
        Tier.open(tmp_path)


@pytest.mark.needs_linux
def test_the_file_system_of_a_path_is_known() -> None:
    assert file_system_of("/proc") == "proc"
    assert file_system_of("/no/such/path") == ""
