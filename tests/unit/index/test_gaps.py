"""Lists of gaps, part by part, and how they are asked for."""

from collections.abc import Callable
from typing import Any

import pytest

from asapo.errors import DeadlineExceeded, WrongInput
from asapo.index import asked
from asapo.index.asked import QueryLimits
from asapo.index.gaps import cursor_behind, first_of
from asapo.models import MAX_ID, StreamRef
from asapo.testing.memory_index import MemoryIndex
from asapo.wire.events import Done, Query
from tests.contract.index_units import unit

REF = StreamRef("bt", "det", "run1")
NO_ROWS: Callable[..., Any] = lambda *_, **__: pytest.fail("asked for no rows")  # noqa: E731


def ask(index: Any, want: str, *, after: str = "", limit: int = 100, text: str = "") -> Any:
    request = Query(1, "det", "run1", text, limit, [], after, want)
    answer = asked.answer(index, REF, 1, request, QueryLimits(), NO_ROWS)
    assert isinstance(answer, Done)
    return answer.result


def test_a_long_list_comes_in_parts_and_each_range_once() -> None:
    index = MemoryIndex("bt")
    index.commit([unit(range(2, 21, 2))])
    found, after = [], ""
    for _ in range(10):
        answer = ask(index, "gaps", after=after, limit=3)
        found += answer["gaps"]
        after = answer["cursor"]
        if not after:
            break
    assert found == [[one, one] for one in range(1, 20, 2)]


def test_incomplete_datasets_come_in_parts() -> None:
    index = MemoryIndex("bt")
    index.commit([unit(range(1, 6), substream=1, dataset_size=2)])
    first = ask(index, "incomplete", limit=3)
    assert first == {"incomplete": [[1, 1, 2], [2, 1, 2], [3, 1, 2]], "cursor": "4"}
    assert ask(index, "incomplete", after="4", limit=3) == {"incomplete": [[4, 1, 2], [5, 1, 2]], "cursor": ""}


def test_what_makes_no_sense_is_refused_with_the_next_step() -> None:
    index = MemoryIndex("bt")
    with pytest.raises(WrongInput, match="expected no text"):
        ask(index, "gaps", text="n = 1")
    for cursor in ("x", "0", "-1", "1" * 30, "١", str(MAX_ID + 1)):
        with pytest.raises(WrongInput, match="leave it out to begin anew"):
            ask(index, "gaps", after=cursor)
    with pytest.raises(WrongInput, match="'gaps', 'incomplete' or nothing"):
        ask(index, "holes")


def test_the_limit_of_time_is_named() -> None:
    class Slow(MemoryIndex):
        def absent_ids(self, stream_no: int, first: int, limit: int, *, time_limit_s: float = 0) -> Any:
            raise DeadlineExceeded("too long", after_s=time_limit_s)

    with pytest.raises(DeadlineExceeded, match="finding the gaps took longer than 5 s, .*query_limit_s"):
        ask(Slow("bt"), "gaps")


def test_a_cursor_never_goes_beyond_the_highest_id() -> None:
    assert cursor_behind([[1, MAX_ID]], "gaps", 1) == str(MAX_ID)
    assert first_of(str(MAX_ID)) == MAX_ID
    assert cursor_behind([], "gaps", 1) == ""
