"""The SQLite index keeps the contract, also between processes, over restarts, and when its file cannot be used."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from asapo.errors import ConfigError, DamagedFile, IndexUnavailable, UnsupportedVersion, WrongInput
from asapo.index import (
    MetadataIndex,
    SessionMark,
    SqliteIndex,
    schema,
    sorting,
)
from tests.contract.index_contract import IndexContract
from tests.contract.index_units import ONE, Clock, ids_of, number, ref, unit

WRITER = Path(__file__).with_name("index_writer.py")


class TestSqliteIndex(IndexContract):
    @pytest.fixture
    def make(
        self, open_index: Callable[..., SqliteIndex], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[], MetadataIndex]:
        monkeypatch.setattr(sorting, "MIN_ROWS", 1)
        monkeypatch.setattr(sorting, "PAUSE_S", 0)
        return open_index


# -- several processes


def start_writer(path: Path, first: int, step: int, n_units: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(path), str(first), str(step), str(n_units)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(*writers: subprocess.Popen[str]) -> None:
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()


def committed(lines: list[str]) -> dict[int, int]:
    """Return id to seq of the units that a writer reported; an interrupted last line does not count."""
    found: dict[int, int] = {}
    for line in lines:
        if line.endswith("\n"):
            first_seq, *ids = map(int, line.split())
            found |= {message_id: first_seq + k for k, message_id in enumerate(ids)}
    return found


def end(*writers: subprocess.Popen[str]) -> None:
    for writer in writers:
        writer.kill()
        writer.communicate()


def test_two_processes_commit_interleaved_ids_and_a_follower_misses_nothing(
    path: Path, open_index: Callable[..., SqliteIndex]
) -> None:
    index = open_index()
    n_units = 100
    writers = [start_writer(path, first, 2, n_units) for first in (1, 2)]
    try:
        index.open_session(ref(), ONE, 0, False, "r")
        go(*writers)
        seen: list[int] = []
        while len(seen) < 8 * n_units:
            rows = index.rows_after_seq(number(index), len(seen), 50)
            assert [row[1] for row in rows] == list(range(len(seen) + 1, len(seen) + 1 + len(rows)))
            seen += ids_of(rows)
        assert sorted(seen) == list(range(1, 8 * n_units + 1))
        reported = [committed(writer.communicate()[0].splitlines(keepends=True)) for writer in writers]
        assert reported[0] | reported[1] == {message_id: k + 1 for k, message_id in enumerate(seen)}
        # Both were at it at once, else this test says nothing.
        assert any(a % 2 != b % 2 for a, b in zip(seen[3::4], seen[4::4], strict=False))
    finally:
        end(*writers)


def test_two_processes_create_one_index(path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    writers = [start_writer(path, first, 2, 1) for first in (1, 2)]
    try:
        go(*writers)
        outputs = [writer.communicate()[0] for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0]
    finally:
        end(*writers)
    index = open_index()
    assert len(index.rows_after_seq(number(index), 0, 100)) == 8
    assert all(len(committed(output.splitlines(keepends=True))) == 4 for output in outputs)


@pytest.mark.parametrize("after", [1, 7, 60])
def test_a_killed_writer_loses_nothing_it_reported_and_leaves_no_half_unit(
    path: Path, open_index: Callable[..., SqliteIndex], after: int
) -> None:
    victim, witness = (start_writer(path, first, 2, 10**6) for first in (1, 2))
    try:
        go(victim, witness)
        assert victim.stdout is not None
        lines = [victim.stdout.readline() for _ in range(after)]
        victim.kill()
        lines += victim.stdout.readlines()
        assert witness.stdout is not None
        others = [witness.stdout.readline() for _ in range(5)]
        # It still commits after the other one died in the middle of anything.
        others.append(witness.stdout.readline())
        witness.kill()
        others += witness.stdout.readlines()
    finally:
        end(victim, witness)
    index = open_index()
    rows = index.rows_after_seq(number(index), 0, 10**6)
    assert [row[1] for row in rows] == list(range(1, len(rows) + 1))
    by_id = {row[0]: row[1] for row in rows}
    reported = committed(lines) | committed(others)
    assert len(reported) >= 4 * after
    assert {message_id: by_id.get(message_id) for message_id in reported} == reported
    assert len(rows) % 4 == 0
    assert index.commit([unit([10**9])])[0].first_seq == len(rows) + 1


# -- over restarts


def test_a_reopened_index_knows_everything(open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    index.commit([unit(range(1, 4), session=SessionMark(ONE, 2, "r"))])
    index.declare_keys(["n"])
    index.finish_stream(ref("b"), 0, "c")
    before = index.rows_after_seq(number(index), 0, 10), index.streams()
    index.close()
    index = open_index()
    assert (index.rows_after_seq(number(index), 0, 10), index.streams()) == before
    assert index.declared_keys() == ["n"]
    assert index.commit([unit(range(3, 6))])[0][:4] == (4, 5, (), (0,))


def test_sessions_of_an_earlier_boot_are_lost(open_index: Callable[..., SqliteIndex], clock: Clock) -> None:
    index = open_index(boot_id="one")
    index.commit([unit([5], session=SessionMark(ONE, 2, "r"))])
    index.close()
    index = open_index(boot_id="one")
    assert index.watermark(number(index)) == 2
    index.close()
    clock.now_s = 3.0
    index = open_index(boot_id="two")
    assert index.watermark(number(index)) == 6
    index.beat(ONE, {})
    assert index.watermark(number(index)) == 2


def test_rows_of_long_lost_sessions_are_removed(
    path: Path, open_index: Callable[..., SqliteIndex], clock: Clock
) -> None:
    index = open_index()
    for k in range(5):
        clock.now_s += 2000
        index.open_session(ref(), bytes([k]) * 16, 0, False, "r")
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM session").fetchone() == (2,)
    connection.close()


# -- files that cannot be used


def test_a_newer_major_version_is_refused(path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    open_index().close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {(schema.MAJOR + 1) << 16 | 3}")
    connection.close()
    with pytest.raises(UnsupportedVersion) as caught:
        open_index()
    assert caught.value.theirs == f"{schema.MAJOR + 1}.3"


def test_a_newer_minor_version_is_read(path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    open_index().close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.MAJOR << 16 | schema.MINOR + 1}")
    connection.close()
    assert open_index().streams() == []


def test_a_database_of_somebody_else_is_left_alone(path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    with pytest.raises(DamagedFile):
        open_index()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    connection.close()


def test_a_file_that_is_no_database_is_unavailable(path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(IndexUnavailable):
        open_index()


def test_the_index_of_another_beamtime_is_refused(open_index: Callable[..., SqliteIndex]) -> None:
    open_index()
    with pytest.raises(WrongInput, match="beamtime 'bt'"):
        open_index("other")


def test_a_damaged_page_is_unavailable_not_a_crash(path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    index.commit([unit(range(1, 2000))])
    index.close()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :] = b"\xff" * (len(raw) - len(raw) // 2)
    path.write_bytes(raw)
    index = open_index()
    with pytest.raises(IndexUnavailable):
        index.rows_after_seq(1, 0, 10**6)


def test_a_locked_index_is_unavailable_and_keeps_nothing(path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index(busy_timeout_s=0.05)
    index.commit([unit([1])])
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(IndexUnavailable) as caught:
            index.commit([unit([2], ref("new"), format=unit([1]).format)])
        assert caught.value.reason == "SQLITE_BUSY"
        assert ids_of(index.rows_after_seq(number(index), 0, 10)) == [1]
    finally:
        blocker.execute("ROLLBACK")
        blocker.close()
    assert index.commit([unit([2], ref("new"))])[0].first_seq == 1


def test_a_commit_waits_for_a_lock_that_is_given_back(path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index(busy_timeout_s=20)
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.05, blocker.execute, ["ROLLBACK"])
    release.start()
    assert index.commit([unit([1])])[0].first_seq == 1
    release.join()
    blocker.close()


def test_a_full_disk_is_unavailable_and_what_was_there_stays(
    path: Path, open_index: Callable[..., SqliteIndex]
) -> None:
    index = open_index()
    index.commit([unit([1])])
    with index._database.writing() as connection:
        ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(IndexUnavailable) as caught:
        index.commit([unit(range(2, 5000), ref("new"))])
    assert caught.value.reason == "SQLITE_FULL"
    assert index.stream_no(ref("new")) is None
    with index._database.writing() as connection:
        connection.execute("PRAGMA max_page_count = 4294967294")
    assert index.commit([unit(range(2, 5000), ref("new"))])[0].first_seq == 1


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /home rw shared:2 - nfs4 server:/home rw
31 30 0:27 / /home/fast rw shared:2 - xfs /dev/vdb rw
32 22 0:28 / /mnt/gpfs\\040one rw shared:2 - gpfs one rw
33 22 0:29 / /over rw - ext4 /dev/x rw
34 33 0:30 / /over rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/ann/state", "nfs4"),
        ("/mnt/gpfs one/state", "gpfs"),
        ("/over/state", "fuse.sshfs"),
    ],
)
def test_a_network_file_system_is_refused_with_the_next_step(folder: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"lies on {kind} .* set state_dir") as caught:
        schema.refuse_network_file_system(Path(folder), MOUNTS)
    assert caught.value.value == folder


@pytest.mark.parametrize("folder", ["/home/fast/state", "/homes", "/", "/mnt/gpfs"])
def test_a_local_file_system_is_taken(folder: str) -> None:
    schema.refuse_network_file_system(Path(folder), MOUNTS)
