"""get_next, acknowledge and nack without a socket: a loader of lists, a clock of numbers."""

import pytest

from asapo.delivery.leases import GroupState
from asapo.errors import IndexUnavailable
from asapo.wire.events import Acknowledge, Done, GetNext, Nack, Rows
from asapo_broker.feed import (
    Feed,
    GroupReady,
    Looked,
    OpenGroup,
    Vanished,
)
from tests.unit.broker.delivery_world import REF, World


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
