"""Who sends a message that never ends, told from who sends much."""

import os
import socket
from collections.abc import Iterator

import pytest

from asapo.transport.endless import SLACK_BYTES, Heards, received_bytes
from asapo.wire.limits import MAX_HEADER_BYTES, MIB

LONGEST = 32 * MIB
MOST = LONGEST + MAX_HEADER_BYTES + SLACK_BYTES
OTHER = 100 * MIB


class Wires:
    """Connections, what each has received, and the thread that receives."""

    def __init__(self) -> None:
        self.received: dict[int, int | None] = {}
        self.heards = Heards(LONGEST, OTHER, received=self.received.get)
        self.sockets: list[socket.socket] = []
        self.now_s = 0.0
        self.resident = 0

    def connect(self, name: bytes, *, counted: bool = True) -> int:
        pair = socket.socketpair()
        self.sockets += pair
        descriptor = pair[0].fileno()
        self.received[descriptor] = 0 if counted else None
        self.heards.add(name, descriptor)
        return descriptor

    def ended(self) -> list[int]:
        self.now_s += 0.02
        return [heard.descriptor for heard in self.heards.endless(self.resident, self.now_s)]


@pytest.fixture
def wires() -> Iterator[Wires]:
    found = Wires()
    yield found
    for one in found.sockets:
        one.close()


def test_a_connection_with_more_bytes_than_a_message_and_none_to_show_is_found(wires: Wires) -> None:
    bad, idle = wires.connect(b"bad"), wires.connect(b"idle")
    assert wires.ended() == []
    wires.received[bad] = MOST
    wires.heards.drained += 1
    assert wires.ended() == []
    wires.received[bad] = MOST + 1
    assert wires.ended() == []
    wires.heards.drained += 1
    assert wires.ended() == [bad]
    assert idle != bad


def test_nobody_is_ended_while_the_receiving_thread_is_behind(wires: Wires) -> None:
    busy = wires.connect(b"busy")
    wires.ended()
    for _ in range(10):
        wires.received[busy] += MOST  # type: ignore[operator]
        assert wires.ended() == []
    wires.heards.peers[b"busy"].whole += 10  # it has caught up
    wires.heards.drained += 1
    assert wires.ended() == []
    assert wires.ended() == []


def test_it_is_proved_as_well_when_the_others_never_leave_the_socket_empty(wires: Wires) -> None:
    bad = wires.connect(b"bad")
    wires.connect(b"busy")
    wires.ended()
    wires.received[bad] = MOST + 1
    assert wires.ended() == []
    wires.heards.peers[b"busy"].whole += 4
    assert wires.ended() == []
    wires.heards.peers[b"busy"].whole += 1
    assert wires.ended() == [bad]


def test_a_descriptor_that_is_used_anew_begins_anew(wires: Wires) -> None:
    old = wires.connect(b"old")
    wires.ended()
    kept = os.dup(wires.sockets[1].fileno())
    os.dup2(kept, old)  # another connection has the number now
    os.close(kept)
    wires.received[old] = 10 * MOST
    wires.heards.gone(old)
    wires.heards.drained += 1
    assert wires.ended() == wires.ended() == []
    assert not wires.heards


def test_the_end_of_a_connection_does_not_hide_the_one_that_has_its_descriptor(wires: Wires) -> None:
    wires.heards.gone(wires.connect(b"new"))  # told late of the one before
    assert wires.heards


def test_where_nobody_counts_memory_tells(wires: Wires) -> None:
    bad, honest = wires.connect(b"bad", counted=False), wires.connect(b"honest", counted=False)
    wires.ended()
    wires.resident = OTHER + 2 * MOST
    wires.heards.peers[b"honest"].whole += 1  # it says something every second
    wires.heards.drained += 1
    assert wires.ended() == []
    wires.resident += 1
    assert wires.ended() == []
    wires.heards.drained += 1
    assert wires.ended() == [bad]
    assert honest != bad


def test_memory_that_was_taken_before_a_connection_spoke_is_not_its_own(wires: Wires) -> None:
    wires.resident = 10 * (OTHER + MOST)
    wires.connect(b"quiet", counted=False)
    for _ in range(3):
        wires.heards.drained += 1
        assert wires.ended() == []


@pytest.mark.needs_linux
def test_the_system_counts_what_a_connection_receives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(bytes(12_345))
            accepted.recv(12_345, socket.MSG_WAITALL)
            assert received_bytes(accepted.fileno()) == 12_345
    one, other = socket.socketpair()
    with one, other:
        assert received_bytes(one.fileno()) is None
