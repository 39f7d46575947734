"""Declared keys of finished streams, sorted: the same answers as without, and never those of an old state."""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asapo.index import SqliteIndex, UnitRecord, queries, sorting, walks
from asapo.index.ranges import Asked, Span
from asapo.models import StreamRef
from asapo.query import Record, parse, select

REF = StreamRef("bt", "det", "s")
N = 200
VALUES: list[Any] = [0, 1, 1, 2, 3.5, -1, 1e300, "a", "b", "", True, False, None, [1], {"x": 1}, 2**62]
BOUNDS = [
    "> 0",
    ">= 1",
    "< 3",
    "<= 1",
    "> -5",
    "> 0 AND score < 4",
    ">= 'a'",
    "< 'b'",
    "= 1",
    "IN (1, 2)",
    "IN ('a', 'b')",
    "> 1e301",
]


def commit(index: SqliteIndex, ids: list[int], metas: list[dict[str, Any]], to: StreamRef = REF) -> None:
    n = len(ids)
    index.commit([
        UnitRecord(
            ref=to, ids=ids, offsets=[0] * n, sizes=[1] * n, checksums=[0] * n, metas=list(map(json.dumps, metas)),
            t_acq_ns=[0] * n, t_ingest_ns=1, segment=1,
        )
    ])  # fmt: skip


def meta(chance: random.Random) -> dict[str, Any]:
    keys = [key for key in ("score", "lit", "more", "note") if chance.random() < 0.95]
    return {key: chance.choice(VALUES) if chance.random() < 0.5 else chance.randint(-3, 40) for key in keys}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteIndex]:
    monkeypatch.setattr(sorting, "MIN_ROWS", 1)
    monkeypatch.setattr(sorting, "CHUNK_ROWS", 64)
    monkeypatch.setattr(sorting, "PAUSE_S", 0)
    found = SqliteIndex(tmp_path / "index.sqlite", "bt")
    found.declare_keys(["score", "lit"])
    found.declare_sorted_keys(["more", "note"])
    chance = random.Random(7)
    ids = chance.sample(range(1, 5 * N), N)
    for first in range(0, N, 50):
        some = sorted(ids[first : first + 50])
        commit(found, some, [meta(chance) for _ in some])
    commit(found, [1, 2], [{"score": 1, "lit": 1}] * 2, StreamRef("bt", "det", "other"))
    found.finish_stream(REF, 5 * N, "")
    yield found
    found.close()


def answers(index: SqliteIndex, text: str, *, limit: int, pages: int = 4) -> list[int]:
    """Return the ids of the first pages of a query."""
    no = index.stream_no(REF)
    assert no is not None
    found: list[int] = []
    after = 0
    for _ in range(pages):
        rows = index.query(no, parse(text), after=after, row_limit=limit)
        found += [row[0] for row in rows]
        if len(rows) < limit:
            break
        after = rows[-1][1]
    return found


def expected(index: SqliteIndex, text: str, n: int) -> list[int]:
    no = index.stream_no(REF)
    assert no is not None
    rows = index.rows_after_seq(no, 0, 10 * N)
    records = [Record(row[0], json.loads(row[9])) for row in rows]
    return [record.id for record in select(parse(text), records)][:n]


def tables(index: SqliteIndex) -> tuple[int, int]:
    """Return how many streams are sorted, and how many rows that takes."""
    with closing(sqlite3.connect(index.path)) as connection:
        ((n,),) = connection.execute("SELECT count(*) FROM sorted_stream WHERE maker = ''").fetchall()
        ((rows,),) = connection.execute("SELECT count(*) FROM sorted").fetchall()
        return n, rows


def statements(index: SqliteIndex, text: str, limit: int = 10) -> list[str]:
    """Return what the database is asked for a query, in the order of trying."""
    no = index.stream_no(REF)
    assert no is not None
    with index._database.reading() as connection:  # noqa: SLF001
        head = connection.execute("SELECT head_seq FROM stream WHERE no = ?", (no,)).fetchall()[0][0]
        asked = Asked(Span(no, head), parse(text), limit)
        return [statement.text for statement in queries._statements(connection, asked)]  # noqa: SLF001


def walked(index: SqliteIndex, text: str) -> bool:
    """Tell whether sorted keys are tried first."""
    return "FROM sorted WHERE" in statements(index, text)[0]


ORDERS = [
    "",
    "_id DESC",
    "score",
    "score DESC",
    "lit DESC",
    "score DESC, lit",
    "more, score",
    "more DESC",
    "_size, lit",
]


