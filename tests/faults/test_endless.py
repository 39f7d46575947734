"""Peers that have greeted and then send a message without end: ended before it costs more than a message may (R17)."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asapo.testing.launch import LocalServices
from asapo.transport.endless import SLACK_BYTES
from asapo.wire.limits import MAX_HEADER_BYTES, MIB
from asapo_receive.service import OWN_BYTES
from tests.e2e.ledger import PATIENCE_S, producer_of
from tests.faults.target import COUNTERS, PORTS, Target, attacked_services, count, greeted, raw_socket, read_to_end
from tests.faults.test_fairness import share_of_its_pace
from tests.faults.test_raw_connections import GREETING, READY, resident_bytes
from tests.faults.test_strangers import FULL_S, PART

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

UNIT = 32 * MIB
CACHES = {"ingest_bytes": 32 * MIB, "cache_bytes": 8 * MIB, "memory_bytes": 8 * MIB, "window_bytes": 16 * MIB}
MESSAGE = UNIT + MAX_HEADER_BYTES + SLACK_BYTES
"""What one connection may make a service hold."""
OTHERS = 48 * MIB + OWN_BYTES
"""What a receiver may hold beside the message of each link; of Unix sockets memory tells only above that."""
ENDLESS = 4096 * MIB
RATE = 200 * MIB
"""Bytes a second of an attacker: what comes between two looks depends on it, and on how busy the machine is."""
OVERSHOOT_BYTES = 320 * MIB
"""What comes on a machine that is too busy to look for a second and a half."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with attacked_services(tmp_path_factory.mktemp("endless"), max_unit_bytes=UNIT, **CACHES) as found:
        yield found


def _greet(plain: socket.socket, target: Target, port: str) -> None:
    """Do the handshake, say Hello with its empty payload part, and wait for the Welcome."""
    plain.sendall(GREETING + READY)
    _read(plain, len(GREETING))
    _read(plain, _read(plain, 2)[1])  # READY
    hello = greeted(target, port)
    plain.sendall(struct.pack(">BQ", 3, len(hello)) + hello + b"\0\0")
    assert _read(plain, 1) == b"\1", "a first part, with more to come"


def _read(plain: socket.socket, n: int) -> bytes:
    """Return the next `n` bytes."""
    found = b""
    while len(found) < n:
        piece = plain.recv(n - len(found))
        assert piece, "closed"
        found += piece
    return found


def _send_without_end(target: Target, port: str) -> int:
    """Greet, then send parts of one message until the other side ends it; return how many bytes that took."""
    sent = 0
    with raw_socket(target.address[port]) as plain:
        _greet(plain, target, port)
        plain.settimeout(FULL_S)
        began_s = time.monotonic()
        try:
            while sent < ENDLESS:
                plain.sendall(PART)
                sent += len(PART)
                threading.Event().wait(max(0.0, began_s + sent / RATE - time.monotonic()))
        except ConnectionError:
            return sent
        except TimeoutError:
            plain.settimeout(PATIENCE_S)
            read_to_end(plain)
    return sent


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("port", PORTS)
def test_a_greeted_peer_whose_message_never_ends_is_ended(target: Target, port: str) -> None:
    pid = target.services.pid("broker" if port == "core" else "r1")
    before = resident_bytes(pid)
    _reset_peak(pid)
    with target.counted(COUNTERS[port][1]):
        sent = _send_without_end(target, port)
    grown = _peak_bytes(pid) - before
    print(f"{port}: ended after {sent / MIB:.0f} MiB, the service grew by {grown / MIB:.0f} MiB")
    assert sent < ENDLESS
    assert grown < 1.1 * (OTHERS + 3 * MESSAGE if port == "ingest-ipc" else MESSAGE + OVERSHOOT_BYTES)
    target.check_others_are_served()


@contextmanager
def _attacked(target: Target, port: str) -> Iterator[list[int]]:
    """Let one connection after the other send without end while the block runs; give how much each got rid of."""
    stopping = threading.Event()
    sent: list[int] = []

    def attack() -> None:
        while not stopping.is_set():
            sent.append(_send_without_end(target, port))

    thread = threading.Thread(target=attack, name="attacker")
    thread.start()
    try:
        yield sent
    finally:
        stopping.set()
        thread.join()


@pytest.mark.parametrize("port", ["ingest-tcp", pytest.param("core", marks=pytest.mark.soak)])
def test_a_producer_beside_it_keeps_its_rate_and_the_service_its_budget(target: Target, port: str) -> None:
    pid = target.services.pid("broker" if port == "core" else "r1")
    before = resident_bytes(pid)
    _reset_peak(pid)
    with _attacked(target, port) as sent:
        share, waits_s = share_of_its_pace(target.services)
    grown = _peak_bytes(pid) - before
    print(f"{port}: {len(sent)} attacks, {share:.2f} of the rate, waits {waits_s} s, grown {grown / MIB:.0f} MiB")
    assert 0 < max(sent) < ENDLESS
    assert share > 0.9
    assert grown < 1.1 * (MESSAGE + OVERSHOOT_BYTES)


@pytest.mark.soak
def test_a_producer_that_sends_all_it_can_is_never_taken_for_one(tmp_path: Path) -> None:
    with (
        LocalServices(tmp_path, http=True, log_level="error", max_unit_bytes=16 * MIB) as services,
        producer_of(services, queue_bytes=256 * MIB) as producer,
    ):
        frame = bytes(16 * MIB)
        for _ in range(3):
            for _ in range(20):
                producer.send(frame)
            with services.paused("r1"):  # all that was under way waits there
                threading.Event().wait(1.0)
            for _ in range(2000):
                producer.send(frame[:1000])
            producer.flush(PATIENCE_S)
        assert producer.stats.resent == 0
        assert count(services, "asapo_receiver_handshakes_refused") == 0
