"""The calls of the API as plans: what they ask, and what they make of the answers. A clock that the test moves."""

from typing import Any

import pytest

from asapo.errors import (
    Gap,
    LeaseLost,
    NothingYet,
    RemoteProtocolError,
    StreamFinished,
    UnknownStream,
    WrongInput,
    to_wire,
)
from asapo.testing.fake_broker import row
from asapo.wire.events import Acknowledge, Describe, Done, GetById, GetNext, Nack, Query, Rows
from asapo_work import plans, queries
from asapo_work.message import messages_of
from asapo_work.plans import Ask, Pause, Place, Reading
from asapo_work.queries import Asking


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


NO_PAYLOADS: Any = None
PLACE = Place("bt", "det", "run", NO_PAYLOADS)
READING = Reading(group="g")


def rows_of(*rows: Any, **extra: Any) -> Rows:
    return Rows(1, list(rows), {}, {}, **extra)


def finish(plan: Any, answer: Any) -> Any:
    with pytest.raises(StopIteration) as stop:
        plan.send(answer)
    return stop.value.value


def test_get_next_asks_for_the_whole_wait_and_returns_messages() -> None:
    plan: Any = plans.get_next(PLACE, READING, 5, 10.0, Clock())
    ask = next(plan)
    assert ask.kind is GetNext
    assert (ask.fields["n"], ask.fields["wait_s"], ask.fields["group"], ask.timeout_s) == (5, 10.0, "g", 10.0)
    assert [message.id for message in finish(plan, rows_of(row(3), row(4)))] == [3, 4]


def test_a_long_wait_is_asked_in_slices() -> None:
    clock = Clock()
    plan: Any = plans.get_next(PLACE, READING, 1, 100.0, clock)
    assert next(plan).fields["wait_s"] == plans.WAIT_SLICE_S
    clock.now_s += 30
    assert isinstance(plan.throw(NothingYet("x")), Pause)
    again = next(plan)
    assert (again.fields["wait_s"], again.timeout_s) == (plans.WAIT_SLICE_S, 70.0)


def test_a_stream_that_is_unknown_is_asked_for_again_until_the_time_is_over() -> None:
    clock = Clock()
    plan: Any = plans.get_next(PLACE, READING, 1, 1.0, clock)
    next(plan)
    assert plan.throw(UnknownStream("x")) == Pause(plans.PAUSE_S)
    clock.now_s += 0.1
    assert next(plan).timeout_s == pytest.approx(0.9)
    clock.now_s += 5
    with pytest.raises(UnknownStream):
        plan.throw(UnknownStream("x"))


@pytest.mark.parametrize("answer", [StreamFinished("end", id_max=4), Gap("hole", message_id=3)])
def test_other_answers_are_raised_at_once(answer: Any) -> None:
    plan: Any = plans.get_next(PLACE, READING, 1, 10.0, Clock())
    next(plan)
    with pytest.raises(type(answer)):
        plan.throw(answer)


@pytest.mark.parametrize("n", [0, -1, 10_001, 1.5, True, "5"])
def test_a_count_that_is_none_is_refused(n: Any) -> None:
    with pytest.raises(WrongInput):
        next(plans.get_next(PLACE, READING, n, 1.0, Clock()))


@pytest.mark.parametrize("timeout_s", [-1, float("inf"), float("nan")])
def test_a_wait_without_end_is_refused(timeout_s: Any) -> None:
    with pytest.raises(WrongInput, match="finite"):
        plans.check_wait(timeout_s)


@pytest.mark.parametrize("lease_s", [0, -3.0, float("nan")])
def test_a_lease_that_is_none_is_refused(lease_s: Any) -> None:
    with pytest.raises(WrongInput, match="lease_s"):
        Reading(group="g", lease_s=lease_s)


def test_a_call_that_names_no_source_says_what_to_do() -> None:
    with pytest.raises(WrongInput, match="source="):
        Place("bt", "", "run", NO_PAYLOADS)


def test_messages_by_id_come_in_the_order_they_were_asked_for() -> None:
    plan: Any = plans.get_by_id(PLACE, [9, 2, 9], 1.0)
    assert next(plan).fields["ids"] == [9, 2, 9]
    assert [message.id for message in finish(plan, rows_of(row(2), row(9)))] == [9, 2, 9]


def test_many_ids_are_asked_for_in_parts() -> None:
    plan: Any = plans.get_by_id(PLACE, range(1, 2001), 1.0)
    assert next(plan).fields["ids"] == list(range(1, 1001))
    assert plan.send(rows_of(*map(row, range(1, 1001)))).fields["ids"] == list(range(1001, 2001))
    assert len(finish(plan, rows_of(*map(row, range(1001, 2001))))) == 2000


def test_the_first_missing_id_says_why_it_is_not_there() -> None:
    plan: Any = plans.get_by_id(PLACE, [1, 2, 3], 1.0)
    next(plan)
    missing = {2: to_wire(Gap("never", message_id=2)), 3: to_wire(NothingYet("later"))}
    with pytest.raises(Gap, match="never"):
        plan.send(rows_of(row(1), missing=missing))


def test_an_id_that_the_broker_forgot_is_a_gap() -> None:
    plan: Any = plans.get_by_id(PLACE, [1, 2], 1.0)
    next(plan)
    with pytest.raises(Gap) as caught:
        plan.send(rows_of(row(1)))
    assert caught.value.message_id == 2


