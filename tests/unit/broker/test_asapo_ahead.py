"""How far is looked ahead of a reader, and what is kept of it."""

from __future__ import annotations

import pytest

from asapo.models import Row, StreamRef
from asapo_broker.http.compat import ahead as module
from asapo_broker.http.compat.ahead import MAX_WIDTH, Ahead
from asapo_broker.http.compat.streams import Found

pytestmark = pytest.mark.needs_server

REF = StreamRef("bt", "det", "s")


def message(message_id: int, *, parts: int = 1, of: int = 0, nbytes: int = 10) -> Found:
    row = Row(message_id, 1, 0, of, 1, 0, 0, 0, 0, "{}", 0, 0, 0, 0)
    return Found([row] * parts, [b"x" * nbytes] * parts)


def look(ahead: Ahead, message_id: int, last: int) -> int:
    """Look as the front does, at a stream that has ids up to `last`; return how many ids were asked for."""
    if ahead.take(REF, message_id) is not None:
        return 0
    width = ahead.width(REF, message_id)
    found = {n: message(n) for n in range(message_id, message_id + width) if n <= last}
    ahead.keep(REF, message_id, width, found)
    return width


def test_whoever_reads_id_after_id_asks_for_more_each_time() -> None:
    ahead = Ahead()
    asked = [look(ahead, n, 10_000) for n in range(1, 1001)]
    assert [n for n in asked if n][:8] == [1, 2, 4, 8, 16, 32, 64, 64]
    assert max(asked) == MAX_WIDTH
    assert len([n for n in asked if n]) < 25


def test_at_the_end_of_a_stream_one_is_asked_for() -> None:
    ahead = Ahead()
    asked = [look(ahead, n, 20) for n in range(1, 21)]
    assert sum(asked) < 45
    assert [look(ahead, 21, 20) for _ in range(3)] == [1, 1, 1]


def test_whoever_jumps_asks_for_one() -> None:
    ahead = Ahead()
    assert [look(ahead, n, 10_000) for n in (500, 7, 300, 9000)] == [1, 1, 1, 1]


def test_a_dataset_that_lacks_parts_is_not_kept() -> None:
    ahead = Ahead()
    ahead.keep(REF, 1, 2, {1: message(1, parts=2, of=2), 2: message(2, parts=1, of=2)})
    assert ahead.take(REF, 1) is not None
    assert ahead.take(REF, 2) is None
    assert ahead.take(StreamRef("bt", "det", "t"), 1) is None


def test_what_is_old_is_looked_up_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    ahead = Ahead()
    ahead.keep(REF, 1, 1, {1: message(1)})
    now_s += module.KEPT_S - 0.1
    assert ahead.take(REF, 1) is not None
    now_s += 0.2
    assert ahead.take(REF, 1) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    monkeypatch.setattr(module, "MAX_STREAMS", 10)
    ahead = Ahead()
    for n in range(1, 101):
        ahead.keep(StreamRef("bt", "det", f"s{n}"), n, 1, {n: message(n, nbytes=4500)})
    kept = [n for n in range(1, 101) if ahead.take(StreamRef("bt", "det", f"s{n}"), n) is not None]
    assert kept == list(range(91, 101))
    assert len(ahead._next) == 10
