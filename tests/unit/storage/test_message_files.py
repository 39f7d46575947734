"""Files of single messages: whole or not there, never over another one, never outside of the tier."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from asapo import failpoints
from asapo.errors import DiskFull, DuplicateFile, StorageError, UnsafePath
from asapo.models import StreamRef
from asapo.storage.files import FileOps
from asapo.storage.journal import Damage, read_journal
from asapo.storage.layout import client_path_of, find_journals, journal_path, message_file
from asapo.storage.message_files import open_message_file, remove_draft, write_message_file
from asapo.storage.slots import PutRecord
from asapo.storage.store import StreamStore
from asapo.storage.tier import Tier, tier_above
from asapo.testing.faults import Fault, FaultyFiles

REF = StreamRef("bt", "det", "s 1")


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return Tier.open(tmp_path / "tier")


def segment_of(tier: Tier) -> str:
    folder = tier.root / "bt" / "det" / "s%201"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / "r1-1-000001.seg")


def write(tier: Tier, path: str, payload: bytes, files: FileOps | None = None) -> str:
    found = segment_of(tier)
    return write_message_file(files or FileOps(), tier.root, found, path, payload, xxh3_64_intdigest(payload))


def tree(root: Path) -> dict[str, str]:
    """Return everything below a folder: links by their targets, files by their contents."""
    found = {}
    for place, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(place, name)
            kind = os.readlink(path) if path.is_symlink() else "folder" if path.is_dir() else ""
            found[str(path.relative_to(root))] = kind or hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def drafts(tier: Tier) -> list[Path]:
    return list(tier.root.rglob("*.part"))


def test_a_file_lies_under_its_path_and_nothing_else_is_left(tier: Tier) -> None:
    found = write(tier, "scan1/img.cbf", b"abc")
    assert found == str(tier.root / "bt/det/s%201/files/scan1/img.cbf")
    assert Path(found).read_bytes() == b"abc"
    assert client_path_of(found, REF.source, REF.stream) == "scan1/img.cbf"
    assert client_path_of(segment_of(tier), REF.source, REF.stream) == ""
    assert tier_above(found) == (tier.root, tier.uuid)
    assert not drafts(tier)
    fd = open_message_file(FileOps(), tier.root, found)
    assert os.read(fd, 10) == b"abc"
    os.close(fd)


def test_the_same_bytes_again_are_taken_as_they_are(tier: Tier) -> None:
    found = Path(write(tier, "a", b"abc"))
    before = found.stat()
    assert write(tier, "a", b"abc") == str(found)
    assert (found.stat().st_ino, found.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("other", [b"abd", b"ab", b"abcd", b""])
def test_other_bytes_never_replace_those_that_are_there(tier: Tier, other: bytes) -> None:
    found = write(tier, "a/b", b"abc")
    with pytest.raises(DuplicateFile, match="other content") as caught:
        write(tier, "a/b", other)
    assert caught.value.path == "a/b"
    assert Path(found).read_bytes() == b"abc"
    assert not drafts(tier)


def test_a_name_that_is_taken_while_the_draft_is_written_is_not_replaced(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_receiver(place: str) -> None:
        if place == "file.before-link":
            Path(message_file(Path(segment_of(tier)).parent, "a")).write_bytes(b"first")

    monkeypatch.setattr(failpoints, "_act", other_receiver)
    with pytest.raises(DuplicateFile):
        write(tier, "a", b"second")
    assert Path(message_file(Path(segment_of(tier)).parent, "a")).read_bytes() == b"first"
    assert not drafts(tier)


@pytest.mark.parametrize("name", ["img.CBF", "IMG.cbf"])
def test_names_that_differ_in_case_are_never_one_file_with_two_contents(tier: Tier, name: str) -> None:
    first = write(tier, "img.cbf", b"first")
    try:
        second = write(tier, name, b"second")
    except DuplicateFile:
        second = ""  # a file system that folds case
    assert Path(first).read_bytes() == b"first"
    assert not second or Path(second).read_bytes() == b"second"


# -- links


LINKS: dict[str, tuple[str, bool]] = {
    "beamtime": ("bt", True),
    "source": ("bt/det", True),
    "stream": ("bt/det/s%201", True),
    "files": ("bt/det/s%201/files", True),
    "folder": ("bt/det/s%201/files/sub", True),
    "file": ("bt/det/s%201/files/sub/img", False),
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder that nothing may get into, with what a link could hit."""
    for name in ("det/s%201/files/sub", "s%201/files/sub", "files/sub", "sub"):
        (tmp_path / "outside" / name).mkdir(parents=True)
    (tmp_path / "outside/img").write_bytes(b"precious")
    return tmp_path / "outside"


