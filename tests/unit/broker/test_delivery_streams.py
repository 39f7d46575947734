"""The poll thread's delivery: filters, announcements, limits, and streams that leave the memory."""

from collections.abc import Callable
from typing import Any

import pytest

from asapo.delivery.needs import NeedBacklog
from asapo.delivery.rows import ROW_BYTES
from asapo.errors import IndexUnavailable, QueueFull, WrongInput
from asapo.index import StreamHead
from asapo.query import parse
from asapo.wire.codec import encode
from asapo.wire.events import Acknowledge, Done, Failed, GetNext, Nack, Register
from asapo.wire.group_events import DeleteGroup, Seek
from asapo.wire.put import Put
from asapo_broker.delivery import MIN_WINDOW_BYTES
from asapo_broker.feed import (
    Filter,
    GroupReady,
    LoadRows,
    Looked,
    OpenGroup,
    RowsLoaded,
    Tail,
)
from asapo_broker.saves import Save
from asapo_broker.sessions import Session
from tests.unit.broker.delivery_world import REF, World, row


def test_order_and_filter_of_a_group_are_fixed(world: World) -> None:
    one = world.session()
    world.reading(one, 1)
    world.ask(one, ordered=False)
    world.ask(one, where="x = 1")
    assert [answer.error["code"] for answer in world.answers()] == ["group_mismatch"] * 2


def test_a_wrong_filter_is_refused_and_the_right_one_of_another_is_not(world: World) -> None:
    one, two = world.session(), world.session(b"b" * 16)
    world.ask(one, where="x =")
    world.ask(two, where="")
    world.open()
    world.delivery.take(GroupReady(world.job(OpenGroup), error=WrongInput("no")), 0.0)
    assert [answer.error["code"] for answer in world.answers()] == ["wrong_input"]
    world.ready()
    world.add(1)
    assert world.ids() == [1]


def test_a_filtered_group_gets_what_passes(world: World) -> None:
    world.ask(world.session(), where="hit = 1", n=9)
    world.open()
    matches = Filter(parse("hit = 1"))
    world.delivery.take(GroupReady(world.job(OpenGroup), matches), 0.0)
    world.add(1, 2, 3, metas=[{"hit": 1}, {"hit": 2}, {"hit": 1}])
    assert world.ids() == [1, 3]


def test_verdicts_prepared_by_the_loader_are_used_once() -> None:
    judged = Filter(parse("hit = 1"))
    rows = [row(1, 1, {"hit": 1}), row(2, 2, {"hit": 0})]
    judged.prepare(rows)
    assert [judged(one) for one in rows] == [True, False]
    assert not judged._verdicts
    assert [judged(one) for one in rows] == [True, False], "rows nobody prepared are judged when asked"


@pytest.mark.parametrize("text", ["hit = 1 LIMIT 5", "ORDER BY hit", ""])
def test_a_group_filter_is_a_condition_only(text: str) -> None:
    with pytest.raises(WrongInput, match="condition only"):
        Filter(parse(text))


def test_a_group_far_behind_reads_the_index(world: World) -> None:
    one = world.session()
    world.ask(one, n=2)
    world.open(low=100, head_seq=99, head=StreamHead(99, 99, False, 0, "", 100))
    world.ready()
    job = world.job(LoadRows)
    assert job.need == NeedBacklog(True, 1, 100)
    world.delivery.take(RowsLoaded(job, [row(k, k) for k in range(1, 50)], 50), 0.0)
    assert world.ids() == [1, 2]
    assert world.job(LoadRows).need == NeedBacklog(True, 50, 100), "the next rows are loaded ahead"


def test_an_index_that_fails_is_told_to_who_waits(world: World) -> None:
    one = world.session()
    world.ask(one, n=2)
    world.open(low=100, head_seq=99, head=StreamHead(99, 99, False, 0, "", 100))
    world.ready()
    world.delivery.take(RowsLoaded(world.job(LoadRows), error=IndexUnavailable("locked")), 0.0)
    assert [answer.error["code"] for answer in world.answers()] == ["index_unavailable"]
    world.ask(one)
    assert world.job(LoadRows), "the next request tries again"