def test_results_are_replaced_by_the_messages_they_came_from_each_once() -> None:
    plan: Any = queries.query(PLACE, "meta.score > 1", Asking(limit=10, resolve="origin"), 1.0)
    assert next(plan).kind is Query
    results = [
        row(1, origin=1, origin_id=50),
        row(2, origin=1, origin_id=40),
        row(3),
        row(4, origin=2, origin_id=50),
        row(5, origin=1, origin_id=50),
    ]
    ask = plan.send(rows_of(*results, origins={1: ["cam", "raw"], 2: ["cam2", "raw"]}))
    assert ask == Ask(GetById, {"source": "cam", "stream": "raw", "ids": [50, 40], "min_parts": 0}, 1.0)
    ask = plan.send(rows_of(row(40), row(50)))
    assert (ask.fields["source"], ask.fields["ids"]) == ("cam2", [50])
    found = finish(plan, rows_of(row(50)))
    assert [(message.source, message.id) for message in found] == [("cam", 50), ("cam", 40), ("cam2", 50)]


def test_resolving_to_something_unknown_is_refused() -> None:
    with pytest.raises(WrongInput, match="origin"):
        Asking(resolve="parent")


def test_streams_are_asked_for_page_by_page() -> None:
    page = [{"source": "det", "stream": f"s{i:04d}"} for i in range(plans.PAGE)]
    plan: Any = plans.streams("", 1.0)
    assert next(plan).fields["after"] == ""
    assert plan.send(Done(1, {"streams": page})).fields["after"] == "det\0s0999"
    assert len(finish(plan, Done(2, {"streams": page[:3]}))) == plans.PAGE + 3


def test_streams_of_one_source_page_on_by_name() -> None:
    page = [{"source": "det", "stream": f"s{i:04d}"} for i in range(plans.PAGE)]
    plan: Any = plans.streams("det", 1.0)
    next(plan)
    assert plan.send(Done(1, {"streams": page})).fields["after"] == "s0999"


def test_messages_of_several_streams_are_acknowledged_where_they_belong() -> None:
    one = messages_of("bt", "det", "run1", rows_of(row(1), row(2), row(5)), NO_PAYLOADS)
    other = messages_of("bt", "det", "run2", rows_of(row(1)), NO_PAYLOADS)
    plan: Any = plans.acknowledge([one[0], other[0], one[2], one[1]], lambda: PLACE, "g", 1.0)
    ask = next(plan)
    assert ask.kind is Acknowledge
    assert (ask.fields["stream"], ask.fields["ranges"]) == ("run1", [(1, 2), (5, 5)])
    assert [message.settled for message in one] == [False] * 3
    ask = plan.send(Done(1))
    assert [message.settled for message in one] == [True] * 3
    assert (ask.fields["stream"], ask.fields["ranges"]) == ("run2", [(1, 1)])


def test_bare_ids_belong_to_the_stream_that_the_call_names() -> None:
    ask: Any = next(plans.acknowledge(7, lambda: PLACE, "g", 1.0))
    assert (ask.fields["source"], ask.fields["stream"], ask.fields["ranges"]) == ("det", "run", [(7, 7)])


def test_nothing_given_asks_nothing() -> None:
    assert list(plans.acknowledge([], lambda: PLACE, "g", 1.0)) == []


def test_an_answer_of_the_wrong_kind_is_the_brokers_fault() -> None:
    plan: Any = plans.get_last(PLACE, 1.0)
    next(plan)
    with pytest.raises(RemoteProtocolError):
        plan.send(Done(1))


@pytest.mark.parametrize("kind", [Acknowledge, Nack])
def test_what_somebody_else_holds_is_named_after_the_rest_is_settled(kind: Any) -> None:
    one, two = messages_of("bt", "det", "run", rows_of(row(1), row(2)), NO_PAYLOADS)
    (other,) = messages_of("bt", "det", "run2", rows_of(row(7)), NO_PAYLOADS)
    (third,) = messages_of("bt", "det", "run3", rows_of(row(9)), NO_PAYLOADS)
    given, here = [one, two, other, third], lambda: PLACE
    plan: Any
    if kind is Nack:
        plan = plans.hand_back(given, here, "g", 1.0, delay_s=0.0, unstarted=False)
    else:
        plan = plans.acknowledge(given, here, "g", 1.0)
    assert next(plan).kind is kind
    assert plan.send(Done(1, {"lost": [2]})).fields["stream"] == "run2"
    assert plan.throw(LeaseLost("group 'g' has given no messages")).fields["stream"] == "run3"
    with pytest.raises(LeaseLost) as caught:
        plan.send(Done(3, {"lost": []}))
    assert caught.value.message_ids == [2, 7]
    assert all(message.settled for message in given)


def test_the_metadata_of_the_beamtime_are_asked_for_by_their_own_field() -> None:
    plan: Any = plans.beamtime_meta(1.0)
    assert next(plan) == Ask(Describe, {"source": "", "stream": "", "beamtime": True}, 1.0)
    assert finish(plan, Done(1, {"beamtime": "bt", "meta": {"user": "x"}})) == {"user": "x"}


def test_a_broker_that_does_not_know_that_field_is_not_believed() -> None:
    plan: Any = plans.beamtime_meta(1.0)
    next(plan)
    with pytest.raises(RemoteProtocolError, match="update"):
        plan.send(Done(1, {"uptime_s": 3.0}))