@pytest.mark.parametrize("what", LINKS)
def test_a_link_in_the_way_is_refused_and_nothing_is_written_anywhere(tier: Tier, outside: Path, what: str) -> None:
    place, is_folder = LINKS[what]
    link = tier.root / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside if is_folder else outside / "img")
    before = tree(outside.parent)
    with pytest.raises((UnsafePath, DuplicateFile)) as caught:
        write_message_file(
            FileOps(), tier.root, str(tier.root / "bt/det/s%201/r1-1-000001.seg"), "sub/img", b"x", 1
        )  # fmt: skip
    assert tree(outside.parent) == before
    assert type(caught.value) is (UnsafePath if is_folder else DuplicateFile)
    with pytest.raises(UnsafePath):
        open_message_file(FileOps(), tier.root, str(tier.root / "bt/det/s%201/files/sub/img"))


@pytest.mark.parametrize("what", ["beamtime", "source", "stream"])
def test_no_segment_is_begun_behind_a_link(tier: Tier, outside: Path, what: str) -> None:
    link = tier.root / LINKS[what][0]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    before = tree(outside.parent)
    store = StreamStore(tier, "r1", 1)
    with pytest.raises(UnsafePath, match="link") as caught:
        store.reserve(REF, 10)
    assert caught.value.path == str(link)
    assert not caught.value.retriable
    store.close()
    assert tree(outside.parent) == before


def test_a_link_to_a_file_that_a_reader_would_get_is_not_followed(tier: Tier, outside: Path) -> None:
    found = Path(write(tier, "a", b"abc"))
    found.unlink()
    found.symlink_to(outside / "img")
    with pytest.raises(UnsafePath, match="link"):
        open_message_file(FileOps(), tier.root, str(found))
    with pytest.raises(UnsafePath):
        open_message_file(FileOps(), tier.root, str(outside / "img"))


