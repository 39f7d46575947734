"""Calls about groups as plans, and how a failure of user code is told."""

from __future__ import annotations

from typing import Any

import pytest

from asapo.delivery.letters import REASON_CHARS, TRACEBACK_CHARS
from asapo.errors import Gap, RemoteProtocolError, WrongInput
from asapo.testing.fake_broker import row
from asapo.wire.events import Done, GetById, Query, Rows
from asapo.wire.group_events import ListDeadLetters, ListGroups, Seek, SettleDeadLetters
from asapo_work import groups
from asapo_work.failures import told
from asapo_work.groups import DeadLetter, GroupInfo
from asapo_work.plans import PAGE, Place

PLACE = Place("bt", "det", "run", None)  # type: ignore[arg-type]


def finish(plan: Any, answer: Any) -> Any:
    with pytest.raises(StopIteration) as stop:
        plan.send(answer)
    return stop.value.value


def seek(**target: Any) -> Any:
    known: dict[str, Any] = {"to": None, "message_id": None, "time_ns": None, "fraction": None, **target}
    return groups.seek(PLACE, "g", 5.0, **known)


# -- plans


def test_groups_are_asked_for_page_by_page() -> None:
    plan: Any = groups.groups("det", "", 5.0)
    ask = next(plan)
    assert (ask.kind, ask.fields["source"], ask.fields["after"]) == (ListGroups, "det", [])
    page = [{"source": "det", "stream": f"s{n}", "group": "g", "workers": ["w"], "later": 1} for n in range(PAGE)]
    ask = plan.send(Done(1, {"groups": page}))
    assert ask.fields["after"] == ["det", f"s{PAGE - 1}", "g"]
    found = finish(plan, Done(1, {"groups": []}))
    assert len(found) == PAGE
    assert found[0] == GroupInfo(source="det", stream="s0", group="g", workers=("w",))


def test_dead_letters_are_asked_for_above_the_last_one_seen() -> None:
    plan: Any = groups.dead_letters(PLACE, "g", 5.0)
    ask = next(plan)
    assert (ask.kind, ask.fields["after"]) == (ListDeadLetters, 0)
    letter = {"message_id": 7, "attempts": 3, "reason": "r", "key": 7, "worker": "w", "failed_ns": 1}
    assert plan.send(Done(1, {"letters": [letter]})).fields["after"] == 7
    expected = DeadLetter(id=7, attempts=3, reason="r", worker="w", failed_ns=1)
    assert finish(plan, Done(1, {"letters": []})) == [expected]


def test_a_broker_that_tells_of_no_letter_is_to_blame() -> None:
    plan: Any = groups.dead_letters(PLACE, "g", 5.0)
    next(plan)
    with pytest.raises(RemoteProtocolError, match="DeadLetter that is none"):
        plan.send(Done(1, {"letters": [{"reason": "r"}]}))


def test_all_dead_letters_are_settled_but_not_those_that_come_meanwhile() -> None:
    plan: Any = groups.settle(PLACE, "g", None, 5.0, requeue=True)
    ask = next(plan)
    assert (ask.kind, ask.fields["everything"], ask.fields["requeue"]) == (SettleDeadLetters, True, True)
    plan.send(Done(1, {"count": 1000, "left": 500}))
    assert finish(plan, Done(1, {"count": 800, "left": 300})) == 1800
    empty: Any = groups.settle(PLACE, "g", None, 5.0, requeue=False)
    next(empty)
    assert finish(empty, Done(1, {"count": 0, "left": 0})) == 0


def test_letters_and_ids_are_settled_in_portions() -> None:
    plan: Any = groups.settle(PLACE, "g", [DeadLetter(id=5, attempts=1)], 5.0, requeue=False)
    ask = next(plan)
    assert (ask.fields["ids"], ask.fields["requeue"]) == ([5], False)
    assert finish(plan, Done(1, {"count": 1, "left": 0})) == 1
    many: Any = groups.settle(PLACE, "g", list(range(1, 1501)), 5.0, requeue=True)
    assert len(next(many).fields["ids"]) == groups.SETTLED_AT_ONCE
    assert len(many.send(Done(1, {"count": 3, "left": 0})).fields["ids"]) == 500
    assert finish(many, Done(1, {"count": 4, "left": 0})) == 7


def test_a_time_is_looked_up_before_the_group_seeks() -> None:
    plan: Any = seek(time_ns=1_500_000_001)
    ask = next(plan)
    assert (ask.kind, ask.fields["text"]) == (Query, "timestamp >= 1.500000001 ORDER BY timestamp")
    ask = plan.send(Rows(1, [row(8, seq=3)], {}, {}))
    assert (ask.kind, ask.fields["to"], ask.fields["message_id"], ask.fields["seq"]) == (Seek, "id", 8, 3)
    assert finish(plan, Done(1, {"position": 8})) == 8
    nothing: Any = seek(time_ns=0)
    next(nothing)
    assert nothing.send(Rows(1, [], {}, {})).fields["to"] == "end"


def test_an_id_that_is_not_there_serves_ordered_groups() -> None:
    plan: Any = seek(message_id=4)
    assert next(plan).kind is GetById
    ask = plan.throw(Gap("no id 4", message_id=4))
    assert (ask.fields["to"], ask.fields["message_id"], ask.fields["seq"]) == ("id", 4, 0)


@pytest.mark.parametrize(
    "target",
    [{}, {"to": "start", "fraction": 0.5}, {"to": "middle"}, {"time_ns": -1}, {"time_ns": 1.5}, {"message_id": 0}],
)
def test_a_place_that_is_none_is_refused_before_anything_is_asked(target: dict[str, Any]) -> None:
    with pytest.raises(WrongInput):
        next(seek(**target))


# -- failures


def fail() -> None:
    raise ValueError("\udcff" + "x" * 10_000)


def test_what_is_told_of_an_exception_is_bounded_and_can_be_sent() -> None:
    with pytest.raises(ValueError, match="x") as caught:
        fail()
    fields = told(caught.value)
    assert fields["reason"].startswith("ValueError: ?x")
    assert len(fields["reason"]) == REASON_CHARS
    assert len(fields["traceback"]) == TRACEBACK_CHARS
    assert told("in a line") == {"reason": "in a line", "traceback": ""}


def test_an_exception_whose_text_cannot_be_made_is_told_all_the_same() -> None:
    class NamelessError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "NamelessError" in told(NamelessError())["reason"]
