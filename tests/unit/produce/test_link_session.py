"""One link's state without a link: greeting, credit, acks, loss."""

from collections.abc import Callable

import pytest

from asapo.errors import (
    AccessError,
    AsapoError,
    DuplicateId,
    LinkLost,
    LocalProtocolError,
    RemoteProtocolError,
    TokenRejected,
    UnsupportedVersion,
    to_wire,
)
from asapo.wire.events import Ack, Beat, Done, Goodbye, Hello, OpenStream, Welcome
from asapo_produce.handles import SendHandle
from asapo_produce.link_session import LinkSession, is_fatal
from asapo_produce.send_queue import SendQueue
from asapo_produce.units import Unit

HELLO = Hello("producer", b"s" * 16, "bt", "det")


@pytest.fixture
def session() -> LinkSession:
    session = LinkSession(HELLO, heard_s=0.0)
    session.say(HELLO)
    session.receive(Welcome("r", 1, 1000, 10, 0, 0.5, 3.0), 1.0)
    return session


@pytest.fixture
def unit_of(queue: SendQueue, send: Callable[..., SendHandle]) -> Callable[..., Unit]:
    def make(message_id: int, nbytes: int = 100) -> Unit:
        send(message_id, bytes(nbytes))
        unit = queue.take()
        assert unit is not None
        return unit

    return make


def transmit(session: LinkSession, unit: Unit) -> None:
    session.check_open()
    session.sent(unit)


def test_nothing_is_sent_before_the_welcome(unit_of: Callable[..., Unit]) -> None:
    session = LinkSession(HELLO, heard_s=0.0)
    assert not session.has_room()
    with pytest.raises(LocalProtocolError):
        transmit(session, unit_of(1))


def test_the_welcome_sets_the_terms(session: LinkSession) -> None:
    assert session.open
    assert (session.heartbeat_s, session.timeout_s, session.window_bytes) == (0.5, 3.0, 1000)


def test_acks_are_cumulative(session: LinkSession, unit_of: Callable[..., Unit]) -> None:
    units = [unit_of(i) for i in (1, 2, 3)]
    for unit in units:
        transmit(session, unit)
    assert session.in_flight_bytes == 300
    assert session.receive(Ack(2), 2.0) == [(units[0], []), (units[1], [])]
    assert session.in_flight_bytes == 100
    assert session.receive(Ack(2), 2.0) == []
    assert session.receive(Ack(3), 2.0) == [(units[2], [])]
    assert session.idle


def test_an_ack_brings_errors_and_credit(session: LinkSession, unit_of: Callable[..., Unit]) -> None:
    unit = unit_of(1)
    transmit(session, unit)
    ((found, errors),) = session.receive(Ack(1, [[1, 0, to_wire(DuplicateId("known", message_id=1))]], 77), 2.0)
    assert found is unit
    assert [(index, type(error), error.message_id) for index, error in errors] == [(0, DuplicateId, 1)]
    assert session.window_bytes == 77


@pytest.mark.parametrize("ack", [Ack(2), Ack(1, [[1, 1, {}]]), Ack(1, [[2, 0, {}]])])
def test_an_ack_of_what_was_not_sent_is_the_receivers_fault(
    session: LinkSession, unit_of: Callable[..., Unit], ack: Ack
) -> None:
    transmit(session, unit_of(1))
    with pytest.raises(RemoteProtocolError):
        session.receive(ack, 2.0)


def test_credit_bounds_bytes(session: LinkSession, unit_of: Callable[..., Unit]) -> None:
    assert session.has_room(5000)
    transmit(session, unit_of(1, 600))
    assert session.has_room(400)
    assert not session.has_room(401)


def test_credit_bounds_messages(session: LinkSession, unit_of: Callable[..., Unit]) -> None:
    for i in range(1, 11):
        assert session.has_room(1, 1)
        transmit(session, unit_of(i, 1))
    assert not session.has_room(1, 1)


def test_units_in_flight_come_back_in_order(session: LinkSession, unit_of: Callable[..., Unit]) -> None:
    units = [unit_of(i) for i in (1, 2, 3)]
    for unit in units:
        transmit(session, unit)
    session.receive(Ack(1), 1.0)
    assert session.take_back() == units[1:]
    assert session.in_flight_bytes == 0


def test_answers_find_their_request_once(session: LinkSession) -> None:
    session.say(OpenStream(1, "s"))
    session.asked(1, "request")
    assert not session.idle
    assert session.answered(Done(1)) == "request"
    assert session.answered(Done(1)) is None


def test_a_goodbye_is_raised(session: LinkSession) -> None:
    with pytest.raises(TokenRejected):
        session.receive(Goodbye(to_wire(TokenRejected("no"))), 2.0)


def test_an_event_out_of_turn_is_the_receivers_fault() -> None:
    with pytest.raises(RemoteProtocolError):
        LinkSession(HELLO, heard_s=0.0).receive(Beat(), 1.0)


def test_large_units_are_refused_by_the_receivers_limit(session: LinkSession) -> None:
    assert session.takes(10**9)
    session.welcome = Welcome("r", max_unit_bytes=100)
    assert session.takes(100)
    assert not session.takes(101)


@pytest.mark.parametrize(
    ("error", "fatal"),
    [(LinkLost(), False), (RemoteProtocolError(), False), (UnsupportedVersion(), True), (AccessError(), True)],
)
def test_only_some_errors_end_a_producer(error: AsapoError, fatal: bool) -> None:
    assert is_fatal(error) is fatal
