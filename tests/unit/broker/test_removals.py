"""Deletion of streams on the poll thread: passed on once, held requests let go of, whatever became of the receiver."""

from pathlib import Path
from typing import Any

import pytest

from asapo.delivery.leases import GroupState
from asapo.errors import IndexUnavailable, StreamBusy, UnknownStream, WrongInput, to_wire
from asapo.models import StreamRef
from asapo.wire.codec import decode
from asapo.wire.events import Acknowledge, Done, Failed, GetNext, Register
from asapo.wire.stream_events import DeleteStream, RemoveStream
from asapo_broker.feed import ForgetGroups, Forgotten
from asapo_broker.registry import Registry
from asapo_broker.removals import LIMIT_S, Removals
from asapo_broker.saves import Save
from asapo_broker.sessions import Peer, Session
from asapo_broker.store import CursorStore

REF = StreamRef("bt", "det", "s")
DELETE = DeleteStream(7, "det", "s", number=3)


class World:
    """Removals whose receivers, loader and clients are played by the test."""

    def __init__(self) -> None:
        self.registry = Registry(5.0)
        self.asked: list[tuple[bytes, Any]] = []
        self.answers: list[Any] = []
        self.forgotten: list[StreamRef] = []
        self.jobs: list[ForgetGroups] = []
        self.served: list[Any] = []
        self.reachable = True
        self.removals = Removals(
            self.registry,
            send=self._send,
            reply=lambda _, header: self.answers.append(decode(header)),
            forget=self.forgotten.append,
            let_go=self.forgotten.append,
            load=self.jobs.append,
            serve=lambda _, event: self.served.append(event),
        )
        self.session = Session("bt", b"s" * 16, b"c", 0.0)
        self.peer = Peer(b"c", 0.0, session=self.session)

    def _send(self, peer: bytes, header: bytes) -> bool:
        if self.reachable:
            self.asked.append((peer, decode(header)))
        return self.reachable

    def receiver(self, peer: bytes = b"r", now_s: float = 0.0) -> None:
        self.registry.register(Register("r1", 1, ["tcp://127.0.0.1:1"], "", "boot", {}), peer, now_s)

    def begin(self, now_s: float = 0.0) -> int:
        """Ask for a deletion, and return the number under which the receiver was asked."""
        self.removals.request(self.session, DELETE, now_s)
        peer, asked = self.asked[-1]
        assert (peer, asked) == (b"r", RemoveStream(asked.request, "bt", "det", "s", number=3))
        return int(asked.request)


@pytest.fixture
def world() -> World:
    found = World()
    found.receiver()
    return found


def test_it_is_answered_when_the_groups_are_forgotten_and_carried_out_once(world: World) -> None:
    number = world.begin()
    world.removals.request(world.session, DELETE, 0.0)  # again, over a new link
    world.removals.answered(b"x", Done(number))  # somebody else's number
    assert not world.answers
    world.removals.answered(b"r", Done(number))
    assert (world.forgotten, [job.ref for job in world.jobs], world.answers) == ([REF], [REF], [])
    world.removals.request(world.session, DELETE, 0.0)
    world.removals.forgotten(Forgotten(world.jobs[0].done))
    assert world.answers == [Done(7)]
    world.removals.request(world.session, DELETE, 0.0)
    assert world.answers == [Done(7), Done(7)]
    assert len(world.asked) == 1


@pytest.mark.parametrize("error", [StreamBusy("busy"), UnknownStream("none")])
def test_a_refusal_leaves_everything_as_it_is(world: World, error: Any) -> None:
    world.removals.answered(b"r", Failed(world.begin(), to_wire(error)))
    assert world.answers == [Failed(7, to_wire(error))]
    assert not world.forgotten


def test_requests_of_the_stream_wait_until_its_fate_is_known_and_others_do_not(world: World) -> None:
    read, ack = GetNext(8, "det", "s", "g"), Acknowledge(9, "det", "s", "g", [[1, 1]])
    assert not world.removals.holds(world.peer, read)
    number = world.begin()
    assert not world.removals.holds(world.peer, GetNext(8, "det", "other", "g"))
    assert world.removals.holds(world.peer, read)
    world.removals.answered(b"r", Done(number))
    assert world.removals.holds(world.peer, ack)
    assert not world.served
    world.removals.forgotten(Forgotten(world.jobs[0].done))
    assert world.served == [read, ack]
    assert not world.removals.holds(world.peer, read)


def test_a_receiver_that_ends_meanwhile_is_given_up_and_its_late_answer_counts(world: World) -> None:
    number = world.begin()
    read = GetNext(8, "det", "s", "g")
    assert world.removals.holds(world.peer, read)
    world.registry.leave(b"r")
    world.removals.expire(1.0)
    (answer,) = world.answers
    assert answer.error["code"] == IndexUnavailable.code
    assert (world.forgotten, world.served) == ([REF], [read])
    world.removals.answered(b"r", Done(number))  # it was only slow
    assert (len(world.forgotten), len(world.jobs)) == (2, 1)
    world.removals.forgotten(Forgotten(world.jobs[0].done))
    assert len(world.answers) == 1


def test_a_receiver_that_never_answers_is_given_up(world: World) -> None:
    world.begin()
    world.removals.expire(LIMIT_S - 1)
    assert not world.answers
    world.removals.expire(LIMIT_S)
    assert world.answers[0].error["code"] == "deadline_exceeded"


def test_a_receiver_that_cannot_be_reached_yet_is_asked_later(world: World) -> None:
    world.reachable = False
    world.removals.request(world.session, DELETE, 0.0)
    world.removals.expire(1.0)
    assert (world.asked, world.answers) == ([], [])
    world.reachable = True
    world.removals.expire(2.0)
    assert [peer for peer, _ in world.asked] == [b"r"]
    world.removals.expire(3.0)
    assert len(world.asked) == 1


def test_without_receivers_and_with_wrong_names_nothing_is_asked() -> None:
    world = World()
    with pytest.raises(IndexUnavailable, match="start one"):
        world.removals.request(world.session, DELETE, 0.0)
    with pytest.raises(WrongInput):
        world.removals.request(world.session, DeleteStream(1, "det", ""), 0.0)


def test_the_store_forgets_the_groups_of_one_deletion_once(tmp_path: Path) -> None:
    other = StreamRef("bt", "det", "other")
    store = CursorStore(tmp_path, save_s=0.0)
    save = Save(GroupState(True, "", 5, (), (), (), 5, 0, 0))
    store.save({(REF, "g"): save, (other, "g"): save})
    store.flush()
    store.save({(REF, "h"): save})
    store.forget_stream(REF, 10)
    assert [key for key, _, _ in store.groups("bt", "det", "")] == [(other, "g")]
    store.save({(REF, "g"): save})
    store.forget_stream(REF, 10)
    store.flush()
    assert store.load(REF, "g") is not None
    store.forget_stream(REF, 11)
    assert store.load(REF, "g") is None
    store.stop()
    store.run()
