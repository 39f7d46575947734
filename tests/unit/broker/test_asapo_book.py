"""Marks of ASAP::O's groups: pointers, acknowledgements, what comes again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from asapo.errors import IndexUnavailable, StorageError, UnsupportedVersion, WrongInput
from asapo.models import StreamRef
from asapo_broker.http.compat.book import FILE, MAX_LISTED, GroupBook

pytestmark = pytest.mark.needs_server

REF = StreamRef("bt", "det", "s")


@pytest.fixture
def book(tmp_path: Path) -> Iterator[GroupBook]:
    with closing(GroupBook(tmp_path)) as found:
        yield found


def test_each_group_of_each_stream_has_its_own_place(book: GroupBook) -> None:
    book.give(book.mark(REF, "g"), 5)
    book.give_last(book.mark(REF, "g"), 9)
    assert book.mark(REF, "g")[1:] == (5, 9)
    assert book.mark(REF, "other")[1:] == (0, 0)
    assert book.mark(StreamRef("bt", "det", "t"), "g")[1:] == (0, 0)


def test_marks_outlive_the_book(tmp_path: Path) -> None:
    with closing(GroupBook(tmp_path)) as book:
        book.give(book.mark(REF, "g"), 5)
        book.acknowledge(book.mark(REF, "g"), 3)
        book.hand_back(book.mark(REF, "g"), 4, 10.0)
    with closing(GroupBook(tmp_path)) as book:
        mark = book.mark(REF, "g")
        assert mark.position == 5
        assert book.not_done(mark, 1, 4) == [1, 2, 4]
        assert book.due(mark, 11.0) == 4


def test_a_message_comes_again_as_often_and_as_late_as_asked(book: GroupBook) -> None:
    mark = book.mark(REF, "g")
    book.expect(mark, 1, delay_s=2.0, attempts=2, now_s=100.0)
    assert book.due(mark, 101.9) is None
    assert book.due(mark, 102.0) == 1
    assert book.due(mark, 103.0) is None
    assert book.due(mark, 104.0) == 1
    assert book.due(mark, 1e9) is None


def test_without_a_bound_it_comes_until_it_is_acknowledged(book: GroupBook) -> None:
    mark = book.mark(REF, "g")
    book.expect(mark, 1, delay_s=0.0, attempts=0, now_s=0.0)
    assert [book.due(mark, float(n)) for n in range(5)] == [1] * 5
    book.acknowledge(mark, 1)
    assert book.due(mark, 9.0) is None


def test_giving_a_message_again_does_not_count_its_attempts_anew(book: GroupBook) -> None:
    mark = book.mark(REF, "g")
    for _ in range(2):
        book.expect(mark, 1, delay_s=0.0, attempts=1, now_s=0.0)
    assert book.due(mark, 1.0) == 1
    assert book.due(mark, 1.0) is None


def test_what_is_due_longest_comes_first_and_what_is_gone_is_forgotten(book: GroupBook) -> None:
    mark = book.mark(REF, "g")
    book.hand_back(mark, 1, 7.0)
    book.hand_back(mark, 2, 5.0)
    book.hand_back(mark, 3, 6.0)
    assert book.due(mark, 8.0) == 2
    book.forget(mark, 3)
    assert [book.due(mark, 8.0), book.due(mark, 8.0)] == [1, None]


def test_a_marker_that_is_set_back_drops_what_was_waited_for_behind_it(book: GroupBook) -> None:
    mark = book.mark(REF, "g")
    for n in (1, 2, 3):
        book.hand_back(mark, n, 0.0)
    book.set_position(mark, 2)
    assert book.mark(REF, "g").position == 2
    assert [book.due(mark, 1.0), book.due(mark, 1.0)] == [1, None]


def test_acknowledging_twice_is_wrong_input(book: GroupBook) -> None:
    mark = book.mark(REF, "g")
    assert book.last_done(mark) == 0
    book.acknowledge(mark, 7)
    with pytest.raises(WrongInput, match="message 7: already acknowledged"):
        book.acknowledge(mark, 7)
    book.acknowledge(mark, 2)
    assert book.last_done(mark) == 7


def test_a_range_without_bound_is_refused(book: GroupBook) -> None:
    with pytest.raises(WrongInput, match="at most"):
        book.not_done(book.mark(REF, "g"), 1, MAX_LISTED + 1)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    GroupBook(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(UnsupportedVersion, match="version 2"):
        GroupBook(tmp_path)


def test_a_folder_or_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("file").touch()
    with pytest.raises(StorageError, match="state folder .*file"):
        GroupBook(tmp_path / "file" / "state")
    tmp_path.joinpath(FILE).write_bytes(b"no database" * 100)
    with pytest.raises(IndexUnavailable, match=FILE):
        GroupBook(tmp_path)


def test_a_group_begins_anew_when_its_stream_was_deleted(book: GroupBook) -> None:
    mark = book.mark(REF, "g", 5)
    book.give(mark, 7)
    book.acknowledge(mark, 3)
    book.hand_back(mark, 4, 0.0)
    assert book.mark(REF, "g", 5)[1:] == (7, 0)
    anew = book.mark(REF, "g", 6)
    assert anew[1:] == (0, 0)
    assert book.not_done(anew, 1, 4) == [1, 2, 3, 4]
    assert book.due(anew, 1.0) is None
    assert book.mark(REF, "g", 5) == anew, "what was known before does not count"
