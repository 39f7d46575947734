"""The folder of all indexes."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from asapo.index import (
    IndexDirectory,
    SqliteIndex,
    deletion,
    gaps,
    schema,
)
from asapo.models import StreamRef
from tests.contract.index_units import ids_of, in_file, number, ref, unit


def test_a_folder_keeps_one_index_per_beamtime(tmp_path: Path) -> None:
    names = ["11/2 ä", "..", "x" * 255, "ä" * 127, "a"]
    directory = IndexDirectory(tmp_path)
    assert directory.beamtimes() == []
    assert directory.find("a") is None
    for k, name in enumerate(names):
        directory.open(name).commit([unit([k + 1], StreamRef(name, "det", "s"))])
        assert directory.open(name) is directory.find(name)
    assert directory.beamtimes() == sorted(names)
    directory.close()
    assert {path.parent for path in tmp_path.glob("*/index.sqlite")} == {directory.path(n).parent for n in names}
    again = IndexDirectory(tmp_path)
    assert again.beamtimes() == sorted(names)
    found = again.find(names[1])
    assert found is not None
    assert found.stream_info(StreamRef(names[1], "det", "s")).id_max == 2
    again.close()


def test_an_index_that_is_only_half_created_is_not_there_yet(tmp_path: Path) -> None:
    directory = IndexDirectory(tmp_path)
    directory.path("bt").parent.mkdir()
    directory.path("bt").touch()
    assert directory.find("bt") is None
    assert directory.beamtimes() == []
    directory.open("bt")
    assert directory.beamtimes() == ["bt"]
    directory.close()


def test_a_copied_index_opens_elsewhere(tmp_path: Path, path: Path, open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    index.commit([unit([1, 2])])
    index.close()
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    index = SqliteIndex(copy, "bt")
    assert ids_of(index.rows_after_seq(number(index), 0, 10)) == [1, 2]
    index.close()


def test_origins_and_gaps_are_found_by_the_index_of_ids(open_index: Callable[..., SqliteIndex], path: Path) -> None:
    open_index().commit([unit(range(1, 50))])
    statements: list[tuple[str, tuple[int, ...]]] = [
        (f"SELECT {schema.ROW_SQL} FROM message WHERE stream_no = ? AND id BETWEEN ? AND ?", (1, 7, 7)),
        (gaps.ABSENT, (0, 1, 1, 10)),
        (gaps.PARTS, (1, 1, 10)),
    ]
    connection = sqlite3.connect(path)
    try:
        for statement, values in statements:
            lines = [str(line[3]) for line in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            looks = [line for line in lines if "message" in line]
            assert looks
            assert all("message_id" in line and line.startswith("SEARCH") for line in looks), lines
    finally:
        connection.close()


def test_long_streams_are_removed_in_short_transactions_and_only_they(
    open_index: Callable[..., SqliteIndex], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "CHUNK_ROWS", 2)
    index = open_index()
    for name in ("run1", "other"):
        for one in range(1, 8):
            index.commit([replace(in_file(one, f"{name}-{one}.cbf"), ref=ref(name)), unit([100 + one], ref(name))])
    found = index.delete_stream(ref())
    index.finish_deletion(found.no, lambda _: None)
    index.clean_deleted(lambda: True)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT stream, count(*) FROM segment GROUP BY stream").fetchall() == [("other", 7)]
        assert connection.execute("SELECT count(*) FROM message").fetchone() == (28,)
        index.clean_deleted()
        assert connection.execute("SELECT count(*) FROM message").fetchone() == (14,)
    connection.close()
    assert index.stream_info(ref("other")).n_messages == 14


def test_a_process_that_knew_a_stream_notices_that_another_one_deleted_it(
    open_index: Callable[..., SqliteIndex],
) -> None:
    one, two = open_index(), open_index()
    two.commit([unit([1])])
    one.delete_stream(ref())
    (outcome,) = two.commit([unit([1])])
    assert (outcome.first_seq, outcome.head_seq) == (1, 1)
    assert one.stream_info(ref()).n_messages == 1


def test_an_index_made_anew_keeps_what_is_known_of_deletions(open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    index.commit([unit([1])])
    found = index.delete_stream(ref())
    anew = SqliteIndex(index.path.with_name("anew.sqlite"), "bt")
    anew.commit([unit([1])])
    anew.keep_deletions(index.deletions())
    assert anew.deletions() == [replace(found, moved=True)]
    assert anew.delete_stream(ref()).no > found.no
    anew.close()