def test_announcements_make_the_loader_look_for_those_who_wait(world: World) -> None:
    one = world.session()
    world.reading(one)
    world.jobs.clear()
    world.delivery.announce("bt", [["det", "s", 5], ["det", "other", 1]], [], 0.0)
    assert world.jobs == []
    world.feed.looked_s = 0.0
    world.feed.loaded_seq = 5
    world.feed.polled = True
    world.ask(one, now_s=0.01)
    assert world.jobs == [], "the loader looked a moment ago, and will again"
    world.delivery.announce("bt", [["det", "s", 6]], [], 0.0)
    assert world.jobs == [world.feed]


def unit_of(*ids: int, seq: int, **columns: Any) -> list[Any]:
    event = Put(
        unit=1, stream="s", ids=list(ids), sizes=[8] * len(ids), checksums=bytes(8 * len(ids)),
        metas=['{"n": 1}'] * len(ids), acquired_ns=bytes(8 * len(ids)),
    )  # fmt: skip
    given = {"segment": 1, "offset": 64, "format": 0, "stored_ns": 5} | columns
    return ["det", "s", seq, *given.values(), encode(event)]


def waiting_behind_the_first(world: World) -> Session:
    """Return a session that was given message 1 and waits for the next; nothing is asked of the loader."""
    one = world.session()
    world.reading(one, 1)
    world.ask(one)
    assert world.ids() == [1]
    world.ask(one)
    world.jobs.clear()
    return one


def test_an_announced_unit_that_follows_answers_without_a_look(world: World) -> None:
    one = waiting_behind_the_first(world)
    world.delivery.announce("bt", [["det", "s", 3]], [unit_of(2, 3, seq=2)], 0.0)
    assert world.jobs == []
    assert world.ids() == [2]
    world.ask(one)
    assert world.ids() == [3]
    assert world.tally.rows_announced == 2
    world.feed.given += 1  # the loader had begun to read them meanwhile: they come twice
    world.delivery.take(Tail(world.feed, [row(2, 2), row(3, 3)], None), 0.0)
    world.ask(one)
    assert world.answers() == []


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        (unit_of(3, seq=3), "it leaves a hole"),
        (unit_of(2, seq=2, format=9), "its format is not known here"),
        (unit_of(2, seq=2, segment=9), "its segment is not known here"),
        (unit_of(5, seq=2), "ids 2 to 4 may still come"),
    ],
)
def test_an_announced_unit_is_looked_up_when(world: World, unit: list[Any], why: str) -> None:
    waiting_behind_the_first(world)
    world.delivery.announce("bt", [["det", "s", 3]], [unit], 0.0)
    assert world.answers() == [], why
    assert world.jobs == [world.feed], why


def test_long_announced_units_of_filtered_groups_are_left_to_the_loader(world: World) -> None:
    one = world.session()
    world.reading(one)
    world.feed.filters.append(Filter(parse("meta.n = 1")))
    for count, looked_up in ((10, False), (500, True)):
        world.ask(one, n=1000)
        world.jobs.clear()
        first = world.delivery.streams["bt", "det", "s"].delivery.window.head_seq + 1  # type: ignore[union-attr]
        unit = unit_of(*range(first, first + count), seq=first)
        world.delivery.announce("bt", [["det", "s", first + count - 1]], [unit], 0.0)
        assert bool(world.jobs) == looked_up
        world.sent.clear()


def test_a_stream_that_is_not_polled_is_looked_at_for_who_begins_to_wait(world: World) -> None:
    one = world.session()
    world.reading(one)
    world.jobs.clear()
    world.feed.looked_s = 0.0
    world.feed.polled = False  # nobody waited when the loader came by
    world.ask(one, now_s=0.01)
    assert world.jobs == [world.feed]


@pytest.mark.parametrize("head", [["det", "s"], 5, [["det"], "s", 1]])
def test_a_malformed_announcement_is_refused(world: World, head: Any) -> None:
    with pytest.raises(WrongInput, match="expected"):
        world.delivery.announce("bt", [head], [], 0.0)


