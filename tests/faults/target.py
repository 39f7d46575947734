"""Services under attack, and a producer and a consumer that must not notice it."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq

from asapo.errors import LinkLost
from asapo.testing.launch import LocalServices
from asapo.transport import Waiter, connect
from asapo.wire.codec import MAGIC, PREFIX, decode
from asapo.wire.events import Beat, Event, Goodbye
from asapo.wire.limits import VERSION
from asapo.wire.put import Put
from tests.e2e.ledger import PATIENCE_S, Ledger, Load, OrderedReader, consumer_of, producer_of, sparse_ids, wait_until

PORTS: Final = ("ingest-tcp", "ingest-ipc", "data", "core")
"""The native ports of a running system."""
COUNTERS: Final = {
    "ingest-tcp": ("asapo_receiver_dropped_links_total", "asapo_receiver_handshakes_refused"),
    "ingest-ipc": ("asapo_receiver_dropped_links_total", "asapo_receiver_handshakes_refused"),
    "data": ("asapo_data_server_dropped_links_total", "asapo_data_server_handshakes_refused"),
    "core": ("asapo_broker_refused_peers_total", "asapo_broker_broken_handshakes"),
}
"""What counts peers that break our protocol, and connections that break the transport's, on each port."""
LOST: Final = "link lost"


class Reply(NamedTuple):
    """What came back: an event with its payload part, or that the link was lost."""

    event: Event | Put | str
    payload: bytes = b""


class Target:
    """One of each service, with a producer and an ordered reader at work."""

    def __init__(self, services: LocalServices) -> None:
        self.services = services
        ready = services.ready("r1")
        self.address = {
            "ingest-tcp": next(url for url in ready["addresses"] if url.startswith("tcp")),
            "ingest-ipc": next(url for url in ready["addresses"] if url.startswith("ipc")),
            "data": ready["data_address"],
            "core": services.native.replace("asapo", "tcp"),
        }
        self.ledger = Ledger("others", sizes=(0, 1_000, 100_000))
        self.reader = OrderedReader(services, self.ledger, group="others", access="fetch")
        self._producer = producer_of(services)
        self._load = Load(self._producer, self.ledger, sparse_ids(), under_way=8, rate_hz=50)

    def start(self) -> None:
        """Let producer and reader begin."""
        self.reader.start()
        self._load.start()
        self.check_others_are_served()

    def check_others_are_served(self) -> None:
        """Wait until the pair has made progress: messages sent after this call was made have been read."""
        self._load.wait_for_more(2)
        newest = max(self.ledger.acked)

        def caught_up() -> bool:
            if self.reader.error is not None:
                raise self.reader.error
            return bool(self.reader.ids) and self.reader.ids[-1] >= newest

        wait_until(caught_up, f"the reader has id {newest}")

    def finish(self) -> None:
        """End the pair and check that it got everything."""
        self._load.stop()
        self._producer.finish_stream(self.ledger.stream)
        assert self.reader.finish() == sorted(self.ledger.acked)
        assert not self.ledger.failed
        assert self._producer.stats.resent == 0, "the producer's own link was lost"
        self._producer.close()
        self.ledger.check_all(self.services)

    def count(self, name: str) -> float:
        """Return a number of the metrics page, all labels added up."""
        return count(self.services, name)

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Wait, after the block, until this number of the metrics page has grown."""
        before = self.count(name)
        yield
        wait_until(lambda: self.count(name) > before, f"{name} grows beyond {before:g}")


def count(services: LocalServices, name: str, **labels: str) -> float:
    """Return a number of the metrics page: what has these labels, added up."""
    with urllib.request.urlopen(f"{services.http}/metrics", timeout=PATIENCE_S) as page:
        lines = re.findall(rf"^{name}(?:{{([^\n]*)}})? (\S+)$", page.read().decode(), re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for found, value in lines if all(text in found for text in wanted))


def header(kind: int, body: bytes, *, magic: bytes = MAGIC, version: tuple[int, int] = VERSION) -> bytes:
    """Return a header part with any contents."""
    return PREFIX.pack(magic, *version, kind) + body


def replies(
    address: str,
    messages: Sequence[tuple[bytes, bytes]],
    *,
    n: int = 1,
    until: Callable[[Reply], bool] | None = None,
) -> list[Reply]:
    """Send messages over one link and return the next `n` answers, or those up to one that is waited for.

    A Goodbye or a lost link is the last one in any case.
    """
    link = connect(address)
    waiter = Waiter(link)
    found: list[Reply] = []
    deadline_s = time.monotonic() + PATIENCE_S
    try:
        for first, second in messages:
            wait_until(lambda a=first, b=second: link.send(a, b) is not False, "the message is on its way")  # type: ignore[misc]
        while len(found) < n if until is None else not (found and until(found[-1])):
            assert time.monotonic() < deadline_s, f"no answer from {address} within {PATIENCE_S:g} s, only {found}"
            try:
                message = link.receive()
            except LinkLost:
                found.append(Reply(LOST))
                break
            if message is None:
                waiter.wait(0.1)
            elif type(event := decode(message.header, len(message.payload))) is not Beat:
                found.append(Reply(event, bytes(memoryview(message.payload))))
                if type(event) is Goodbye:
                    break
    finally:
        link.close()
    return found


def reply_to_parts(address: str, parts: Sequence[bytes]) -> Reply:
    """Send one message of any number of parts and return the answer."""
    link: Any = zmq.Context.instance().socket(zmq.DEALER)
    link.setsockopt(zmq.LINGER, 0)
    try:
        link.connect(address)
        link.send_multipart(parts)
        assert link.poll(PATIENCE_S * 1000), f"no answer from {address}"
        first, second = link.recv_multipart()
        return Reply(decode(first, len(second)), second)
    finally:
        link.close()


def raw_socket(address: str) -> socket.socket:
    """Return a plain connected socket to a port."""
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(PATIENCE_S)
        wait_until(lambda: _is_connected(plain, rest), f"{address} has room for one more connection")
        return plain
    host, _, port = rest.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def _is_connected(plain: socket.socket, path: str) -> bool:
    """Connect to a Unix socket; False when too many others wait for that, which it says at once."""
    try:
        plain.connect(path)
    except BlockingIOError:
        return False
    return True


def read_to_end(plain: socket.socket) -> bytes:
    """Return what comes until the other side closes the connection."""
    found = b""
    try:
        while piece := plain.recv(65536):
            found += piece
    except ConnectionError:
        pass
    return found


@contextmanager
def attacked_services(folder: Path, **receiver: Any) -> Iterator[Target]:
    """Run services and the pair; check in the end that the pair never noticed anything."""
    with LocalServices(folder, http=True, log_level="error", **receiver) as services:
        target = Target(services)
        target.start()
        yield target
        target.finish()


def greeted(target: Target, port: str) -> bytes:
    """Return the header of the Hello that a port expects."""
    from asapo.wire.codec import encode
    from asapo.wire.events import Hello

    roles = {"data": "reader", "core": "consumer"}
    return encode(Hello(roles.get(port, "producer"), b"a" * 16, "attack", "source"))


__all__ = ["LOST", "PORTS", "COUNTERS", "Reply", "Target", "attacked_services", "consumer_of", "count", "greeted",
           "header", "raw_socket", "read_to_end", "replies", "reply_to_parts"]  # fmt: skip