@pytest.mark.parametrize("order", ORDERS)
def test_a_sorted_stream_answers_as_the_evaluator_does(index: SqliteIndex, order: str) -> None:
    assert index.sort_finished(REF)
    assert tables(index)[0] == 1
    for bound in BOUNDS:
        for other in (
            "",
            "AND lit > 0",
            "AND lit IN (1, 2, 3)",
            "AND lit < 20 AND more > 3",
            "AND more != 3 AND _id > 90",
        ):
            text = f"score {bound} {other}" + (f" ORDER BY {order}" if order else "")
            # A number beyond 64 bits is no bound for SQLite.
            served = "1e301" not in bound or "lit" in other
            assert walked(index, text) == (served or order[:1] in ("s", "l", "m"))
            right = expected(index, text, N)
            for limit in (7, 40):
                assert answers(index, text, limit=limit) == right[: 4 * limit], text
            assert index.count(1, parse(text)) == len(right)
            if served:
                explained = index.explain(1, parse(text))
                assert explained.index in ("score", "lit", "more")
                assert not explained.scans
                assert len(right) <= explained.rows <= N
                assert any("sorted" in line for line in explained.plan)


ALONE = [
    "",
    "more > 2",
    "NOT score > 5",
    "score IS NOT NULL",
    "score != 1",
    "note LIKE 'x%'",
    "score LIKE 'a%'",
    "_id > 99",
]


@pytest.mark.parametrize("where", ALONE)
@pytest.mark.parametrize("order", ["score", "score DESC", "lit DESC, score"])
def test_a_key_orders_without_a_condition_on_it(index: SqliteIndex, where: str, order: str) -> None:
    index.declare_sorted_keys([])
    index.sort_finished(REF)
    text = f"{where} ORDER BY {order}"
    assert walked(index, text)
    right = expected(index, text, N)
    for limit in (1, 20, 90):
        assert answers(index, text, limit=limit) == right[: 4 * limit], text
    explained = index.explain(1, parse(f"{text} LIMIT 5"))
    assert (explained.index, explained.scans, explained.rows) == (order.split()[0], False, N)


