"""The list of segments that a life began."""

from pathlib import Path

import pytest

from asapo.errors import DiskFull
from asapo.models import StreamRef
from asapo.storage.slots import SegmentHandle
from asapo.testing.faults import FullDisk
from asapo_receive.lifebook import Lifebook

REF = StreamRef("bt 1", "det", "s/ü")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / ".receivers").mkdir()
    return tmp_path


def life(state: Path, epoch: int, *paths: str, receiver_id: str = "r1") -> None:
    book = Lifebook(state, receiver_id, epoch)
    for path in paths:
        book.note(SegmentHandle(REF, path, 1))
    book.close()


def test_the_next_life_knows_what_earlier_ones_began(state: Path) -> None:
    life(state, 1, "/t/a.seg")
    life(state, 2, "/t/b.seg", "/t/ü.seg")
    life(state, 7, "/t/x.seg", receiver_id="r11")
    life(state, 7, "/t/y.seg", receiver_id="r1.5")
    book = Lifebook(state, "r1", 3)
    assert book.left_behind() == {"bt 1": {"/t/a.seg": REF, "/t/b.seg": REF, "/t/ü.seg": REF}}
    book.forget()
    book.close()
    left = sorted(path.name for path in (state / ".receivers").iterdir())
    assert left == ["r1-3.segments", "r1.5-7.segments", "r11-7.segments"]


def test_a_life_that_ends_before_it_looked_leaves_all_to_the_next(state: Path) -> None:
    life(state, 1, "/t/a.seg")
    life(state, 2)
    book = Lifebook(state, "r1", 3)
    assert list(book.left_behind()["bt 1"]) == ["/t/a.seg"]
    book.close()


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_line_that_was_not_written_to_its_end_counts_for_nothing(state: Path, cut: int) -> None:
    life(state, 1, "/t/a.seg", "/t/b.seg")
    path = state / ".receivers" / "r1-1.segments"
    path.write_bytes(path.read_bytes()[:-cut])
    book = Lifebook(state, "r1", 2)
    found = book.left_behind()["bt 1"]
    assert set(found) in ({"/t/a.seg"}, {"/t/a.seg", "/t/b.seg"})
    assert ("/t/b.seg" in found) == (cut == 1)
    book.close()


def test_a_full_disk_is_told(state: Path) -> None:
    book = Lifebook(state, "r1", 1, FullDisk(10))
    with pytest.raises(DiskFull):
        book.note(SegmentHandle(REF, "/t/a.seg", 1))
    book.close()
