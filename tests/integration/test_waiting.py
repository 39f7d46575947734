"""Waiting on links and bells."""

import os

import pytest

from asapo.transport import Waiter, Wakeup, connect, listen


@pytest.mark.parametrize("eventfd", [True, False])
def test_a_bell_is_heard_once_however_often_it_was_rung(eventfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not eventfd:
        monkeypatch.delattr(os, "eventfd", raising=False)
    bell, other = Wakeup(), Wakeup()
    waiter = Waiter(bell, other)
    try:
        assert waiter.ready(0.0) == []
        for _ in range(2):
            for _ in range(3):
                bell.ring()
            assert waiter.ready(5.0) == [bell]
            bell.hear()
            bell.hear()
            assert waiter.ready(0.0) == []
        other.ring()
        bell.ring()
        assert sorted(map(id, waiter.ready(5.0))) == sorted(map(id, [bell, other]))
        waiter.remove(other)
        assert waiter.ready(5.0) == [bell]
    finally:
        bell.close()
        other.close()
    bell.close()
    bell.ring()  # nobody is there any more


def test_what_is_ready_is_the_link_that_has_something_to_say() -> None:
    server = listen("tcp://127.0.0.1:*", max_part_bytes=1000)
    speaking, quiet = connect(server.address), connect(server.address)
    waiter, at_server = Waiter(speaking, quiet), Waiter(server)
    try:
        speaking.send(b"header")
        assert at_server.ready(5.0) == [server]
        message = server.receive()
        assert message is not None
        server.send(message.peer, b"answer")
        assert waiter.ready(5.0) == [speaking]
        assert speaking.receive() is not None
        assert waiter.ready(0.0) == []
        server.close()
        lost = set(waiter.ready(5.0))  # its end is something to read, too
        while len(lost) < 2:
            lost |= set(waiter.ready(5.0))
        assert lost == {speaking, quiet}
    finally:
        speaking.close()
        quiet.close()
        server.close()