class Racing(FileOps):
    """Somebody replaces a folder by a link to elsewhere at the n-th system call, whichever that is."""

    def __init__(self, at: int, swap: Callable[[], None]) -> None:
        self.at, self.swap, self.calls = at, swap, 0

    def invoke(self, operation: str, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            self.swap()
        return call(*args, **kwargs)


@pytest.mark.parametrize("swapped", ["bt", "bt/det", "bt/det/s%201", "bt/det/s%201/files", "bt/det/s%201/files/sub"])
def test_a_link_planted_between_any_two_calls_lets_nothing_out(tmp_path: Path, outside: Path, swapped: str) -> None:
    before = tree(outside)
    counted = Racing(0, lambda: None)
    refused = 0
    for at in range(1, 20):
        tier = Tier.open(tmp_path / f"tier-{at}")
        Path(segment_of(tier)).parent.joinpath("files/sub").mkdir(parents=True)

        def swap(link: Path = tier.root / swapped, away: str = f"{tier.root}-moved") -> None:
            link.rename(away)
            link.symlink_to(outside)

        counted = Racing(at, swap)
        try:
            write(tier, "sub/img", b"x", counted)
        except (UnsafePath, StorageError):
            refused += 1
        assert tree(outside) == before, at
        if counted.calls < at:
            break
    assert counted.calls < at, "not every call was tried"
    assert refused > 0


def test_links_planted_all_the_time_by_another_thread_let_nothing_out(tier: Tier, outside: Path) -> None:
    before = tree(outside)
    place = Path(segment_of(tier)).parent / "files"
    ended = threading.Event()

    def attack() -> None:
        while not ended.is_set():
            with suppress(OSError):
                place.rename(tier.root / "away")
                place.symlink_to(outside)
                place.unlink()
                (tier.root / "away").rename(place)

    place.mkdir()
    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for number in range(200):
            with suppress(UnsafePath, StorageError):
                write(tier, f"sub/img{number}", b"x")
    finally:
        ended.set()
        attacker.join()
    assert tree(outside) == before


# -- what goes wrong


@pytest.mark.parametrize("operation", ["create", "pwrite", "link", "mkdirs", "open_dir", "close"])
@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_an_error_leaves_no_file_no_draft_and_is_ours(tier: Tier, operation: str, action: str) -> None:
    segment_of(tier)
    with pytest.raises(DiskFull if action == "ENOSPC" else StorageError):
        write(tier, "a/b", b"abc", FaultyFiles(Fault(operation, 1, action)))
    assert not drafts(tier)
    assert not [path for path in tier.root.rglob("b") if path.is_file()]
    assert Path(write(tier, "a/b", b"abc")).read_bytes() == b"abc"


def test_a_draft_that_could_not_be_removed_is_in_nobodys_way(tier: Tier) -> None:
    write(tier, "a", b"abc", FaultyFiles(Fault("unlink", 2, "EIO")))
    assert len(drafts(tier)) == 1
    assert Path(write(tier, "b", b"abd")).read_bytes() == b"abd"
    assert (tier.root / "bt/det/s%201/files/a").read_bytes() == b"abc"
    assert not drafts(tier)


def test_the_draft_of_a_dead_life_is_removed(tier: Tier) -> None:
    segment = segment_of(tier)
    draft = Path(segment).with_suffix(".part")
    draft.write_bytes(b"half")
    remove_draft(segment)
    assert not draft.exists()
    remove_draft(segment)  # as often as it likes


def test_a_short_write_is_gone_on_with(tier: Tier) -> None:
    found = write(tier, "a", b"abcdef", FaultyFiles(Fault("pwrite", 1, "short")))
    assert Path(found).read_bytes() == b"abcdef"


# -- the store


@pytest.fixture
def store(tier: Tier) -> Iterator[StreamStore]:
    made = StreamStore(tier, "r1", 1)
    yield made
    made.close()


def test_the_journal_points_to_the_file_and_the_segment_stays_empty(store: StreamStore, tier: Tier) -> None:
    slot = store.reserve(REF, 0)
    path = store.write_file(slot, "scan/img", b"abc", xxh3_64_intdigest(b"abc"))
    store.journal_run([slot], [PutRecord(b"header", 7, in_file=True)])
    store.close()
    assert Path(path).read_bytes() == b"abc"
    assert Path(slot.segment.path).stat().st_size == 0
    records = [item for item in read_journal(journal_path(slot.segment.path)) if not isinstance(item, Damage)]
    assert [record.kind for record in records] == ["HEAD", "PUT", "CLOSED"]
    assert records[1].fields == {"at": "file", "offset": 0, "t": 7, "put": b"header"}


def test_a_slot_of_a_file_that_was_refused_is_given_back(store: StreamStore) -> None:
    first = store.reserve(REF, 0)
    store.write_file(first, "img", b"abc", xxh3_64_intdigest(b"abc"))
    store.journal_run([first], [PutRecord(b"header", 7, in_file=True)])
    slot = store.reserve(REF, 0)
    with pytest.raises(DuplicateFile):
        store.write_file(slot, "img", b"other", xxh3_64_intdigest(b"other"))
    assert slot.opened is None
    assert store.close_idle(0) == 1  # nothing is owed any more


def test_clients_files_are_not_searched_for_journals(store: StreamStore, tier: Tier) -> None:
    slot = store.reserve(REF, 0)
    store.write_file(slot, "x", b"", xxh3_64_intdigest(b""))
    store.journal_run([slot], [PutRecord(b"header", 7, in_file=True)])
    planted = Path(slot.segment.path).parent / "files" / "r9-1-000001.idx"
    planted.write_bytes(b"not ours")
    assert list(find_journals(tier.root)) == [Path(journal_path(slot.segment.path))]
