"""SQLite and plain Python give the same answers to any sequence of commits, sessions and ends of streams."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asapo.errors import AsapoError
from asapo.index import MetadataIndex, SessionMark, SqliteIndex, UnitRecord
from asapo.models import MAX_ID, Format, Origin, StreamRef
from asapo.query import Comparison, MetaKey, Number, Order, Query
from asapo.testing.memory_index import MemoryIndex

TIMEOUT_S = 10.0
examples = itertools.count()
Step = tuple[str, Callable[[str], tuple[Any, ...]]]
"""Name of a method, and its arguments once the example's source is known."""

an_id = st.integers(1, 12) | st.sampled_from([0, -3, MAX_ID, MAX_ID + 1])
a_text = st.sampled_from(['{"n": 1}', '{"n": 2.5}', '{"n": "x"}', "{}", '{"n": "\udc80"}'])
a_row = st.tuples(an_id, st.sampled_from([1, 1, 2]), a_text)
a_session = st.sampled_from([b"1" * 16, b"2" * 16])


@st.composite
def a_unit(draw: st.DrawFn) -> dict[str, Any]:
    """Return the fields of a unit but its source."""
    rows = draw(st.lists(a_row, max_size=5))
    substream = draw(st.sampled_from([0, 0, 1, 2]))
    return {
        "ref": draw(st.sampled_from("ab")),
        "ids": [row[0] for row in rows],
        "offsets": [64 * k for k in range(len(rows))],
        "sizes": [row[1] for row in rows],
        "checksums": [-row[1] for row in rows],
        "metas": [row[2] for row in rows],
        "t_acq_ns": list(range(len(rows))),
        "t_ingest_ns": 5,
        "segment": draw(st.sampled_from([0, 1, 2])),
        "format": draw(st.sampled_from([Format(), Format("<u2", (1,))])),
        "substream": substream,
        "dataset_size": 2 if substream else 0,
        "origins": [None if k % 2 else k for k in range(len(rows))] if draw(st.booleans()) else None,
        "begun": draw(st.sampled_from([None, 0])),
        "session": draw(st.none() | st.builds(SessionMark, a_session, st.integers(0, 15), st.just("r"))),
    }


def build_unit(source: str, fields: dict[str, Any]) -> UnitRecord:
    origins = fields["origins"]
    if origins is not None:
        origins = [None if k is None else Origin(source, "o", k + 1) for k in origins]
    return UnitRecord(**(fields | {"ref": StreamRef("bt", source, fields["ref"]), "origins": origins}))


def a_call(kind: str, build: Callable[..., tuple[Any, ...]], *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """Return a strategy for a call whose arguments are `build(source, *drawn parts)`."""
    return st.tuples(*parts).map(lambda drawn: (kind, lambda source: build(source, *drawn)))


a_name = st.sampled_from("ab")
a_step: st.SearchStrategy[Step] = st.one_of(
    a_call("commit", lambda source, units: ([build_unit(source, u) for u in units],), st.lists(a_unit(), max_size=4)),
    a_call(
        "open_session",
        lambda source, name, *rest: (StreamRef("bt", source, name), *rest, "r"),
        a_name,
        a_session,
        st.sampled_from([0, 1]),
        st.booleans(),
    ),
    a_call(
        "beat",
        lambda source, session, marks: (session, {StreamRef("bt", source, k): v for k, v in marks.items()}),
        a_session,
        st.dictionaries(a_name, st.integers(0, 15)),
    ),
    a_call("close_session", lambda _, session: (session,), a_session),
    a_call(
        "finish_stream",
        lambda source, name, last_id, then: (StreamRef("bt", source, name), last_id, then),
        a_name,
        st.integers(0, 14),
        st.sampled_from(["", "b"]),
    ),
    a_call(
        "delete_stream",
        lambda source, name, force: (StreamRef("bt", source, name), force),
        a_name,
        st.booleans(),
    ),
    a_call("pass_time", lambda _, seconds: (seconds,), st.floats(0, 12)),
)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def delete(index: MetadataIndex, ref: StreamRef, force: bool) -> Any:
    """Delete a stream wholly; what it was told to move is what it says."""
    moved: list[Any] = []
    deletion = index.delete_stream(ref, force=force)
    index.finish_deletion(deletion.no, moved.append)
    index.clean_deleted()
    return [(one.ref, one.folders, one.moved) for one in (deletion, *moved)]


def answer(index: MetadataIndex, kind: str, arguments: tuple[Any, ...], began: int) -> Any:
    """Return what the call gives, errors as (class, fields).

    Segments that units lie in were begun at the begin of the example, when `began` was the last deletion.
    """
    try:
        if kind == "delete_stream":
            return delete(index, *arguments)
        if kind == "commit":
            (units,) = arguments
            arguments = ([unit if unit.begun is None else replace(unit, begun=began) for unit in units],)
        result = getattr(index, kind)(*arguments)
    except AsapoError as error:
        return type(error), error.fields
    if kind != "commit":
        return result
    return [
        (o.void, o.first_seq, o.head_seq, o.superseded, [(k, type(error), error.fields) for k, error in o.errors])
        for o in result
    ]


def state(index: MetadataIndex, source: str) -> Any:
    """Return everything that can be seen, names in place of numbers."""
    infos = index.streams(source)
    seen: list[Any] = [infos]
    query = Query(Comparison(MetaKey(("n",)), ">", Number(1)), (Order(MetaKey(("n",)), True),), 3)
    for info in infos:
        no = index.stream_no(info.ref)
        assert no is not None
        rows = index.rows_after_seq(no, 0, 1000)
        assert [row[1] for row in rows] == list(range(1, info.head_seq + 1))
        formats, origins = index.formats(row[8] for row in rows), index.stream_refs(row[12] for row in rows)
        seen.append([(*row[:8], formats[row[8]], *row[9:12], origins.get(row[12]), row[13]) for row in rows])
        found = [*index.rows_from_id(no, 2, 9, 4), *index.query(no, query), index.last_row(no), index.row(no, 3)]
        seen.append([row and row[:3] for row in found])
        seen.append(index.heads([no])[no])
    return seen


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[SqliteIndex]:
    """Return one index for all examples, each of which uses streams of its own: a new file takes 50 ms."""
    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    index = SqliteIndex(path, "bt", session_timeout_s=TIMEOUT_S, clock_s=clock)
    yield index
    index.close()


@settings(max_examples=100)
@given(source=st.uuids().map(str), steps=st.lists(a_step, max_size=8), declared=st.booleans())
def test_sqlite_answers_like_plain_python(
    sqlite: SqliteIndex, clock: Clock, source: str, steps: list[Step], *, declared: bool
) -> None:
    # Hypothesis repeats examples while it shrinks, so the drawn name alone would not be new.
    source += str(next(examples))
    model = MemoryIndex("bt", session_timeout_s=TIMEOUT_S, clock_s=clock)
    sqlite.declare_keys(["n"] if declared else [])
    began = (sqlite.last_deletion(), model.last_deletion())
    for kind, build in steps:
        arguments = build(source)
        if kind == "pass_time":
            clock.now_s += arguments[0]
        else:
            assert answer(sqlite, kind, arguments, began[0]) == answer(model, kind, arguments, began[1])
    assert state(sqlite, source) == state(model, source)
