"""get_next, acknowledge and nack without a socket: a loader of lists, a clock of numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asapo.delivery.leases import GroupState
from asapo.delivery.needs import NeedBacklog
from asapo.delivery.rows import ROW_BYTES
from asapo.errors import IndexUnavailable, QueueFull, WrongInput
from asapo.index import StreamHead
from asapo.models import SegmentInfo, StreamRef
from asapo.query import parse
from asapo.wire.codec import decode, encode
from asapo.wire.events import Acknowledge, Done, Failed, GetNext, Nack, Register, Rows
from asapo.wire.group_events import DeleteGroup, Seek
from asapo.wire.put import Put
from asapo_broker.delivery import MIN_WINDOW_BYTES, Delivery
from asapo_broker.feed import (
    Feed,
    Filter,
    GroupReady,
    LoadRows,
    Looked,
    Opened,
    OpenGroup,
    RowsLoaded,
    Tail,
    Vanished,
)
from asapo_broker.registry import Registry
from asapo_broker.saves import Save, Stored
from asapo_broker.sessions import Session
from asapo_broker.settings import CoreSettings
from asapo_broker.tables import Tables
from asapo_broker.tally import Tally

REF = StreamRef("bt", "det", "s")


class OneSegment:
    """An index that knows segment 1, format 1 and origin 1."""

    def segments(self, nos: list[int]) -> dict[int, SegmentInfo]:
        return {no: SegmentInfo(f"/t/{no}.seg", "r1", "boot", "tier") for no in nos}

    def formats(self, _nos: list[int]) -> dict[int, Any]:
        return {}

    def stream_refs(self, _nos: list[int]) -> dict[int, Any]:
        return {}


def row(message_id: int, seq: int, meta: dict[str, Any] | None = None) -> tuple[Any, ...]:
    return (message_id, seq, 0, 0, 1, 64, 8, 5, 1, json.dumps(meta or {}), 1, 2, 0, 0)


class World:
    """A Delivery whose loader is played by the test."""

    def __init__(self, **settings: Any) -> None:
        self.jobs: list[Any] = []
        self.sent: list[tuple[bytes, Any]] = []
        self.registry = Registry(5.0)
        self.tally = Tally()
        tables = Tables()
        tables.learn(OneSegment(), [row(1, 1)])  # type: ignore[arg-type]
        self.delivery = Delivery(
            CoreSettings(state_dir=Path(), **settings),
            load=self.jobs.append,
            reply=lambda session, header: self.sent.append((session.peer, decode(header))),
            tables=lambda _beamtime: tables,
            registry=self.registry,
            tally=self.tally,
        )
        self.seq = 0
        self.id_max = 0
        self.number = 0

    def session(self, key: bytes = b"a" * 16) -> Session:
        return Session("bt", key, key[:1], 0.0)

    def ask(self, session: Session, now_s: float = 0.0, **fields: Any) -> int:
        self.number += 1
        given: dict[str, Any] = {"source": "det", "stream": "s", "group": "g", "wait_s": 5.0} | fields
        self.delivery.request(session, GetNext(self.number, **given), now_s)
        return self.number

    def answers(self) -> list[Any]:
        found, self.sent = [event for _, event in self.sent], []
        return found

    def ids(self) -> list[int]:
        """Ids of the one answer that was sent."""
        (answer,) = self.answers()
        assert type(answer) is Rows, answer
        return [one[0] for one in answer.rows]

    def job(self, kind: type[Any]) -> Any:
        """Take the one job of a kind; looks may be asked for several times."""
        found = [job for job in self.jobs if type(job) is kind]
        self.jobs[:] = [job for job in self.jobs if type(job) is not kind]
        assert found, f"no {kind.__name__} among {self.jobs}"
        return found[0]

    @property
    def feed(self) -> Feed:
        return self.delivery.streams["bt", "det", "s"].feed

    def open(self, low: int = 1, head_seq: int = 0, head: StreamHead | None = None) -> None:
        self.feed.no = 1
        head = head or StreamHead(head_seq, 0, False, 0, "", low)
        self.delivery.take(Opened(self.feed, low, head_seq, [], head), 0.0)

    def add(self, *ids: int, watermark: int = 0, now_s: float = 0.0, last: int = 0, metas: Any = None) -> None:
        rows = [row(one, self.seq + k, metas and metas[k - 1]) for k, one in enumerate(ids, 1)]
        self.seq += len(ids)
        self.id_max = max(self.id_max, *ids, 0) if ids else self.id_max
        head = StreamHead(self.seq, self.id_max, last > 0, last, "next" if last else "", watermark or self.id_max + 1)
        self.feed.given += 1
        self.feed.loaded_seq = self.seq
        self.delivery.take(Tail(self.feed, rows, head), now_s)

    def ready(self, state: GroupState | None = None, now_s: float = 0.0) -> None:
        stored = None if state is None else Stored(state, {})
        self.delivery.take(GroupReady(self.job(OpenGroup), stored=stored), now_s)

    def reading(self, session: Session, *ids: int) -> None:
        """Open stream and group with these messages in the window, of which none was given yet."""
        request = self.ask(session, wait_s=9.0)
        self.open()
        self.ready()
        assert not self.answers()
        self.delivery.end(session, 0.0)
        assert request not in session.waiting
        self.add(*ids)


@pytest.fixture
def world() -> World:
    return World()


def test_a_worker_may_start_before_the_stream(world: World) -> None:
    world.ask(world.session(), n=2)
    assert world.job(Feed).ref == REF
    assert not world.answers()
    world.open()
    world.ready()
    assert not world.answers()
    world.add(1, 2, 3)
    assert world.ids() == [1, 2]


def test_who_does_not_wait_is_told_after_one_look_that_the_stream_is_unknown(world: World) -> None:
    world.ask(world.session(), wait_s=0.0)
    assert not world.answers()
    world.delivery.take(Looked(world.feed), 0.01)
    (answer,) = world.answers()
    assert answer.error["code"] == "unknown_stream"
    assert not world.delivery.streams, "an unknown stream nobody waits for is forgotten"


def test_who_waits_is_told_at_the_end_of_the_wait(world: World) -> None:
    world.ask(world.session(), wait_s=2.0)
    world.delivery.take(Looked(world.feed), 0.1)
    assert world.delivery.turn(1.9) == 2.0
    assert not world.answers()
    world.delivery.turn(2.0)
    (answer,) = world.answers()
    assert answer.error["code"] == "unknown_stream"


def test_nothing_yet_only_after_a_look(world: World) -> None:
    one = world.session()
    world.reading(one, 1)
    world.ask(one, n=5)
    assert world.ids() == [1]
    world.ask(one, wait_s=0.0)
    assert not world.answers()
    assert world.job(Feed) is world.feed
    world.delivery.take(Looked(world.feed), 0.1)
    assert world.answers()[0].error["code"] == "nothing_yet"


def test_ordered_delivery_waits_at_a_hole_until_the_watermark_passes_it(world: World) -> None:
    one = world.session()
    world.reading(one)
    world.ask(one, n=10)
    world.add(1, 2, 4, watermark=2)
    assert world.ids() == [1, 2]
    world.ask(one, n=10)
    assert not world.answers()
    world.add(watermark=5)
    assert world.ids() == [4]


def test_the_end_of_a_stream_names_the_next(world: World) -> None:
    one = world.session()
    world.reading(one, 1)
    world.ask(one)
    world.ids()
    world.ask(one, done=[[1, 1]])
    world.add(last=3)
    (answer,) = world.answers()
    assert (answer.error["code"], answer.error["fields"]["next_stream"]) == ("stream_finished", "next")


def test_two_sessions_share_a_group(world: World) -> None:
    one, two = world.session(), world.session(b"b" * 16)
    world.reading(one)
    world.ask(one, n=2)
    world.ask(two, n=2)
    world.add(1, 2, 3)
    assert [(peer, [r[0] for r in event.rows]) for peer, event in world.sent] == [(b"a", [1, 2]), (b"b", [3])]


def test_a_request_that_comes_again_gets_the_same_messages(world: World) -> None:
    one = world.session()
    world.reading(one, 1, 2)
    event = GetNext(77, "det", "s", "g", n=1)
    world.delivery.request(one, event, 0.0)
    world.delivery.request(one, event, 0.0)
    first, second = world.answers()
    assert first == second
    assert world.tally.replies_repeated == 1
    world.ask(one, n=5)
    assert world.ids() == [2]


def test_a_waiting_request_that_comes_again_is_answered_once_on_the_new_link(world: World) -> None:
    one = world.session()
    world.reading(one)
    event = GetNext(77, "det", "s", "g", wait_s=5.0)
    world.delivery.request(one, event, 0.0)
    one.peer = b"new"
    world.delivery.request(one, event, 0.1)
    world.add(1)
    assert [(peer, event.request) for peer, event in world.sent] == [(b"new", 77)]


def test_a_dropped_session_gives_its_messages_to_the_next(world: World) -> None:
    one, two = world.session(), world.session(b"b" * 16)
    world.reading(one, 1, 2)
    world.ask(one, n=2)
    world.ids()
    world.ask(two, n=2)
    assert not world.answers()
    world.delivery.end(one, 1.0)
    (answer,) = world.answers()
    assert [r[0] for r in answer.rows] == [1, 2]
    assert answer.attempts == {1: 2, 2: 2}


def test_a_lease_that_ran_out_is_lost_to_its_holder(world: World) -> None:
    one, two = world.session(), world.session(b"b" * 16)
    world.reading(one, 1)
    world.ask(one, lease_s=1.0)
    world.ids()
    world.ask(two, now_s=0.1)
    world.delivery.turn(0.9)
    assert not world.answers()
    world.delivery.turn(1.1)
    assert world.ids() == [1]
    world.ask(one, now_s=1.2, done=[[1, 1]], wait_s=0.0)
    world.delivery.take(Looked(world.feed), 1.3)
    (answer,) = world.answers()
    assert (answer.error["code"], answer.lost) == ("nothing_yet", [1])


def test_a_beat_renews_leases(world: World) -> None:
    one = world.session()
    world.reading(one, 1)
    world.ask(one, lease_s=1.0)
    world.ids()
    world.delivery.renew(one, 0.9)
    world.delivery.turn(1.5)
    assert world.tally.leases_expired == 0
    world.delivery.turn(2.0)
    assert world.tally.leases_expired == 1


def test_nack_gives_a_message_out_again_after_its_delay(world: World) -> None:
    one = world.session()
    world.reading(one, 1, 2)
    world.ask(one, n=2)
    world.ids()
    world.delivery.request(one, Nack(500, "det", "s", "g", [2, 9], 1.0), 0.0)
    assert world.answers() == [Done(500, {"lost": [9]})]
    world.ask(one)
    world.delivery.turn(0.5)
    assert not world.answers()
    world.delivery.turn(1.01)
    assert world.ids() == [2]


def test_what_was_handed_back_unlooked_at_stays_when_the_session_holds_it_by_a_later_request(world: World) -> None:
    before = world.session()
    world.reading(before, 1)
    old = world.ask(before, n=1)
    assert world.ids() == [1]
    world.delivery.end(before, 1.0)  # silent for too long; then the same client is back
    again = world.session()
    new = world.ask(again, 2.0, n=1)
    assert world.ids() == [1]
    for given_by, lost in ((old, [1]), (new, [])):
        nack = Nack(500 + given_by, "det", "s", "g", [1], unstarted=True, given_by=given_by)
        world.delivery.request(again, nack, 2.0)
        assert [answer.result for answer in world.answers()] == [{"lost": lost}]


def test_acknowledged_messages_are_stored_as_done(world: World) -> None:
    one = world.session()
    world.reading(one, 1, 2, 3)
    world.ask(one, n=3)
    world.ids()
    world.delivery.request(one, Acknowledge(500, "det", "s", "g", [[1, 2]]), 0.0)
    assert world.answers() == [Done(500, {"lost": []})]
    (saved,) = world.delivery.changes().values()
    assert saved.state is not None
    assert saved.state.floor == 2
    assert not world.delivery.has_changes


def test_a_restored_group_goes_on_behind_its_floor(world: World) -> None:
    state = GroupState(True, "", 2, ((4, 4),), (), (), 5, 0, 0)
    world.ask(world.session(), n=9)
    world.open()
    world.add(1, 2, 3, 4, 5)
    world.ready(state)
    assert world.ids() == [3, 5]


def test_a_group_whose_state_cannot_be_read_is_not_begun_anew(world: World) -> None:
    one = world.session()
    world.ask(one, n=9)
    world.open()
    world.add(1, 2, 3)
    world.delivery.take(GroupReady(world.job(OpenGroup), error=IndexUnavailable("the disk does not answer")), 0.0)
    assert [answer.error["code"] for answer in world.answers()] == ["index_unavailable"]
    assert not world.delivery.changes(), "the stored state must not be written over"
    world.ask(one, n=9)
    world.ready(GroupState(True, "", 2, (), (), (), 3, 0, 0))
    assert world.ids() == [3]


def test_an_ack_for_a_group_nobody_knows_is_lost(world: World) -> None:
    one = world.session()
    world.delivery.request(one, Acknowledge(9, "det", "s", "g", [[1, 5]]), 0.0)
    world.open()
    assert world.job(OpenGroup).new is None
    world.delivery.take(GroupReady(OpenGroup(world.feed, "g", None)), 0.0)
    assert [answer.error["code"] for answer in world.answers()] == ["lease_lost"]


@pytest.mark.parametrize("ack_first", [False, True])
@pytest.mark.parametrize("stored", [None, GroupState(True, "", 1, (), (), (), 5, 0, 0)])
def test_after_a_restart_an_ack_beside_a_read_waits_for_the_group_and_counts(
    world: World, stored: GroupState | None, ack_first: bool
) -> None:
    one = world.session()
    ack = Acknowledge(900, "det", "s", "g", [[1, 3]])
    if ack_first:
        world.delivery.request(one, ack, 0.0)
        world.ask(one, n=9)
    else:
        world.ask(one, n=9)
        world.delivery.request(one, ack, 0.0)
    world.open()
    world.add(1, 2, 3, 4, 5)
    assert not world.answers(), "the ack waits as the read does"
    assert world.jobs
    world.ready(stored)
    done, rows = world.answers()
    assert done == Done(900, {"lost": []})
    assert [one[0] for one in rows.rows] == [4, 5], "what is acknowledged is not given again"
    (saved,) = world.delivery.changes().values()
    assert saved.state is not None
    assert saved.state.floor == 3


def test_an_ack_of_a_deleted_stream_takes_nothing_from_the_next_one_of_its_name(world: World) -> None:
    one = world.session()
    world.ask(one, n=9)
    world.delivery.request(one, Acknowledge(900, "det", "s", "g", [[1, 3]]), 0.0)
    world.open()
    world.feed.begun_anew = True
    world.add(1, 2, 3)
    world.ready()
    (rows,) = [event for event in world.answers() if type(event) is Rows]
    assert [one[0] for one in rows.rows] == [1, 2, 3]


def test_a_stream_that_vanished_is_let_go_of_and_its_groups_are_stored_no_more(world: World) -> None:
    one, two = world.session(), world.session(b"b" * 16)
    world.ask(one, n=2)
    world.open()
    world.add(1, 2)
    world.ready()
    assert world.ids() == [1, 2]
    world.ask(two)
    world.delivery.take(Vanished(world.feed), 0.0)
    (answer,) = world.answers()
    assert (answer.error["code"], "deleted" in answer.error["message"]) == ("unknown_stream", True)
    assert world.delivery.streams == {}
    world.delivery.end(one, 0.0)
    world.delivery.renew(two, 0.0)
    assert world.delivery.changes() == {}
    assert world.delivery.turn(1e9) > 0


def test_an_ack_that_opened_nothing_waits_for_the_read_that_came_meanwhile(world: World) -> None:
    one = world.session()
    world.delivery.request(one, Acknowledge(900, "det", "s", "g", [[1, 1]]), 0.0)
    world.open()
    world.add(1, 2)
    world.ask(one, n=9)
    assert world.job(OpenGroup).new is None
    world.delivery.take(GroupReady(OpenGroup(world.feed, "g", None)), 0.0)
    assert not world.answers()
    assert world.job(OpenGroup).new is not None
    world.jobs.append(OpenGroup(world.feed, "g", GetNext(1, "det", "s", "g")))
    world.ready()
    done, rows = world.answers()
    assert (done, [one[0] for one in rows.rows]) == (Done(900, {"lost": []}), [2])


def test_max_attempts_of_a_group_is_that_of_its_first_read(world: World) -> None:
    one = world.session()
    request = world.ask(one, wait_s=9.0, max_attempts=3)
    world.open()
    world.ready()
    world.add(1)
    assert [answer.request for answer in world.answers()] == [request]
    world.ask(one, max_attempts=2)
    (answer,) = world.answers()
    assert answer.error["code"] == "group_mismatch"
    assert answer.error["fields"]["expected"] == {"max_attempts": 3}


def test_a_group_restored_for_an_ack_takes_the_bound_of_its_first_read(world: World) -> None:
    one = world.session()
    world.delivery.request(one, Acknowledge(900, "det", "s", "g", [[1, 1]]), 0.0)
    world.open()
    world.add(1, 2)
    world.ready(GroupState(True, "", 0, (), (), (), 2, 0, 0))
    assert world.answers() == [Done(900, {"lost": []})]
    for key, now_s in ((b"a" * 16, 1.0), (b"b" * 16, 2.0)):
        asking = world.session(key)
        world.ask(asking, now_s, n=1, max_attempts=2)
        assert world.ids() == [2]
        world.delivery.request(asking, Nack(901 + int(now_s), "det", "s", "g", [2]), now_s)
        assert world.answers() == [Done(901 + int(now_s), {"lost": []})]
        world.delivery.turn(now_s)
    world.ask(one, 3.0, n=1, max_attempts=2, wait_s=0.0)
    world.delivery.take(Looked(world.feed), 3.0)
    assert [answer.error["code"] for answer in world.answers()] == ["nothing_yet"]


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