@pytest.mark.parametrize(
    "event",
    [
        GetNext(1, "det", "s", "g", done=[[2, 1]]),
        GetNext(1, "det", "s", "g", done=[[0, 1]]),
        GetNext(1, "det", "s", "g", done=[5]),
        GetNext(1, "det", "s", ""),
        GetNext(1, "", "s", "g"),
        Acknowledge(1, "det", "s", "g", [[1, 2, 3]]),
        Acknowledge(1, "det", "s", "g", [["a", 2]]),
        Nack(1, "det", "s", "g", ["a"]),
        Nack(1, "det", "s" * 256, "g", [1]),
    ],
)
def test_a_request_out_of_its_limits_is_refused(world: World, event: Any) -> None:
    one = world.session()
    refused: Callable[[], Any] = lambda: world.delivery.request(one, event, 0.0)  # noqa: E731
    if event.group:
        with pytest.raises(WrongInput):
            refused()
    else:
        with pytest.raises(WrongInput, match="group name"):
            refused()


def test_a_session_may_wait_only_so_often() -> None:
    world = World(max_waiting=2)
    one = world.session()
    world.ask(one)
    world.ask(one)
    with pytest.raises(QueueFull):
        world.ask(one)


def test_streams_in_memory_are_bounded() -> None:
    world = World(max_streams=1)
    one = world.session()
    world.ask(one)
    with pytest.raises(QueueFull):
        world.ask(one, stream="other")


