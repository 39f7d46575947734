"""Connections that never say anything whole cost next to nothing, and nobody else notices them (R17)."""

import struct
from contextlib import ExitStack

import pytest

from asapo.testing.launch import LocalServices
from asapo.transport.door import GREETING_BYTES
from asapo.wire.limits import MIB
from tests.e2e.ledger import PATIENCE_S, wait_until
from tests.faults.target import COUNTERS, PORTS, Target, raw_socket, read_to_end
from tests.faults.test_raw_connections import GREETING, READY, resident_bytes

pytestmark = [
    pytest.mark.needs_server,
    pytest.mark.needs_linux,
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("others_are_served"),
]

FULL_S = 3.0
"""A peer that takes nothing for so long may have closed."""
BUDGET_BYTES = 64 * MIB
"""What the services of this test may hold: their credit, caches and window are set to fit in here."""
PART = struct.pack(">BQ", 3, MIB) + bytes(MIB)
"""A part of 1 MiB with more to follow."""


def _pid(services: LocalServices, port: str) -> int:
    return services.pid("broker" if port == "core" else "r1")


def _send_without_end(address: str, most_bytes: int) -> int:
    """Send parts of one message until the other side ends it; return how many bytes that took.

    Closed with a full window, the other end of TCP may answer nothing but "still full": its last word is read then.
    """
    sent = 0
    with raw_socket(address) as plain:
        plain.settimeout(FULL_S)
        try:
            plain.sendall(GREETING + READY)
            while sent < most_bytes:
                plain.sendall(PART)
                sent += len(PART)
        except ConnectionError:
            return sent
        except TimeoutError:
            plain.settimeout(PATIENCE_S)
            read_to_end(plain)
    return sent


@pytest.mark.parametrize("port", PORTS)
def test_a_message_that_never_ends_is_ended_before_it_costs_much(target: Target, port: str) -> None:
    before = resident_bytes(_pid(target.services, port))
    most = 2048 * MIB
    with target.counted(COUNTERS[port][1]):
        assert _send_without_end(target.address[port], most) < most
    assert _send_without_end(target.address[port], most) < most
    grown = resident_bytes(_pid(target.services, port)) - before
    assert grown < 5 * GREETING_BYTES, f"{port} took {grown / MIB:.0f} MiB"


@pytest.mark.parametrize("port", PORTS)
def test_hundreds_of_connections_that_say_nothing_hold_up_nobody(target: Target, port: str) -> None:
    before = resident_bytes(_pid(target.services, port))
    with ExitStack() as stack:
        held = [stack.enter_context(raw_socket(target.address[port])) for _ in range(250)]
        for number, plain in enumerate(held):
            plain.sendall([b"", GREETING, GREETING + READY, GREETING + READY + b"\x01\x05ab"][number % 4])
        target.check_others_are_served()
    grown = resident_bytes(_pid(target.services, port)) - before
    assert grown < BUDGET_BYTES, f"{port} took {grown / MIB:.0f} MiB"


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("port", PORTS)
def test_connections_that_say_nothing_are_ended_in_time(target: Target, port: str) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(raw_socket(target.address[port])) for _ in range(1000)]
        for plain in held:
            plain.sendall(GREETING + READY)
        for plain in held:
            plain.settimeout(60.0)
        target.check_others_are_served()
        for plain in held:
            while plain.recv(65536):
                continue  # what the server says, until it closes
    wait_until(lambda: target.count(COUNTERS[port][1]) >= 1000, "they are counted")
