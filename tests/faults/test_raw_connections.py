"""Connections that do not even speak ZMTP or HTTP: refused, counted, and nobody else notices."""

import random
import socket
import struct
import urllib.error
import urllib.request

import pytest

from asapo.wire.limits import MAX_HEADER_BYTES, MIB
from tests.e2e.ledger import PATIENCE_S
from tests.faults.target import COUNTERS, PORTS, Target, raw_socket, read_to_end

pytestmark = [
    pytest.mark.needs_server,
    pytest.mark.needs_linux,
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("others_are_served"),
]

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY_BODY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
READY = b"\x04" + bytes([len(READY_BODY)]) + READY_BODY
NOISE = random.Random(7).randbytes(100_000)

REFUSED = {
    "noise": NOISE,
    "noise behind a greeting": GREETING + NOISE,
    "another mechanism": GREETING.replace(b"NULL", b"EVIL"),
    "CURVE": GREETING.replace(b"NULL\0", b"CURVE"),
    "no READY": GREETING + b"\x04\x05\x04NOPE",
    "a READY of 2**62 bytes": GREETING + b"\x06" + struct.pack(">Q", 2**62),
}
"""First bytes of connections that a ZMTP server must end by itself."""
LYING = {
    "a frame of 2**63 bytes": struct.pack(">BQ", 2, 2**63),
    "a frame of 2**64 - 1 bytes": struct.pack(">BQ", 3, 2**64 - 1),
    "a frame above the limit of a unit": struct.pack(">BQ", 3, 2**31 + 1),
}
"""Frames, after a good handshake, that a server must not take memory for."""
UNFINISHED = [
    b"",
    SIGNATURE[:1],
    SIGNATURE[:9],
    GREETING[:20],
    GREETING,
    GREETING + READY[:7],
    GREETING + b"\x04\x1e\x05READY\xffSocket-Type",
    GREETING + READY,
    GREETING + READY + b"\x01\x05ab",
    GREETING + READY + b"\xf8\x04abcd",
    GREETING + READY + struct.pack(">BQ", 3, MAX_HEADER_BYTES - 1) + b"a",
    # To ZMTP these may be the beginnings of frames of its oldest version, which has no handshake.
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + NOISE[:500],
]
"""First bytes after which a server may rightly wait for more."""


def _exchange(address: str, *pieces: bytes) -> bytes:
    """Send pieces and return what comes until the other side closes; fails when it never does."""
    with raw_socket(address) as plain:
        try:
            for piece in pieces:
                plain.sendall(piece)
        except ConnectionError:
            return b""  # closed before we were done
        return read_to_end(plain)


@pytest.mark.parametrize("port", PORTS)
def test_connections_that_break_the_transport_are_closed_and_counted(target: Target, port: str) -> None:
    with target.counted(COUNTERS[port][1]):
        for first in REFUSED.values():
            _exchange(target.address[port], first)


@pytest.mark.parametrize("port", PORTS)
def test_lengths_that_lie_are_refused_before_memory_is_taken(target: Target, port: str) -> None:
    service = "broker" if port == "core" else "r1"
    before = resident_bytes(target.services.pid(service))
    for frame in LYING.values():
        _exchange(target.address[port], GREETING, READY, frame)
    grown = resident_bytes(target.services.pid(service)) - before
    assert grown < 64 * MIB, f"{service} grew by {grown} bytes"


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("port", PORTS)
def test_connections_that_stop_half_way_hold_up_nobody(target: Target, port: str) -> None:
    held = [raw_socket(target.address[port]) for _ in UNFINISHED]
    try:
        for plain, first in zip(held, UNFINISHED, strict=True):
            plain.sendall(first)
        target.check_others_are_served()
    finally:
        for plain in held:
            plain.close()
    target.check_others_are_served()


@pytest.mark.parametrize("port", PORTS)
def test_connections_torn_down_at_once_hold_up_nobody(target: Target, port: str) -> None:
    for _ in range(50):
        plain = raw_socket(target.address[port])
        if plain.family != socket.AF_UNIX:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        plain.sendall(GREETING[:15])
        plain.close()


# -- the HTTP front --------------------------------------------------------------------------------------------------

HTTP_WRONG = {
    "noise": NOISE[:10_000] + b"\r\n\r\n",
    "ZMTP": GREETING + READY + b"\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "an unknown version": b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    "a header without colon": b"GET /health HTTP/1.1\r\nnonsense\r\n\r\n",
    "a length that is none": b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "a chunk that lies": b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
}


@pytest.mark.parametrize("name", HTTP_WRONG)
def test_what_is_no_http_gets_a_client_error_or_is_closed(target: Target, name: str) -> None:
    host = target.services.http.replace("http", "tcp")
    with raw_socket(host) as plain:
        plain.sendall(HTTP_WRONG[name])
        plain.shutdown(socket.SHUT_WR)
        answer = read_to_end(plain)
    assert not answer or answer.split()[1][:1] == b"4", answer[:100]
    assert target.count("asapo_broker_up") == 1


def test_odd_paths_and_methods_are_client_errors(target: Target) -> None:
    for method, path in [
        ("GET", "/../../etc/passwd"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd"),
        ("GET", "/" + "a" * 20_000),
        ("POST", "/health"),
        ("DELETE", "/metrics"),
        ("TRACE", "/metrics"),
        ("GET", "/metrics/%00"),
    ]:
        request = urllib.request.Request(target.services.http + path, method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE_S)
        with refused.value as answer:
            assert 400 <= answer.code < 500, f"{method} {path[:40]}: {answer.code}"


def test_slow_http_clients_hold_up_nobody(target: Target) -> None:
    host = target.services.http.replace("http", "tcp")
    held = [raw_socket(host) for _ in range(100)]
    try:
        for plain in held:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert target.count("asapo_broker_up") == 1
    finally:
        for plain in held:
            plain.close()