def test_streams_share_the_memory_for_their_rows() -> None:
    world = World(windows_bytes=4 * MIN_WINDOW_BYTES, window_bytes=3 * MIN_WINDOW_BYTES)
    session = world.session()
    kept = []
    for number in range(1, 9):
        world.ask(session, stream=f"s{number}", wait_s=0.0)
        kept.append(world.delivery._window_bytes // MIN_WINDOW_BYTES)
    assert kept == [3, 2, 1, 1, 1, 1, 1, 1]


def test_what_is_beyond_its_share_leaves_the_memory_and_is_read_from_the_index() -> None:
    world = World(windows_bytes=1, window_bytes=3 * MIN_WINDOW_BYTES)
    session = world.session()
    world.reading(session)
    many = 3 * MIN_WINDOW_BYTES // ROW_BYTES
    world.add(*range(1, many + 1), watermark=many + 1)
    world.answers()
    assert world.delivery.numbers()["window_bytes"] <= MIN_WINDOW_BYTES
    world.ask(session, n=10, group="late")
    world.ready()
    assert world.job(LoadRows).need.from_key == 1


def test_an_idle_stream_leaves_the_memory_when_nothing_is_outstanding(world: World) -> None:
    one = world.session()
    world.reading(one, 1)
    world.ask(one)
    world.ids()
    world.delivery.changes()
    world.delivery.drop_idle(1e6)
    assert world.delivery.streams, "a message is with a session"
    world.delivery.request(one, Acknowledge(500, "det", "s", "g", [[1, 1]]), 0.0)
    world.delivery.drop_idle(1e6)
    assert world.delivery.streams, "the acknowledgement is not stored yet"
    world.delivery.changes()
    world.delivery.drop_idle(1e6)
    assert not world.delivery.streams
    assert world.delivery.numbers()["groups"] == 0


def test_an_idle_group_leaves_the_memory_and_goes_on_where_it_was(world: World) -> None:
    one = world.session()
    world.reading(one, 1, 2, 3)
    world.ask(one, n=2, now_s=1.0)
    world.ids()
    world.delivery.request(one, Nack(500, "det", "s", "g", [2], delay_s=200.0), 1.0)
    world.ask(one, group="busy", now_s=100.0)
    world.ready(now_s=100.0)
    world.delivery.changes()
    world.delivery.drop_idle(100.0)
    assert world.delivery.numbers()["groups"] == 2, "a message is with a session"
    world.delivery.end(one, 100.0)
    stored = world.delivery.changes()
    world.delivery.drop_idle(100.0)
    assert world.delivery.numbers()["groups"] == 2, "a message is not to be given before its time"
    world.delivery.drop_idle(250.0)
    assert world.delivery.numbers()["groups"] == 0
    assert world.delivery.streams, "the stream was asked for a moment ago"

    world.answers()
    two = world.session(b"b" * 16)
    world.ask(two, n=3, now_s=251.0)
    world.ready(stored[REF, "g"].state, now_s=251.0)
    assert world.ids() == [1, 2, 3]


def test_metadata_too_long_for_one_answer_is_given_in_several(world: World) -> None:
    one = world.session()
    world.reading(one)
    world.add(*range(1, 41), metas=[{"x": "y" * 900_000}] * 40)
    got: list[int] = []
    while len(got) < 40:
        world.ask(one, n=40)
        part = world.ids()
        assert part
        got += part
    assert got == list(range(1, 41))


def test_answers_name_a_living_data_server(world: World) -> None:
    one = world.session()
    world.reading(one, 1, 2)
    world.ask(one)
    world.registry.register(Register("r2", 1, [], "tcp://h:2", "b", {"tier": {}}), b"p", 0.0)
    world.ask(one)
    first, second = world.answers()
    assert [answer.segments[1][4] for answer in (first, second)] == ["", "tcp://h:2"]


def test_a_late_answer_of_the_loader_for_a_forgotten_stream_is_ignored(world: World) -> None:
    world.ask(world.session(), wait_s=0.0)
    feed = world.feed
    world.delivery.take(Looked(feed), 0.0)
    assert type(world.answers()[0]) is Failed
    assert feed.closed
    world.delivery.take(Tail(feed, [row(1, 1)], None), 0.0)
    assert not world.delivery.streams


def seek_to_the_end(world: World) -> None:
    world.delivery.request(world.session(), Seek(700, "det", "s", "g", "end"), 0.0)


def test_a_seek_waits_until_the_stream_was_looked_at_to_its_end(world: World) -> None:
    world.reading(world.session(), 1, 2)
    world.answers()
    seek_to_the_end(world)
    world.feed.behind = True
    world.delivery.take(Looked(world.feed), 0.0)
    assert not world.answers(), "there is more than was handed over"
    world.add(3, 4)
    world.feed.behind = False
    world.delivery.take(Looked(world.feed), 0.0)
    assert world.answers() == [Done(700, {"held": 0, "position": 5})]


def test_an_acknowledged_suspect_makes_room_for_the_next(world: World) -> None:
    one, two = world.session(), world.session(b"b" * 16)
    world.reading(one, 1, 2)
    world.answers()
    world.ask(one, n=2, max_attempts=0)
    world.answers()
    world.delivery.request(one, DeleteGroup(600, "det", "s", "g"), 0.0)
    world.answers()
    world.ask(one, n=2, max_attempts=2)
    world.ready()
    assert world.ids() == [1, 2]
    world.delivery.end(one, 0.0)
    world.ask(two, n=2, max_attempts=2)
    assert world.ids() == [1]
    world.ask(two, n=2, max_attempts=2)
    assert not world.answers(), "one suspect at a time"
    world.delivery.request(two, Acknowledge(601, "det", "s", "g", [[1, 1]]), 0.0)
    world.answers()
    world.delivery.turn(0.0)
    assert world.ids() == [2]


def test_a_deleted_group_is_stored_as_such_and_its_waiting_reads_fail(world: World) -> None:
    one = world.session()
    world.reading(one, 1)
    world.answers()
    world.ask(one)
    world.answers()
    world.ask(one)
    world.delivery.changes()
    world.delivery.request(one, DeleteGroup(600, "det", "s", "g"), 0.0)
    denied, done = world.answers()
    assert (denied.error["code"], done) == ("unknown_group", Done(600, {"held": 1}))
    assert world.delivery.numbers()["groups"] == 0
    assert world.delivery.changes() == {(REF, "g"): Save(None)}
    assert world.delivery.numbers()["waiters"] == 0
