"""Every (role, state, event) triple, legal and illegal."""

import pytest

from asapo.errors import LocalProtocolError, RemoteProtocolError
from asapo.wire.events import KINDS, Bye, Goodbye, Hello, Welcome
from asapo.wire.put import Put
from asapo.wire.session import CLIENTS, SPOKEN, AnyEvent, Role, State, advance

ALL = [Put, *KINDS.values()]


def expected(role: Role, state: State, kind: type) -> State | None:
    """The rules in words: greet first, then speak your vocabulary, and nothing after the farewell."""
    greeting, farewell = (Hello, Bye) if role in CLIENTS else (Welcome, Goodbye)
    if state is State.CLOSED:
        return None
    if kind is farewell:
        return State.CLOSED
    if state is State.GREETING:
        return State.OPEN if kind is greeting else None
    return State.OPEN if kind in SPOKEN[role] else None


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_table_says_who_may_say_what_when(role: Role, state: State, kind: type) -> None:
    event: AnyEvent = object.__new__(kind)
    following = expected(role, state, kind)
    if following is not None:
        assert advance(role, state, event, RemoteProtocolError) is following
        return
    with pytest.raises(RemoteProtocolError, match=kind.__name__):
        advance(role, state, event, RemoteProtocolError)


def test_a_local_mistake_is_blamed_on_us() -> None:
    with pytest.raises(LocalProtocolError):
        advance(Role.PRODUCER, State.OPEN, Welcome("r1"), LocalProtocolError)
