"""A client's session: what it repeats, what it ignores, whom it blames."""

import logging
from typing import Any

import pytest

from asapo.errors import (
    AsapoError,
    LinkLost,
    NothingYet,
    RemoteProtocolError,
    TokenRejected,
    WrongInput,
    to_wire,
)
from asapo.testing.fake_broker import row
from asapo.wire.codec import decode, encode
from asapo.wire.events import Acknowledge, Done, Failed, GetLast, GetNext, Goodbye, Hello, Nack, Piece, Rows, Welcome
from asapo_work.session import BEAT, LOST_TEXT, Call, ClientSession, error_of, log_failure

STREAM = {"source": "det", "stream": "default"}
NEXT = {**STREAM, "group": "g"}


def opened(role: str = "consumer") -> ClientSession:
    session = ClientSession(Hello(role, b"s" * 16, "bt"))
    session.opened()
    session.receive(encode(Welcome("core", heartbeat_s=2.0)))
    session.outgoing.clear()
    return session


def sent(session: ClientSession) -> list[Any]:
    return [decode(header) for header in session.outgoing]


def test_requests_are_numbered_upwards_and_answers_find_them() -> None:
    session = opened()
    first, second = session.begin(GetLast, STREAM), session.begin(GetLast, STREAM)
    assert [request.request for request in sent(session)] == [1, 2]
    session.receive(encode(Done(2, {"of": "second"})))
    assert second.result() == Done(2, {"of": "second"})
    assert not first.done
    assert list(session.pending) == [1]


def test_a_new_link_greets_and_repeats_what_is_unanswered_under_its_old_number() -> None:
    session = opened()
    answered, lost = session.begin(GetLast, STREAM), session.begin(GetNext, NEXT)
    session.receive(encode(Done(1)))
    session.opened()
    assert answered.done
    assert session.welcome is None
    assert sent(session) == [session.hello, lost.request]


def test_a_second_answer_to_a_repeated_request_changes_nothing() -> None:
    session = opened()
    call = session.begin(GetNext, NEXT)
    session.receive(encode(Rows(1, [row(1)], {}, {})))
    session.receive(encode(Failed(1, to_wire(NothingYet("later")))))
    assert call.error is None
    assert call.result().rows[0][0] == 1  # type: ignore[attr-defined]


def test_a_failure_is_raised_as_the_class_that_the_server_named() -> None:
    session = opened()
    call = session.begin(GetNext, NEXT)
    session.receive(encode(Failed(1, to_wire(NothingYet("later", id_max=7)))))
    with pytest.raises(NothingYet, match="later") as caught:
        call.result()
    assert caught.value.id_max == 7


def test_messages_for_a_call_that_was_given_up_go_back_uncounted() -> None:
    session = opened()
    call = session.begin(GetNext, NEXT)
    session.abandon(call)
    session.outgoing.clear()
    session.receive(encode(Rows(1, [row(4), row(9)], {}, {})))
    assert sent(session) == [Nack(2, "det", "default", "g", [4, 9], 0.0, unstarted=True, given_by=1)]


def test_a_call_given_up_after_its_answer_came_gives_back_too() -> None:
    session = opened()
    call = session.begin(GetNext, NEXT)
    session.outgoing.clear()
    session.receive(encode(Rows(1, [row(4)], {}, {})))
    session.abandon(call)
    assert [type(request) for request in sent(session)] == [Nack]


def test_a_call_given_up_that_brings_no_messages_sends_nothing() -> None:
    session = opened()
    session.abandon(session.begin(GetNext, NEXT))
    session.outgoing.clear()
    session.receive(encode(Failed(1, to_wire(NothingYet("x")))))
    assert sent(session) == []


def test_the_reason_for_a_goodbye_is_raised() -> None:
    session = opened()
    with pytest.raises(TokenRejected, match="expired"):
        session.receive(encode(Goodbye(to_wire(TokenRejected("expired yesterday")))))


@pytest.mark.parametrize("event", [Piece(1, 0), GetLast(1, "det", "default"), Welcome("again")])
def test_what_a_broker_may_not_say_is_its_fault(event: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        opened().receive(encode(event))


def test_an_answer_before_the_greeting_is_the_servers_fault() -> None:
    session = ClientSession(Hello("consumer", b"s" * 16, "bt"))
    session.opened()
    with pytest.raises(RemoteProtocolError):
        session.receive(encode(Done(1)))


def test_a_reader_takes_pieces_with_their_payload() -> None:
    session = opened("reader")
    call = session.begin(GetLast, STREAM)
    session.receive(encode(Piece(1, 3)), b"abc")
    assert call.payload == b"abc"


def test_all_calls_fail_together_and_tell_who_waits() -> None:
    session = opened()
    told: list[Call] = []
    calls = [session.begin(GetLast, STREAM, told.append) for _ in range(3)]
    session.fail_all(LinkLost("gone"))
    assert told == calls
    assert not session.pending
    with pytest.raises(LinkLost):
        calls[0].result()


def test_a_request_with_wrong_contents_is_refused_before_it_has_a_number_to_wait_for() -> None:
    session = opened()
    with pytest.raises(WrongInput, match="lease_s"):
        session.begin(GetNext, {**NEXT, "lease_s": float("nan")})
    assert not session.pending
    assert not session.outgoing


def test_lost_acknowledgements_are_reported_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    session = opened()
    session.begin(GetNext, NEXT)
    with caplog.at_level(logging.WARNING, "asapo_work.session"):
        session.receive(encode(Rows(1, [], {}, {}, lost=[3, 4])))
    assert "[3, 4]" in caplog.text


def test_a_posted_acknowledgement_that_does_not_count_is_reported_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    session = opened()
    fields = {"source": "det", "stream": "s", "group": "g"}
    session.begin(Acknowledge, {**fields, "ranges": [[1, 9]]}, log_failure)
    session.begin(Nack, {**fields, "ids": [5]}, log_failure)
    with caplog.at_level(logging.WARNING, "asapo_work.session"):
        session.receive(encode(Done(1, {"lost": [7]})))
        session.receive(encode(Done(2, {"lost": [5]})))
    assert [record.getMessage() for record in caplog.records] == [LOST_TEXT % [7]]


def test_a_beat_is_one_queued_header() -> None:
    session = opened()
    session.beat()
    assert list(session.outgoing) == [BEAT]


@pytest.mark.parametrize(
    "fields",
    [{}, {"code": 5, "message": None}, {"code": "from_the_future", "message": "m", "fields": {1: 2, "a": 3}}],
)
def test_an_error_map_from_a_newer_or_broken_peer_still_makes_an_error(fields: Any) -> None:
    error = error_of(fields)
    assert type(error) is AsapoError
    assert error.fields.get("a", 3) == 3
