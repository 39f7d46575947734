"""Content that can be computed again, and the producer's journal: what is written is read, whenever it was cut."""

import itertools
from pathlib import Path

import pytest

from asapo.errors import DamagedFile, WrongInput
from asapo.testing.checker.book import BookWriter, book_path, read_book
from asapo.testing.checker.content import SIZES, Content, sizes_up_to

CONTENT = Content(3, "scan/1", sizes=((0, 1), (1, 1), (5, 2)))


def test_content_follows_from_seed_stream_and_id() -> None:
    same = Content.from_facts(CONTENT.facts())
    ids = list(itertools.islice(CONTENT.ids(), 50))
    assert ids == list(itertools.islice(same.ids(), 50))
    assert ids == sorted(set(ids))
    assert ids[-1] > 50
    assert [CONTENT.payload(one) for one in ids] == [same.payload(one) for one in ids]
    assert {len(CONTENT.payload(one)) for one in ids} == {0, 1, 5}
    assert all(len(CONTENT.payload(one)) == CONTENT.size(one) for one in ids)
    large = [one for one in ids if CONTENT.size(one) == 5]
    assert len({CONTENT.payload(one) for one in large}) == len(large)
    assert Content(4, "scan/1", CONTENT.sizes).payload(large[0]) != CONTENT.payload(large[0])


def test_a_variant_is_always_other_content() -> None:
    assert all(CONTENT.payload(one, 1) != CONTENT.payload(one) for one in range(1, 200))


def test_sizes_keep_their_weights() -> None:
    drawn = [CONTENT.size(one) for one in range(1, 2001)]
    assert 0.4 < drawn.count(5) / len(drawn) < 0.6


def test_size_classes_end_at_the_largest() -> None:
    assert sizes_up_to(16_000_000) == SIZES
    assert [size for size, _ in sizes_up_to(5_000)] == [0, 1, 4096]
    assert sizes_up_to(3_000_000, segment_bytes=2_500_000)[-1] == (2_500_001, 1)
    with pytest.raises(WrongInput, match="largest frame of -1"):
        sizes_up_to(-1)


@pytest.mark.parametrize("bad", [{"sizes": ()}, {"sizes": ((-1, 1),)}, {"sizes": ((1, 0),)}, {"longest_step": 0}])
def test_content_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(WrongInput, match="expected"):
        Content(1, "s", **bad)  # type: ignore[arg-type]


def write(folder: Path) -> Path:
    with BookWriter(folder, CONTENT) as writer:
        writer.invoke([(1, "aa", 5), (2, "bb", 6), (4, "cc", 7)])
        writer.settle(1, "ACK", "written")
        writer.settle(2, "FAIL", "disk_full")
        writer.settle(4, "UNKNOWN")
        return writer.path


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path == book_path(tmp_path, "scan/1")
    book = read_book(path)
    assert book.content == CONTENT
    assert book.outcomes() == {1: "ACK", 2: "FAIL", 4: "UNKNOWN"}
    assert set(book.acked({"written"})) == {1}
    assert book.acked({"synced"}) == {}
    assert [(one.size, one.detail) for tries in book.sent.values() for one in tries] == [
        (5, "written"), (6, "disk_full"), (7, ""),
    ]  # fmt: skip


def test_frames_are_written_down_before_they_are_sent(tmp_path: Path) -> None:
    with BookWriter(tmp_path, CONTENT) as writer:
        writer.invoke([(1, "aa", 5)])
        assert read_book(writer.path).outcomes() == {1: "UNKNOWN"}


def test_a_producer_that_starts_again_goes_on_with_its_journal(tmp_path: Path) -> None:
    path = write(tmp_path)
    with path.open("a") as file:
        file.write("ACK 4 wri")  # killed in the middle of a line
    with BookWriter(tmp_path, CONTENT) as writer:
        assert writer.book.outcomes()[4] == "UNKNOWN"
        writer.invoke([(4, "cc", 7)])
        writer.settle(4, "ACK", "written")
    assert read_book(path).outcomes() == {1: "ACK", 2: "FAIL", 4: "ACK"}
    assert len(read_book(path).sent[4]) == 2
    with pytest.raises(WrongInput, match="give another folder"):
        BookWriter(tmp_path, Content(9, "scan/1", CONTENT.sizes))


def test_a_journal_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    whole = write(tmp_path).read_bytes()
    first = whole.index(b"\n") + 1
    path = tmp_path / "cut"
    for end in range(first, len(whole) + 1):
        path.write_bytes(whole[:end])
        n_lines = whole[:end].count(b"\n")
        assert len(read_book(path).sent) == min(3, n_lines - 1)


def test_a_damaged_journal_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("ACK 1", "ACK one"))
    with pytest.raises(DamagedFile, match="line 5"):
        read_book(path)
    path.write_text("")
    with pytest.raises(DamagedFile, match="expected a line RUN"):
        read_book(path)
    path.write_text("INVOKE 1 a 2 3\n")
    with pytest.raises(DamagedFile, match="line 1"):
        read_book(path)
