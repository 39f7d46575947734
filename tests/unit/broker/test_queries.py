"""Queries in the request pool: pages and their cursors, projection, limits, and that slow ones stop nobody."""

from __future__ import annotations

import base64
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from asapo.errors import DeadlineExceeded, WrongInput
from asapo.index import UnitRecord, cursors
from asapo.index import asked as queries
from asapo.index.asked import QueryLimits, answer
from asapo.index.cursors import Place
from asapo.models import StreamRef
from asapo.query import parse
from asapo.testing.memory_index import MemoryIndex
from asapo.wire.codec import decode
from asapo.wire.events import Done, Failed, GetLast, Query, Rows
from asapo_broker.requests import RequestPool
from asapo_broker.turns import TurnQueue

pytestmark = pytest.mark.needs_server

REF = StreamRef("bt", "det", "s")
WAIT_S = 20.0


def units(ids: Sequence[int], metas: Sequence[Any], **more: Any) -> list[UnitRecord]:
    n = len(ids)
    texts = [json.dumps(meta, ensure_ascii=False) for meta in metas]
    return [
        UnitRecord(ref=REF, ids=ids, offsets=[0] * n, sizes=[1] * n, checksums=[0] * n, metas=texts,
                   t_acq_ns=[0] * n, t_ingest_ns=0, segment=1, **more)
    ]  # fmt: skip


@pytest.fixture
def index() -> Iterator[MemoryIndex]:
    made = MemoryIndex("bt")
    made.commit(units(range(1, 8), [{"score": n % 3, "sample": {"name": f"s{n}", "n": n}} for n in range(1, 8)]))
    yield made
    made.close()


def rows_event(number: int, rows: Any, **extra: Any) -> Rows:
    return Rows(number, list(rows), {}, {}, **extra)


def ask(index: MemoryIndex, text: str = "", limits: QueryLimits | None = None, **fields: Any) -> Any:
    asked = Query(1, REF.source, REF.stream, text, **fields)
    return answer(index, REF, 1, asked, limits or QueryLimits(), rows_event)


def ids_of(found: Rows) -> list[int]:
    return [row[0] for row in found.rows]


def number_of(reply: Any) -> int:
    event: Any = decode(reply.header)
    return int(event.request)


def pages(index: MemoryIndex, text: str, limit: int) -> list[list[int]]:
    found: list[list[int]] = []
    after = ""
    while True:
        part = ask(index, text, limit=limit, after=after, paged=True)
        found.append(ids_of(part))
        after = part.page["cursor"]
        if not part.page["more"]:
            return found


def test_pages_go_on_behind_each_other(index: MemoryIndex) -> None:
    assert pages(index, "", 3) == [[1, 2, 3], [4, 5, 6], [7]]
    assert pages(index, "ORDER BY score DESC", 4) == [[2, 5, 1, 4], [7, 3, 6]]
    assert pages(index, "score = 0", 2) == [[3, 6], []]


def test_the_limit_of_the_text_holds_for_all_pages_together(index: MemoryIndex) -> None:
    assert pages(index, "ORDER BY score DESC LIMIT 5", 2) == [[2, 5], [1, 4], [7]]
    assert pages(index, "LIMIT 4", 2) == [[1, 2], [3, 4]]
    assert pages(index, "LIMIT 0", 2) == [[]]


def test_a_page_is_gone_on_with_when_more_has_arrived(index: MemoryIndex) -> None:
    last = ask(index, "_id > 5", limit=5)
    assert (ids_of(last), last.page["more"]) == ([6, 7], False)
    index.commit(units([9, 8], [{}, {}]))
    assert ids_of(ask(index, "_id > 5", after=last.page["cursor"])) == [8, 9]
    nothing = ask(index, "_id > 20")
    assert ids_of(ask(index, "_id > 20", after=nothing.page["cursor"])) == []


