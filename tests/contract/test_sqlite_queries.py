"""How the SQLite index finds what a query asks for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asapo.errors import DeadlineExceeded, IndexUnavailable
from asapo.index import (
    SqliteIndex,
    plans,
    ranges,
)
from asapo.query import And, Builtin, Comparison, In, MetaKey, Number, Or, Order, Query, parse
from tests.contract.index_units import ids_of, number, unit

# -- queries


def filled(index: SqliteIndex, n: int = 20_000) -> int:
    metas = [json.dumps({"score": (k * 7919) % n, "lit": (k * 104_729) % n}) for k in range(n)]
    for start in range(0, n, 5000):
        index.commit([unit(range(start + 1, start + 5001), metas=metas[start : start + 5000])])
    return number(index)


def plan(index: SqliteIndex, no: int, query: Query) -> str:
    return "\n".join(index.explain(no, query).plan)


def test_a_declared_key_is_searched_in_its_index_over_several_runs(open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    no = filled(index)
    score, lit = MetaKey(("score",)), MetaKey(("lit",))
    above = Comparison(score, ">=", Number(19_990))
    queries = [
        Query(above),
        Query(above, (Order(score, True),), 5),
        Query(Or((above, Comparison(lit, "<", Number(10))))),
        Query(Comparison(lit, "<", Number(100)), (Order(lit),), 7),
    ]
    plain = [index.query(no, query) for query in queries]
    assert [len(rows) for rows in plain] == [10, 5, 20, 7]
    index.declare_keys(["score", "lit"])
    assert [index.query(no, query) for query in queries] == plain
    for query in queries:
        assert "USING INDEX key_" in plan(index, no, query)
        assert "SCAN message" not in plan(index, no, query)
    index.declare_keys(["lit"])
    assert "key_" not in plan(index, no, queries[0])
    assert index.query(no, queries[0]) == plain[0]


N_TRIED = 12_000
SHAPES: dict[str, Callable[[int], Any]] = {
    "random": lambda k: (k * 7919) % N_TRIED / N_TRIED,
    "rising": lambda k: k / N_TRIED,
    "falling": lambda k: 1 - k / N_TRIED,
    "steps": lambda k: k // 1500 / 8,
    "equal": lambda _k: 0.95,
    "mixed": lambda k: [(k * 7919) % N_TRIED / N_TRIED, f"text {k}", None, True][k % 4],
    "late": lambda k: 0.99 if k > N_TRIED - 150 else 0.1,
}


def first_pages(index: SqliteIndex, no: int, queries: list[Query]) -> list[list[int]]:
    found = []
    for query in queries:
        first = index.query(no, query, row_limit=20)
        second = index.query(no, query, row_limit=20, after=first[-1][1]) if first else []
        found.append(ids_of([*first, *second]))
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_few_are_the_same_whatever_is_tried_first(
    open_index: Callable[..., SqliteIndex], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index()
    ids = [(k * 5003) % N_TRIED + 1 if shape == "random" else k + 1 for k in range(N_TRIED)]
    metas = [json.dumps({"score": SHAPES[shape](k), "lit": (k * 104_729) % N_TRIED / N_TRIED}) for k in range(N_TRIED)]
    for start in range(0, N_TRIED, 4000):
        index.commit([unit(ids[start : start + 4000], metas=metas[start : start + 4000])])
    no = number(index)
    conditions = [
        "score > 0.9 AND lit > 0.8",
        "lit BETWEEN 0.3 AND 0.6 AND score >= 0",
        "score IN (0.95, 0.25) AND lit < 0.1",
        "score > 0.5 AND NOT lit > 0.9",
    ]
    orders = ["", "ORDER BY score", "ORDER BY lit DESC, score"]
    queries = [parse(f"{condition} {order}") for condition in conditions for order in orders]
    plain = first_pages(index, no, queries)
    counts = [index.count(no, query) for query in queries]
    tried: list[bool] = []
    statements = plans.Planner.statements

    def noted(planner: plans.Planner) -> list[ranges.Statement]:
        found = statements(planner)
        tried.append(len(found) > 1)
        return found

    monkeypatch.setattr(plans.Planner, "statements", noted)
    index.declare_keys(["score", "lit"])
    assert first_pages(index, no, queries) == plain
    assert any(tried)
    monkeypatch.setattr(plans, "LONG", 0)
    monkeypatch.setattr(plans, "MARGIN", 0.3)
    assert first_pages(index, no, queries) == plain, "tries that look at too little change nothing"
    assert [index.count(no, query) for query in queries] == counts


def test_a_query_is_explained_by_the_index_that_serves_it(open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    no = filled(index)
    index.declare_keys(["lit"])
    score, lit, by_id = MetaKey(("score",)), MetaKey(("lit",)), Builtin("_id")
    few = Comparison(lit, "<", Number(10))
    third = Comparison(by_id, ">", Number(15_000))

    def explained(query: Query) -> tuple[str, bool, int, bool]:
        found = index.explain(no, query)
        assert found.rows_total == 20_000
        assert found.plan
        return found.index, found.scans, found.rows, found.sorts

    assert explained(Query()) == ("", True, 20_000, False)
    assert explained(Query(Comparison(score, "<", Number(10)), (Order(score),))) == ("", True, 20_000, True)
    assert explained(Query(And((few, Comparison(score, "<", Number(10)))))) == ("lit", False, 10, True)
    assert explained(Query(third)) == ("id", False, 5_000, False)
    assert explained(Query(third, (Order(score),))) == ("id", False, 5_000, True)
    assert explained(Query(Comparison(MetaKey(("_id",)), ">", Number(5)))) == ("", True, 20_000, False)
    assert explained(Query(In(lit, (Number(3), Number(5))))) == ("lit", False, 2, True)


def test_counting_and_explaining_are_bounded_in_time(open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    no = filled(index)
    slow = Query(Comparison(MetaKey(("score",)), "<", Number(0)))
    with pytest.raises(DeadlineExceeded):
        index.count(no, slow, time_limit_s=0)
    with pytest.raises(DeadlineExceeded):
        index.explain(no, slow, time_limit_s=0)
    assert index.count(no, slow) == 0


def test_the_first_messages_in_the_order_of_ids_are_found_without_sorting_all(
    open_index: Callable[..., SqliteIndex],
) -> None:
    index = open_index()
    no = filled(index)
    assert "USE TEMP B-TREE" not in plan(index, no, Query(Comparison(MetaKey(("score",)), ">", Number(5)), (), 5))


def test_a_query_that_runs_too_long_is_stopped_and_the_next_one_works(open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    no = filled(index)
    slow = Query(Comparison(MetaKey(("score",)), "<", Number(0)))
    with pytest.raises(DeadlineExceeded) as caught:
        index.query(no, slow, time_limit_s=0)
    assert caught.value.after_s == 0
    assert index.query(no, slow) == []


def test_an_index_can_be_closed_under_a_running_query(open_index: Callable[..., SqliteIndex]) -> None:
    index = open_index()
    no = filled(index)
    slow = Query(Comparison(MetaKey(("score",)), "<", Number(0)))
    answers: list[object] = []
    started = threading.Event()

    def ask() -> None:
        started.set()
        try:
            while True:
                answers.append(index.query(no, slow))
        except IndexUnavailable as error:
            answers.append(error.reason)

    thread = threading.Thread(target=ask)
    thread.start()
    started.wait()
    index.close()
    thread.join()
    assert answers[-1] == "closed"
    assert all(answer == [] for answer in answers[:-1])
