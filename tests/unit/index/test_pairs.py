"""Declared keys of finished streams, sorted: the same answers as without, and never those of an old state."""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asapo.index import SqliteIndex, UnitRecord, pairs, plans
from asapo.index.schema import SEQ_BITS
from asapo.models import StreamRef
from asapo.query import Record, parse, select

REF = StreamRef("bt", "det", "s")
N = 300
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
    keys = [key for key in ("score", "lit", "more") if chance.random() < 0.95]
    return {key: chance.choice(VALUES) if chance.random() < 0.5 else chance.randint(-3, 40) for key in keys}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteIndex]:
    monkeypatch.setattr(pairs, "MIN_ROWS", 1)
    monkeypatch.setattr(pairs, "CHUNK_ROWS", 64)
    found = SqliteIndex(tmp_path / "index.sqlite", "bt")
    found.declare_keys(["score", "lit"])
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
        ((n,),) = connection.execute("SELECT count(*) FROM paired").fetchall()
        ((rows,),) = connection.execute("SELECT count(*) FROM pair").fetchall()
        return n, rows


def statements(index: SqliteIndex, text: str) -> list[str]:
    """Return what the database is asked for a query, in the order of trying."""
    from asapo.index import queries

    no = index.stream_no(REF)
    assert no is not None
    with index._database.reading() as connection:  # noqa: SLF001
        head = connection.execute("SELECT head_seq FROM stream WHERE no = ?", (no,)).fetchall()[0][0]
        planner = queries._planner(connection, plans.Span(no, head), parse(text), 10)  # noqa: SLF001
        return [statement.text for statement in planner.statements()]


@pytest.mark.parametrize("order", ["score", "score DESC", "lit", "lit DESC", "score DESC, lit", "more, score", "_id"])
def test_a_sorted_stream_answers_as_the_evaluator_does(index: SqliteIndex, order: str) -> None:
    assert index.sort_finished(REF)
    assert tables(index)[0] == 1
    used = 0
    for bound in BOUNDS:
        for other in ("> 0", "IN (1, 2, 3)", "< 20 AND more > 3"):
            text = f"score {bound} AND lit {other} ORDER BY {order}"
            used += "FROM pair CROSS JOIN" in statements(index, text)[0]
            right = expected(index, text, N)
            for limit in (1, 40):
                assert answers(index, text, limit=limit) == right[: 4 * limit], text
    assert bool(used) == (order.startswith(("score", "lit")))


def test_sorting_reads_what_is_finished_and_once(index: SqliteIndex) -> None:
    open_stream = StreamRef("bt", "det", "open")
    commit(index, [1], [{"score": 1, "lit": 1}], open_stream)
    assert not index.sort_finished(open_stream)
    assert not index.sort_finished(StreamRef("bt", "det", "nobody"))
    assert index.sort_finished(REF)
    before = tables(index)
    assert not index.sort_finished(REF)
    assert tables(index) == before


def test_a_message_that_comes_late_is_found(index: SqliteIndex) -> None:
    index.sort_finished(REF)
    free = min(set(range(1, 5 * N)) - {row[0] for row in index.rows_from_id(1, 1, 5 * N, 10 * N)})
    commit(index, [free], [{"score": 1e308, "lit": 1e308}])
    text = "score > 0 AND lit > 0 ORDER BY score DESC"
    assert answers(index, text, limit=5)[0] == free
    assert "pair" not in statements(index, text)[0]
    assert index.sort_finished(REF)
    assert "FROM pair" in statements(index, text)[0]
    assert answers(index, text, limit=5) == expected(index, text, 20)


@pytest.mark.parametrize("keys", [["lit", "score"], ["score", "more"], ["score"], []])
def test_other_keys_make_it_void(index: SqliteIndex, keys: list[str]) -> None:
    index.sort_finished(REF)
    index.declare_keys([])
    index.declare_keys(keys)
    text = "score > 0 AND lit > 0 AND more > 0 ORDER BY score DESC"
    assert not any("FROM pair" in statement for statement in statements(index, text))
    assert answers(index, text, limit=5) == expected(index, text, 20)
    assert index.sort_finished(REF) == (len(keys) == 2)
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
    n_both = sum({"score", "lit"} <= json.loads(row[9]).keys() for row in index.rows_after_seq(1, 0, 10 * N))
    assert tables(index)[1] <= 2 * n_both
    assert answers(index, text, limit=5) == expected(index, text, 20)


def test_the_rows_of_one_stream_only_are_sorted(index: SqliteIndex) -> None:
    other = StreamRef("bt", "det", "other")
    index.finish_stream(other, 2, "")
    index.sort_finished(REF)
    with closing(sqlite3.connect(index.path)) as connection:
        keys = connection.execute("SELECT DISTINCT row_key >> ? FROM pair", (SEQ_BITS,)).fetchall()
    assert keys == [(index.stream_no(REF),)]
