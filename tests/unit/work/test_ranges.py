"""Ranges of ids and times as queries, and the gaps of a stream put together from answers."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from asapo.errors import RemoteProtocolError, WrongInput
from asapo.query import parse
from asapo.testing.fake_broker import row
from asapo.wire.events import Describe, Done, Query, Rows
from asapo_work import ranges
from asapo_work.plans import Place, Show
from asapo_work.ranges import moment_text, range_text

NO_PAYLOADS: Any = None
PLACE = Place("bt", "det", "run", NO_PAYLOADS)


def text(**given: Any) -> str:
    values = {"first": None, "last": None, "since": None, "until": None, "by": "acquired", "where": ""} | given
    return range_text(**values)


def test_a_range_is_a_query() -> None:
    assert text() == ""
    assert text(first=3, last=9) == "_id >= 3 AND _id <= 9"
    assert text(since="2026-01-01", until=5, by="stored") == "_stored >= '2026-01-01' AND _stored < 0.000000005"
    assert text(first=1, where="a = 1 OR b = 2") == "_id >= 1 AND (a = 1 OR b = 2)"


def test_all_ways_to_write_a_time_mean_the_same() -> None:
    ns = 1_767_225_600_500_000_000
    noon = datetime(2026, 1, 1, 0, 0, 0, 500_000, UTC)
    ways: list[Any] = [ns, np.int64(ns), noon, noon.astimezone(timezone(timedelta(hours=9))), "2026-01-01T00:00:00.5Z"]
    assert len({str(parse(f"timestamp >= {moment_text('since', way)}")) for way in ways}) == 1
    assert moment_text("since", -1) == "-0.000000001"
    assert moment_text("since", ns + 1).endswith(".500000001")


def test_what_is_no_time_is_refused_by_name() -> None:
    for wrong, expected in (
        (1.5, "whole ns"),
        (None, "whole ns"),
        (datetime(2026, 1, 1), "with its zone"),
        ("'", "ISO"),
    ):
        with pytest.raises(WrongInput, match=f"until .*{expected}"):
            moment_text("until", wrong)  # type: ignore[arg-type]
    with pytest.raises(WrongInput, match="by 'sent'"):
        text(by="sent")
    with pytest.raises(WrongInput, match="message id 0"):
        text(first=0)


def test_messages_are_shown_one_by_one_over_all_pages() -> None:
    plan: Any = ranges.messages(PLACE, "_id >= 1", 2, ["n"], 1.0)
    ask = next(plan)
    assert (ask.kind, ask.fields["limit"], ask.fields["keys"], ask.fields["after"]) == (Query, 2, ["n"], "")
    step = plan.send(Rows(1, [row(1), row(2)], {}, {}, page={"cursor": "c", "more": True}))
    assert isinstance(step, Show)
    assert (step.value.id, next(plan).value.id) == (1, 2)
    ask = next(plan)
    assert ask.fields["after"] == "c"
    assert plan.send(Rows(1, [row(5)], {}, {}, page={"cursor": "d", "more": False})).value.id == 5
    with pytest.raises(StopIteration):
        next(plan)


HEAD = {"n_messages": 4, "id_max": 9, "closed_below": 5, "finished": False, "last_id": 0}


def gaps(head: dict[str, Any], *answers: dict[str, Any]) -> ranges.Gaps:
    plan: Any = ranges.gaps(PLACE, 1.0)
    assert next(plan).kind is Describe
    plan.send(Done(1, head))
    for number, answer in enumerate(answers):
        try:
            plan.send(Done(2, answer))
        except StopIteration as stop:
            assert number == len(answers) - 1
            found: ranges.Gaps = stop.value
            return found
    pytest.fail("asks for more")


def test_the_watermark_tells_what_is_missing_from_what_may_come() -> None:
    nothing = {"incomplete": [], "cursor": ""}
    found = gaps(HEAD, {"gaps": [[2, 6], [8, 8]], "cursor": ""}, nothing)
    assert (found.missing, found.awaited, found.n_missing) == (((2, 4),), ((5, 6), (8, 8)), 3)
    found = gaps({**HEAD, "finished": True, "last_id": 12, "closed_below": 13}, {"gaps": [], "cursor": ""}, nothing)
    assert (found.missing, found.awaited, found.whole) == (((10, 12),), (), False)


def test_what_came_after_the_first_answer_opens_no_gap() -> None:
    found = gaps(HEAD, {"gaps": [[8, 15]], "cursor": ""}, {"incomplete": [], "cursor": ""})
    assert found.awaited == ((8, 9),)


def test_long_lists_are_fetched_part_by_part() -> None:
    found = gaps(
        {**HEAD, "closed_below": 10}, {"gaps": [[2, 2]], "cursor": "3"}, {"gaps": [[4, 4]], "cursor": ""},
        {"incomplete": [[1, 1, 2]], "cursor": "2"}, {"incomplete": [[3, 1, 2]], "cursor": ""},
    )  # fmt: skip
    assert (found.missing, found.incomplete) == (((2, 2), (4, 4)), ((1, 1, 2), (3, 1, 2)))


def test_a_stream_that_has_everything_is_whole() -> None:
    head = {**HEAD, "finished": True, "last_id": 9, "closed_below": 10}
    assert gaps(head, {"gaps": [], "cursor": ""}, {"incomplete": [], "cursor": ""}).whole


def test_a_broker_that_does_not_know_gaps_is_named() -> None:
    plan: Any = ranges.gaps(PLACE, 1.0)
    next(plan)
    plan.send(Done(1, HEAD))
    with pytest.raises(RemoteProtocolError, match="update it"):
        plan.send(Rows(2, [], {}, {}))