def test_an_answer_ends_where_the_metadata_get_too_long_and_old_clients_are_told(
    index: MemoryIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.commit(units([8], [{"text": "ä" * 30}]))
    size = sum(len(row[9].encode()) for row in index.query(1, parse("_id < 4")))
    monkeypatch.setattr(queries, "REPLY_BYTES", size)
    assert pages(index, "", 1000) == [[1, 2, 3], [4, 5, 6], [7, 8]]
    with pytest.raises(WrongInput, match="use a smaller limit, or name the keys"):
        ask(index)
    assert ids_of(ask(index, keys=["score"])) == list(range(1, 9)), "what counts is what is sent"
    monkeypatch.setattr(queries, "REPLY_BYTES", 10)
    assert pages(index, "_id > 6", 1000) == [[7], [8]], "one message always goes"


def test_a_dataset_stands_whole_on_one_page(index: MemoryIndex) -> None:
    for substream in (1, 2, 3):
        index.commit(units([8, 9], [{}, {}], substream=substream, dataset_size=3))
    assert pages(index, "_id > 6", 3) == [[7], [8, 8, 8], [9, 9, 9], []]
    assert pages(index, "_id > 6", 5) == [[7, 8, 8, 8], [9, 9, 9]]
    assert pages(index, "_id > 7", 2) == [[8, 8], [8], [9, 9], [9]], "longer than a page"
    assert ids_of(ask(index, "_id > 6", limit=3)) == [7, 8, 8], "whoever does not page gets what was asked for"


def test_only_the_keys_asked_for_come_back(index: MemoryIndex) -> None:
    found = ask(index, "_id <= 2", keys=["sample.name", "nothing", "meta.score"])
    assert [json.loads(row[9]) for row in found.rows] == [
        {"score": 1, "sample": {"name": "s1"}},
        {"score": 2, "sample": {"name": "s2"}},
    ]
    assert [len(row) for row in found.rows] == [14, 14]
    for keys, says in (
        ([5], "5"),
        (["_id"], "every message comes with it"),
        (["a b"], "'a b'"),
        (["a"] * 65, "65 keys"),
    ):
        with pytest.raises(WrongInput, match=says):
            ask(index, keys=keys)


def test_count_and_explain_answer_without_messages(index: MemoryIndex) -> None:
    assert ask(index, "score > 0", want="count") == Done(1, {"count": 5})
    assert ask(index, "score > 0 LIMIT 2", want="count") == Done(1, {"count": 2})
    told = ask(index, "score > 0", want="explain").result["explain"]
    assert set(told) == {"index", "scans", "rows", "rows_total", "sorts", "plan"}
    with pytest.raises(WrongInput, match="want 'sum'"):
        ask(index, want="sum")


def test_limits_are_named_with_the_setting_that_raises_them(
    index: MemoryIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WrongInput, match="expected 1 to 3.*query_rows") as too_many:
        ask(index, limits=QueryLimits(rows=3), limit=4)
    assert too_many.value.limit == "query_rows"

    def slow(*_: Any, **options: Any) -> Any:
        raise DeadlineExceeded("late", after_s=options["time_limit_s"])

    for name, want in (("query", ""), ("count", "count"), ("explain", "explain")):
        monkeypatch.setattr(index, name, slow)
        with pytest.raises(DeadlineExceeded, match=r"longer than 2.5 s.*query_limit_s") as caught:
            ask(index, limits=QueryLimits(run_s=2.5), want=want)
        assert (caught.value.after_s, caught.value.limit) == (2.5, "query_limit_s")


# -- cursors


def test_a_cursor_is_taken_for_its_query_and_stream_only() -> None:
    query = parse("a > 1 ORDER BY b")
    text = cursors.write(REF, query, Place(2**39, 7))
    assert cursors.read(text, REF, query) == Place(2**39, 7)
    assert cursors.read(text, REF, parse("meta.a>1 order by b ASC")) == Place(2**39, 7), "spelling does not matter"
    for ref, other in (
        (REF, parse("a > 1")),
        (StreamRef("bt", "det", "t"), query),
        (StreamRef("b", "det", "s"), query),
    ):
        with pytest.raises(WrongInput, match="another query or stream"):
            cursors.read(text, ref, other)


@pytest.mark.parametrize(
    "text", ["x", "", "ä", "AAAA", "=" * 9, base64.b64encode(b"\x02" * 25).decode(), "A" * 100_000]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(WrongInput, match="expected the cursor of an earlier answer") as caught:
        cursors.read(text, REF, parse(""))
    assert len(str(caught.value)) < 300


def test_a_cursor_of_a_row_that_is_gone_is_refused(index: MemoryIndex) -> None:
    with pytest.raises(WrongInput, match="arrival number 99"):
        ask(index, after=cursors.write(REF, parse(""), Place(99, 1)))


# -- turns


def test_sessions_take_turns() -> None:
    turns = TurnQueue(at_once=9)
    for session, request in ((1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e"), (2, "f")):
        turns.put(session, request)
    assert len(turns) == 6
    assert [turns.take() for _ in range(6)] == [(1, "a"), (2, "d"), (3, "e"), (1, "b"), (2, "f"), (1, "c")]
    assert len(turns) == 0


def test_a_session_has_only_so_many_under_way() -> None:
    turns = TurnQueue(at_once=1)
    turns.put(1, "a")
    turns.put(1, "b")
    turns.put(2, "c")
    assert [turns.take(), turns.take()] == [(1, "a"), (2, "c")]
    taken: queue.Queue[Any] = queue.Queue()

    def take_two() -> None:
        for _ in range(2):
            taken.put(turns.take())

    taker = threading.Thread(target=take_two)
    taker.start()
    turns.done(2)
    assert taken.empty()
    turns.done(1)
    assert taken.get(timeout=WAIT_S) == (1, "b")
    turns.close()
    assert taken.get(timeout=WAIT_S) is None
    taker.join()


# -- the pool


class Session:
    beamtime = "bt"


class Indexes:
    """One index, and tables that know nothing."""

    def __init__(self, index: MemoryIndex) -> None:
        self.index = index

    def opened(self, _beamtime: str) -> MemoryIndex:
        return self.index

    def tables(self, _beamtime: str) -> Any:
        return self

    def learn(self, *_: Any) -> None:
        """Know nothing."""

    def answer(self, request: int, rows: Any, _registry: Any, **extra: Any) -> Rows:
        return rows_event(request, rows, **extra)


@pytest.fixture
def pool(index: MemoryIndex) -> Iterator[Callable[..., tuple[RequestPool, queue.Queue[Any]]]]:
    made: list[RequestPool] = []

    def make(**options: Any) -> tuple[RequestPool, queue.Queue[Any]]:
        replies: queue.Queue[Any] = queue.Queue()
        settings: dict[str, Any] = {"threads": 1, "query_threads": 2, "limits": QueryLimits(), "max_queued": 100}
        made.append(RequestPool(Indexes(index), None, None, replies.put, **settings | options))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1], replies

    yield make
    for one in made:
        one.stop()
        one.join(WAIT_S)


def test_slow_queries_of_one_session_stop_neither_others_nor_quick_requests(
    index: MemoryIndex, pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, running = threading.Event(), threading.Semaphore(0)
    really = index.query

    def query(no: int, asked: Any, **options: Any) -> Any:
        if str(asked) == "slow = 1":
            running.release()
            assert go_on.wait(WAIT_S)
        return really(no, asked, **options)

    monkeypatch.setattr(index, "query", query)
    requests, replies = pool()
    greedy, other = Session(), Session()
    try:
        for number in range(1, 6):
            requests.submit(greedy, Query(number, "det", "s", "slow = 1"))
        assert running.acquire(timeout=WAIT_S)
        requests.submit(greedy, GetLast(10, "det", "s"))
        requests.submit(other, Query(11, "det", "s", "_id = 3"))
        quick = [replies.get(timeout=WAIT_S) for _ in range(2)]
        assert {(reply.session, number_of(reply)) for reply in quick} == {(greedy, 10), (other, 11)}
        assert not running.acquire(blocking=False), "one session has one thread at most"
    finally:
        go_on.set()
    assert [number_of(replies.get(timeout=WAIT_S)) for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_failing_query_leaves_its_thread_to_the_next(index: MemoryIndex, pool: Callable[..., Any]) -> None:
    requests, replies = pool(query_threads=1)
    session = Session()
    requests.submit(session, Query(1, "det", "s", "a regexp '('"))
    requests.submit(session, Query(2, "det", "s", "sample.name regexp '[13]$'"))
    first, second = (decode(replies.get(timeout=WAIT_S).header) for _ in range(2))
    assert isinstance(first, Failed)
    assert (first.error["code"], first.error["fields"]["position"]) == ("wrong_input", 10)
    assert isinstance(second, Rows)
    assert ids_of(second) == [1, 3]
