import os
from pathlib import Path

import pytest

from asapo.errors import ConfigError, DiskFull, StorageError
from asapo.storage.files import FileOps, default_files, install_files
from asapo.testing.faults import Fault, FaultyFiles, FullDisk


def test_short_writes_are_continued(tmp_path: Path) -> None:
    fault = Fault("pwrite", 1, "short", times=5)
    files = FaultyFiles(fault)
    file = files.create(tmp_path / "a")
    files.pwrite_all(file, [b"abcdefg", memoryview(b"hijk"), bytearray(b"l"), b""], 3)
    files.pwrite_all(file, [], 100)
    files.close(file)
    assert (tmp_path / "a").read_bytes() == b"\0\0\0abcdefghijkl"
    assert files.hits[fault] >= 4


def test_short_appends_are_continued(tmp_path: Path) -> None:
    files = FaultyFiles(Fault("append", 1, "short", times=3))
    file = files.create(tmp_path / "a", append=True)
    files.append(file, b"0123456789")
    files.append(file, b"x")
    files.close(file)
    assert (tmp_path / "a").read_bytes() == b"0123456789x"


def test_more_buffers_than_one_call_takes_are_all_written(tmp_path: Path) -> None:
    files = FileOps()
    file = files.create(tmp_path / "a")
    pieces = [bytes([number % 256]) * (number % 3) for number in range(3000)]
    files.pwrite_all(file, pieces, 0)
    files.close(file)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)


def test_views_of_wider_elements_are_written_whole(tmp_path: Path) -> None:
    files = FaultyFiles(Fault("pwrite", 1, "short"))
    file = files.create(tmp_path / "a")
    files.pwrite_all(file, [memoryview(b"01234567").cast("H"), memoryview(b"89").cast("H")], 0)
    files.close(file)
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT"])
def test_no_room_is_disk_full_with_the_free_bytes(tmp_path: Path, name: str) -> None:
    files = FaultyFiles(Fault("pwrite", 1, name))
    file = files.create(tmp_path / "a")
    with pytest.raises(DiskFull) as caught:
        files.pwrite_all(file, [b"x"], 0)
    assert caught.value.free_bytes > 0
    assert caught.value.path == str(tmp_path / "a")
    assert isinstance(caught.value.__cause__, OSError)
    files.close(file)


def test_other_errors_are_storage_errors_that_name_the_path(tmp_path: Path) -> None:
    files = FileOps()
    for action in (
        lambda: files.create(tmp_path / "no" / "a"),
        lambda: files.unlink(tmp_path / "none"),
        lambda: files.rename(tmp_path / "none", tmp_path / "b"),
        lambda: files.link(tmp_path / "none", tmp_path / "b"),
        lambda: files.fsync_dir(tmp_path / "none"),
        lambda: files.mkdirs(tmp_path / "a\0b") if os.name == "nt" else files.mkdirs("/proc/none"),
    ):
        with pytest.raises(StorageError) as caught:
            action()
        assert type(caught.value) is StorageError
        assert caught.value.path in caught.value.message


def test_create_never_opens_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(StorageError, match="File exists"):
        FileOps().create(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_write_after_close_fails_and_hits_no_other_file(tmp_path: Path) -> None:
    files = FileOps()
    file = files.create(tmp_path / "a")
    files.close(file)
    other = files.create(tmp_path / "b")
    with pytest.raises(StorageError):
        files.pwrite_all(file, [b"x"], 0)
    files.close(file)
    files.close(other)
    assert (tmp_path / "b").read_bytes() == b""


def test_rename_link_and_sync_do_what_they_say(tmp_path: Path) -> None:
    files = FileOps()
    files.mkdirs(tmp_path / "d" / "e")
    files.mkdirs(tmp_path / "d" / "e")
    file = files.create(tmp_path / "d" / "a", append=True)
    files.append(file, b"abc")
    files.fsync(file)
    files.fdatasync(file)
    files.truncate(file, 2)
    files.close(file)
    assert files.link(tmp_path / "d" / "a", tmp_path / "d" / "b") is True
    assert files.link(tmp_path / "d" / "a", tmp_path / "d" / "b") is False
    files.rename(tmp_path / "d" / "a", tmp_path / "d" / "c")
    files.fsync_dir(tmp_path / "d")
    assert (tmp_path / "d" / "c").read_bytes() == (tmp_path / "d" / "b").read_bytes() == b"ab"


def test_a_full_disk_takes_what_fits_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    files = FullDisk(10)
    file = files.create(tmp_path / "a")
    files.pwrite_all(file, [b"1234"], 0)
    with pytest.raises(DiskFull):
        files.pwrite_all(file, [b"567890", b"x"], 4)
    files.make_room(7)
    files.pwrite_all(file, [b"567890", b"y"], 4)
    files.close(file)
    assert (tmp_path / "a").read_bytes() == b"1234567890y"


def test_the_default_of_the_process_can_be_replaced() -> None:
    mine = FileOps()
    former = install_files(mine)
    try:
        assert default_files() is mine
    finally:
        install_files(former)
    assert default_files() is former


def test_faults_are_read_from_text() -> None:
    assert Fault.parse("pwrite:17:kill") == Fault("pwrite", 17, "kill")
    assert Fault.parse("append:3:ENOSPC:.idx") == Fault("append", 3, "ENOSPC", ".idx")
    for text in ("pwrite", "pwrite:x:kill", "pwrite:1:explode"):
        with pytest.raises(ConfigError):
            Fault.parse(text)