@pytest.mark.parametrize("wrong", ["share", "sizes", "window"])
def test_estimates_that_are_wrong_change_no_answer(
    index: SqliteIndex, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    index.sort_finished(REF)
    if wrong == "share":
        monkeypatch.setattr(walks.Walker, "_share", lambda *_: 1.0)
        monkeypatch.setattr(walks, "MORE", 0)
    elif wrong == "sizes":
        monkeypatch.setattr(walks, "COUNTED", 1)
        monkeypatch.setattr(walks, "FEW_HITS", N)
    else:
        walk = walks.Walker._try  # noqa: SLF001
        monkeypatch.setattr(walks.Walker, "_try", lambda self, order, side, _: walk(self, order, side, 3))
    for order in ("", "ORDER BY score DESC", "ORDER BY lit, score"):
        for where in (
            "score > 0 AND lit > 0",
            "lit > -9 AND NOT note LIKE 'x%'",
            "lit IN (3, 4) AND more < 9",
        ):
            text = f"{where} {order}"
            assert answers(index, text, limit=5) == expected(index, text, 20), text
            assert answers(index, text, limit=1, pages=9) == expected(index, text, 9), text


def test_long_texts_are_cut_in_the_table_and_compared_whole(
    index: SqliteIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "MORE", 0)
    to = StreamRef("bt", "det", "long")
    texts = ["a" * n for n in (1, 127, 128, 129, 200, 300)] + ["a" * 150 + "b", "b", "a" * 128 + "\u00e9" * 9]
    commit(index, list(range(1, len(texts) + 1)), [{"score": text, "lit": 1} for text in texts], to)
    index.finish_stream(to, len(texts), "")
    assert index.sort_finished(to)
    no = index.stream_no(to)
    assert no is not None
    data = [Record(n, {"score": text, "lit": 1}) for n, text in enumerate(texts, 1)]
    for bound in texts:
        for op in ("<", "<=", "=", ">=", ">"):
            for order in ("", "ORDER BY score", "ORDER BY score DESC"):
                query = parse(f"score {op} '{bound}' {order}")
                right = [record.id for record in select(query, data)]
                found: list[Any] = []
                while some := index.query(no, query, row_limit=1, after=found[-1][1] if found else 0):
                    found += some
                assert [row[0] for row in found] == right, str(query)
    with closing(sqlite3.connect(index.path)) as connection:
        longest = "SELECT max(length(value)) FROM sorted WHERE typeof(value) = 'text'"
        assert connection.execute(longest).fetchall() == [(128,)]


def test_half_a_surrogate_pair_is_sorted(index: SqliteIndex) -> None:
    to = StreamRef("bt", "det", "half")
    commit(index, [1, 2], [{"score": "\ud800", "lit": 1}, {"score": "x", "lit": 2}], to)
    index.finish_stream(to, 2, "")
    assert index.sort_finished(to)
    no = index.stream_no(to)
    assert no is not None
    assert [row[0] for row in index.query(no, parse("lit > 0 ORDER BY lit DESC"))] == [2, 1]


def test_parts_of_datasets_are_sorted(index: SqliteIndex) -> None:
    to = StreamRef("bt", "det", "parts")
    n = 100
    for part in (2, 1):
        columns: dict[str, Any] = {"offsets": [0] * n, "sizes": [1] * n, "checksums": [0] * n, "t_acq_ns": [0] * n}
        metas = [json.dumps({"score": k % 7, "lit": part}) for k in range(n)]
        index.commit([
            UnitRecord(ref=to, ids=range(1, n + 1), metas=metas, t_ingest_ns=1, segment=1, substream=part,
                       dataset_size=2, **columns)
        ])  # fmt: skip
    index.finish_stream(to, n, "")
    assert index.sort_finished(to)
    no = index.stream_no(to)
    assert no is not None
    for text in ("score = 3", "score = 3 AND lit = 2", "score > 4 ORDER BY score DESC", "lit > 0 ORDER BY score, lit"):
        query = parse(text)
        rows = [(row[0], row[2], json.loads(row[9])) for row in index.rows_after_seq(no, 0, 10 * N)]
        data = [Record(one, meta, 0, 1, 1, part) for one, part, meta in rows]
        right = [(record.id, record.substream) for record in select(query, data)]
        found: list[Any] = []
        while some := index.query(no, query, row_limit=11, after=found[-1][1] if found else 0):
            found += some
        assert [(row[0], row[2]) for row in found] == right, text


def test_sorting_reads_what_is_finished_and_once(index: SqliteIndex) -> None:
    open_stream = StreamRef("bt", "det", "open")
    commit(index, [1], [{"score": 1, "lit": 1}], open_stream)
    assert index.unsorted() == [REF]
    assert not index.sort_finished(open_stream)
    assert not index.sort_finished(StreamRef("bt", "det", "nobody"))
    assert index.sort_finished(REF)
    assert index.unsorted() == []
    before = tables(index)
    assert not index.sort_finished(REF)
    assert tables(index) == before


def test_a_message_that_comes_late_is_found(index: SqliteIndex) -> None:
    index.sort_finished(REF)
    free = min(set(range(1, 5 * N)) - {row[0] for row in index.rows_from_id(1, 1, 5 * N, 10 * N)})
    commit(index, [free], [{"score": 1e308, "lit": 1e308}])
    text = "score > 0 AND lit > 0 ORDER BY score DESC"
    assert answers(index, text, limit=5)[0] == free
    assert not walked(index, text)
    assert index.unsorted() == [REF]
    assert index.sort_finished(REF)
    assert walked(index, text)
    assert answers(index, text, limit=5) == expected(index, text, 20)


def test_keys_may_be_added_later_and_those_of_before_serve_until_then(index: SqliteIndex) -> None:
    index.declare_sorted_keys([])
    index.sort_finished(REF)
    both, other = "score > 0 AND lit > 0", "note > 5 AND score > 0"
    index.declare_sorted_keys(["note", "meta.deep.key"])
    assert index.sorted_keys() == ["note", "deep.key"]
    assert index.unsorted() == [REF]
    assert walked(index, both)
    assert index.explain(1, parse("note > 5")).scans
    assert index.sort_finished(REF)
    assert index.explain(1, parse("note > 5")).index == "note"
    assert answers(index, other, limit=5) == expected(index, other, 20)
    assert answers(index, "deep.key > 5", limit=5) == expected(index, "deep.key > 5", 20)
    index.declare_sorted_keys([])
    assert index.unsorted() == [], "more keys than are wanted do no harm"
    index.declare_keys([])
    assert walked(index, both)


@pytest.mark.parametrize("keys", [["lit", "score"], ["score"], []])
def test_any_number_of_keys_is_sorted(index: SqliteIndex, keys: list[str]) -> None:
    index.declare_sorted_keys([])
    index.declare_keys(keys)
    assert index.sort_finished(REF) == bool(keys)
    text = "score > 0 AND lit > 0 AND more > 0 ORDER BY score DESC"
    assert walked(index, text) == bool(keys)
    assert answers(index, text, limit=5) == expected(index, text, 20)


@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_one_that_is_stopped_begins_anew(index: SqliteIndex, at: int) -> None:
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > at

    assert not index.sort_finished(REF, stopped)
    assert tables(index)[0] == 0
    text = "score > 0 AND lit > 0 ORDER BY score"
    assert answers(index, text, limit=5) == expected(index, text, 20)
    assert index.sort_finished(REF)
    once = tables(index)
    assert answers(index, text, limit=5) == expected(index, text, 20)
    index.declare_sorted_keys(["more", "note"])
    index.sort_finished(REF, lambda: asked > 5)
    index.declare_sorted_keys(["more"])
    assert tables(index)[1] <= once[1], "what is left of a broken attempt is removed by the next"


def test_of_two_at_the_same_stream_the_later_one_makes_it(index: SqliteIndex) -> None:
    """As receivers may be that start at the same time: what one of them leaves half done is never taken for whole."""
    second: list[bool] = []
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        if asked == 6:
            second.append(index.sort_finished(REF))
        return False

    assert not index.sort_finished(REF, stopped)
    assert second == [True]
    assert asked == 6
    text = "score > 0 AND lit > 0 ORDER BY score"
    assert walked(index, text)
    assert answers(index, text, limit=5) == expected(index, text, 20)


def test_the_rows_of_one_stream_only_are_sorted(index: SqliteIndex) -> None:
    other = StreamRef("bt", "det", "other")
    index.finish_stream(other, 2, "")
    index.sort_finished(REF)
    with closing(sqlite3.connect(index.path)) as connection:
        numbers = connection.execute("SELECT DISTINCT of_stream FROM sorted").fetchall()
    assert numbers == [(index.stream_no(REF),)]


def test_what_an_older_version_sorted_is_removed(index: SqliteIndex) -> None:
    with closing(sqlite3.connect(index.path)) as connection:
        connection.executemany(
            "INSERT INTO pair VALUES(?, 0, ?, ?, 1)", [(no, n, n) for no in (1, 2) for n in range(200)]
        )
        connection.executemany("INSERT INTO paired VALUES(?, 200, '[]')", [(1,), (2,)])
        connection.commit()
    assert index.sort_finished(REF)
    with closing(sqlite3.connect(index.path)) as connection:
        assert connection.execute("SELECT DISTINCT of_stream FROM pair").fetchall() == [(2,)]
        assert connection.execute("SELECT stream_no FROM paired").fetchall() == [(2,)]


def test_a_query_is_right_while_the_stream_is_sorted_anew(index: SqliteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    index.sort_finished(REF)
    other = SqliteIndex(index.path, "bt")
    look = walks.Walker.look
    left: list[int] = []

    def look_and_wait(self: walks.Walker, connection: sqlite3.Connection) -> None:
        look(self, connection)
        if not left:
            other.declare_sorted_keys(["more", "note", "another"])
            assert not other.sort_finished(REF, lambda: tables(index)[1] == 0)
            left.append(tables(index)[1])

    monkeypatch.setattr(walks.Walker, "look", look_and_wait)
    text = "score > 0 AND lit > 0 ORDER BY score"
    try:
        assert answers(index, text, limit=20, pages=1) == expected(index, text, 20)
    finally:
        other.close()
    assert left == [0], "all that was sorted was removed meanwhile"
    assert answers(index, text, limit=20, pages=1) == expected(index, text, 20)


def left_of(index: SqliteIndex, stream_no: int) -> list[int]:
    """Return how many rows the tables of sorted streams have of one."""
    tables = (("sorted", "of_stream"), ("sorted_stream", "stream_no"))
    with index._database.reading() as connection:
        counts = [f"SELECT count(*) FROM {table} WHERE {column} = ?" for table, column in tables]
        return [connection.execute(count, (stream_no,)).fetchall()[0][0] for count in counts]


def test_of_a_deleted_stream_nothing_stays_sorted(index: SqliteIndex) -> None:
    no = index.stream_no(REF)
    assert no is not None
    assert index.sort_finished(REF, lambda: False)
    assert min(left_of(index, no)) > 0
    index.delete_stream(REF)
    index.clean_deleted()
    assert left_of(index, no) == [0, 0]


def test_a_stream_that_is_deleted_while_it_is_sorted_is_given_up(index: SqliteIndex) -> None:
    no = index.stream_no(REF)
    assert no is not None
    steps = iter(range(100))

    def delete_in_the_middle() -> bool:
        if next(steps) == 3:
            index.delete_stream(REF)
            index.clean_deleted()
        return False

    assert not index.sort_finished(REF, delete_in_the_middle)
    assert left_of(index, no) == [0, 0]
