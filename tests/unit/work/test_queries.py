"""Queries as plans: pages are put together, and an older broker is told from one that has nothing more."""

from __future__ import annotations

from typing import Any

import pytest

from asapo.errors import RemoteProtocolError, WrongInput
from asapo.testing.fake_broker import row
from asapo.wire.events import Done, Query, Rows
from asapo_work import queries
from asapo_work.queries import Asking, Found
from tests.unit.work.test_plans import PLACE, finish, rows_of


def page_of(*ids: int, cursor: str = "", more: bool = False) -> Rows:
    return rows_of(*map(row, ids), page={"cursor": cursor, "more": more} if cursor else {})


def ids_of(found: Found) -> list[int]:
    return [message.id for message in found]


def test_an_answer_that_ended_early_is_gone_on_with_up_to_the_limit() -> None:
    plan: Any = queries.query(PLACE, "a > 1", Asking(limit=5, keys=["a", "b"]), 1.0)
    ask = next(plan)
    assert ask.kind is Query
    assert {name: ask.fields[name] for name in ("text", "limit", "after", "keys", "paged")} == {
        "text": "a > 1", "limit": 5, "after": "", "keys": ["a", "b"], "paged": True,
    }  # fmt: skip
    ask = plan.send(page_of(1, 2, cursor="c2", more=True))
    assert (ask.fields["limit"], ask.fields["after"]) == (3, "c2")
    found = finish(plan, page_of(3, 4, 5, cursor="c5", more=True))
    assert (ids_of(found), found.cursor, found.more) == ([1, 2, 3, 4, 5], "c5", True)


def test_an_older_broker_answers_queries_as_ever() -> None:
    plan: Any = queries.query(PLACE, "", Asking(limit=2), 1.0)
    next(plan)
    found = finish(plan, page_of(1, 2))
    assert (ids_of(found), found.cursor, found.more) == ([1, 2], "", False)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (queries.query(PLACE, "", Asking(after="c"), 1.0), "cannot go on after a cursor"),
        (queries.page(PLACE, "", Asking(), 1.0), "cannot answer page by page"),
        (queries.count(PLACE, "", 1.0), "not by count"),
        (queries.explain(PLACE, "", 1.0), "not by explain"),
    ],
)
def test_an_older_broker_is_not_mistaken_for_one_that_has_nothing_more(plan: Any, says: str) -> None:
    next(plan)
    with pytest.raises(RemoteProtocolError, match=says):
        plan.send(page_of(1))


def test_numbers_and_plans_come_without_messages() -> None:
    plan: Any = queries.count(PLACE, "a = 1", 1.0)
    assert next(plan).fields["want"] == "count"
    assert finish(plan, Done(1, {"count": 17})) == 17
    plan = queries.explain(PLACE, "a = 1", 1.0)
    assert next(plan).fields["want"] == "explain"
    assert finish(plan, Done(1, {"explain": {"index": "id"}})) == {"index": "id"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"keys": "score"}, "keys 'score': expected a list"),
        ({"keys": []}, "expected a list"),
        ({"keys": [1]}, "expected a list"),
        ({"keys": ["a"], "resolve": "origin"}, "expected one of them"),
        ({"after": 5}, "expected the `cursor`"),
        ({"limit": 0}, "0 messages"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_sent(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongInput, match=says):
        Asking(**fields)
