"""The network thread: decodes, keeps credits, answers heartbeats, sends acks. It touches no file and no database."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from asapo.errors import (
    AsapoError,
    LinkLost,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    WrongInput,
    known,
    to_wire,
)
from asapo.failpoints import failpoint
from asapo.metrics import Counters
from asapo.models import check_name
from asapo.transport import Message, Server, Waiter, Wakeup
from asapo.wire.codec import PREFIXES, PUT_KIND, decode, decode_singles, encode
from asapo.wire.events import Beat, Bye, Done, Event, Failed, Goodbye, Hello, Welcome
from asapo.wire.limits import HEARTBEAT_S, WINDOW_MESSAGES
from asapo.wire.put import Put
from asapo.wire.session import State
from asapo_receive.peers import Peer, check_hello
from asapo_receive.settings import ReceiverSettings
from asapo_receive.units import Request, Unit, joined

log = logging.getLogger(__name__)

BURST: Final = 64
"""Messages taken from one socket before acks get their turn."""
SIGNS_BYTES: Final = 1024
"""More than ZeroMQ itself says between two looks."""
HAND_OVER_BYTES: Final = 256 * 1024
"""Small units are handed over by the burst, since waking a thread costs as much as a unit; large ones at once."""
MIN_WINDOW_BYTES: Final = 8 * 1024 * 1024
SMALL_BYTES: Final = 64 * 1024
"""Up to this length of header and payload, units of one message each are gathered into one."""
PUT_PREFIX: Final = PREFIXES[PUT_KIND]


class Network:
    """Serves all producer links of one receiver.

    `submit` takes Units and Requests on their way; they are handed back through `finished`, from any thread. `beat`
    takes (beamtime, source, session, marks) of a session that was heard of.
    """

    def __init__(
        self,
        settings: ReceiverSettings,
        epoch: int,
        servers: list[Server],
        submit: Callable[[Sequence[Unit | Request]], None],
        beat: Callable[[str, str, bytes, Mapping[str, int]], None],
        counters: Counters,
    ) -> None:
        self._settings = settings
        self._epoch = epoch
        self._servers = servers
        self._submit = submit
        self._beat = beat
        self._counters = counters
        self._peers: dict[tuple[int, bytes], Peer] = {}
        self._done: deque[Unit | Request] = deque()
        self._bell = Wakeup()
        self._stopping = False
        self._beat_due_s = 0.0
        self._taken_bytes = 0
        self._burst: list[Unit | Request] = []

    def finished(self, items: list[Unit] | list[Request]) -> None:
        """Take back what has its outcome. Any thread."""
        self._done.extend(items)
        self._bell.ring()

    def stop(self) -> None:
        """End `run` after everything that is finished was acknowledged. Any thread."""
        self._stopping = True
        self._bell.ring()

    def run(self) -> None:
        """Serve until `stop`."""
        waiter = Waiter(self._bell, *self._servers)
        while not self._stopping:
            waiter.wait(0.2)
            self._bell.hear()
            more = True
            while more and not self._stopping:
                more = self._take_burst()
                self._send_outcomes()
                self._keep_time(time.monotonic())
        self._send_outcomes()
        self._farewell()
        self._bell.close()

    def _farewell(self) -> None:
        leaving = encode(Goodbye({"code": "link_lost", "message": "the receiver stops", "fields": {}}))
        for server_no, identity in list(self._peers):
            self._servers[server_no].send(identity, leaving)
        self._peers.clear()

    def _take_burst(self) -> bool:
        more = False
        for number, server in enumerate(self._servers):
            left, drained = BURST, False
            while left > 0 and not drained:
                messages, drained = _some(server, left)
                left -= len(messages)
                self._take_all(number, server, messages)
                self._hand_over()
            more |= not drained
        return more

    def _hand_over(self) -> None:
        if self._burst:
            self._submit(self._burst)
            self._burst = []

    def _take_all(self, number: int, server: Server, messages: list[Message]) -> None:
        for (identity, small), group in groupby(messages, _peer_and_small):
            run = list(group)
            if not (small and len(run) > 1 and self._take_singles((number, identity), run)):
                for message in run:
                    self._take(number, server, message)

    def _take_singles(self, key: tuple[int, bytes], messages: list[Message]) -> bool:
        """Take units of one message each as one unit; False when they cannot be, or one of them may be wrong.

        Small messages that are not packed would cost ten times of what packed ones do, all the way to the index.
        """
        peer = self._peers.get(key)
        if peer is None or peer.state is not State.OPEN:
            return False
        put = decode_singles([message.header for message in messages], [len(message.payload) for message in messages])
        if put is None or put.unit != peer.next_unit:
            return False
        try:
            payload = joined([message.payload for message in messages])
            peer.accept(put, len(payload), time.monotonic(), len(messages))
        except (ProtocolError, MemoryError) as exc:
            self._drop(key, known(exc, "take these messages"))
            return True
        unit = self._unit(key, peer, put, encode(put), payload)
        unit.wire_units = len(messages)
        self._burst.append(unit)
        return True

    def _unit(self, key: tuple[int, bytes], peer: Peer, put: Put, header: bytes, payload: Any) -> Unit:
        nbytes = len(payload)
        self._taken_bytes += nbytes
        return Unit(key, peer.hello.session, peer.ref(put.stream), put, header, payload, nbytes, time.time_ns())

    def _take(self, number: int, server: Server, message: Message) -> None:
        key = (number, message.peer)
        try:
            nbytes = len(message.payload)
            event = decode(message.header, nbytes)
            peer = self._peers.get(key)
            if peer is None:
                self._greet(key, server, event)
            else:
                peer.accept(event, nbytes, time.monotonic())
                self._handle(key, peer, event, message)
        except (ProtocolError, WrongInput) as exc:
            self._drop(key, exc)
        except MemoryError as exc:
            self._drop(key, known(exc, "take this message"))
        except Exception as exc:
            log.exception("a message of link %s failed", message.peer.hex())
            what = f"the receiver failed on this message ({type(exc).__name__}); see its log"
            self._drop(key, LocalProtocolError(what))

    def _greet(self, key: tuple[int, bytes], server: Server, event: Event | Put) -> None:
        if type(event) is Bye:
            return
        if type(event) is not Hello:
            raise RemoteProtocolError(f"{type(event).__name__} before Hello: expected Hello first")
        check_hello(event, "producer")
        check_name("source", event.source)
        settings = self._settings
        peer = Peer(key[1], event, settings.window_bytes, WINDOW_MESSAGES, time.monotonic())
        self._peers[key] = peer
        self._share_credit()
        peer.credit_changed = False
        welcome = Welcome(
            settings.receiver_id, self._epoch, peer.window_bytes, peer.window_messages, settings.max_unit_bytes,
            HEARTBEAT_S, settings.session_timeout_s,
        )  # fmt: skip
        server.send(key[1], encode(welcome))
        self._counters.set("asapo_receiver_links", len(self._peers))
        log.info("producer %s joined: %s/%s", event.name or key[1].hex(), event.beamtime, event.source)

    def _share_credit(self) -> None:
        """Give every producer the same share of the receiver's memory."""
        settings = self._settings
        share = settings.ingest_bytes // max(1, len(self._peers))
        window = max(min(settings.window_bytes, share), min(settings.window_bytes, MIN_WINDOW_BYTES))
        for peer in self._peers.values():
            peer.set_window(window)

    def _handle(self, key: tuple[int, bytes], peer: Peer, event: Event | Put, message: Message) -> None:
        hello = peer.hello
        if type(event) is Put:
            self._burst.append(self._unit(key, peer, event, message.header, message.payload))
            return
        if type(event) is Beat:
            if event.marks:
                self._beat(hello.beamtime, hello.source, hello.session, event.marks)
            return
        if peer.state is State.CLOSED:
            self._forget(key)
        if type(event) is Bye and not event.final:
            return
        self._burst.append(Request(key, hello.session, hello.beamtime, hello.source, event))  # type: ignore[arg-type]

    def _send_outcomes(self) -> None:
        touched: dict[tuple[int, bytes], Peer] = {}
        while self._done:
            item = self._done.popleft()
            key = item.peer
            peer = self._peers.get(key)
            if peer is None:
                continue  # it left meanwhile; what it sent is stored all the same
            if isinstance(item, Unit):
                for _, error in item.errors:
                    self._counters.add("asapo_receiver_refused_total", 1, code=error.code)
                peer.finish(item)
                touched[key] = peer
            else:
                self._answer(key, item)
        for key, peer in touched.items():
            ack = peer.next_ack()
            if ack is not None:
                failpoint("ingest.before-ack")
                self._servers[key[0]].send(key[1], encode(ack))
                failpoint("ingest.after-ack")

    def _answer(self, key: tuple[int, bytes], item: Request) -> None:
        number = getattr(item.event, "request", None)
        if number is None:
            return
        reply: Event = Done(number, item.answer) if item.error is None else Failed(number, to_wire(item.error))
        self._servers[key[0]].send(key[1], encode(reply))

    def _keep_time(self, now_s: float) -> None:
        """Beat to all peers once per heartbeat, and forget those that fell silent."""
        if now_s < self._beat_due_s:
            return
        self._beat_due_s = now_s + HEARTBEAT_S
        beat = encode(Beat())
        timeout_s = self._settings.session_timeout_s
        for key, peer in list(self._peers.items()):
            alive = self._servers[key[0]].send(key[1], beat)
            heard_s = self._heard_s(key, peer, now_s)
            if not alive or now_s - heard_s > timeout_s:
                log.info("producer link %s is gone", peer.hello.name or peer.identity.hex())
                if alive:  # the network may only have held everything: who hears this makes a new link
                    silent = LinkLost(f"the receiver heard nothing on this link for {timeout_s:g} s")
                    self._servers[key[0]].send(key[1], encode(Goodbye(to_wire(silent))))
                self._forget(key)
            elif heard_s > peer.kept_alive_s:
                # Whatever it said, its session lives, also on streams that it sends nothing to now.
                peer.kept_alive_s = now_s
                self._beat(peer.hello.beamtime, peer.hello.source, peer.hello.session, {})
        self._counters.add("asapo_receiver_bytes_total", self._taken_bytes)
        self._taken_bytes = 0
        in_flight = sum(peer.in_flight_bytes for peer in self._peers.values())
        self._counters.set("asapo_receiver_in_flight_bytes", in_flight)
        self._counters.set("asapo_receiver_handshakes_refused", sum(server.refused() for server in self._servers))

    def _heard_s(self, key: tuple[int, bytes], peer: Peer, now_s: float) -> float:
        """Return when a peer was heard last, be it that a part of a long message came."""
        before, peer.received_bytes = peer.received_bytes, self._servers[key[0]].received_bytes(key[1])
        if before and peer.received_bytes - before > SIGNS_BYTES:
            peer.came_s = now_s
        return max(peer.heard_s, peer.came_s)

    def _forget(self, key: tuple[int, bytes]) -> None:
        del self._peers[key]
        self._share_credit()
        self._counters.set("asapo_receiver_links", len(self._peers))

    def _drop(self, key: tuple[int, bytes], error: AsapoError) -> None:
        """End a link that broke the protocol; the others are served on."""
        self._counters.add("asapo_receiver_dropped_links_total", 1, code=error.code)
        log.warning("link %s dropped: %s", key[1].hex(), error)
        self._servers[key[0]].send(key[1], encode(Goodbye(to_wire(error))))
        if key in self._peers:
            self._forget(key)


def _some(server: Server, most: int) -> tuple[list[Message], bool]:
    """Return what has come in, up to a number of messages and about `HAND_OVER_BYTES`; True when that is all."""
    messages: list[Message] = []
    nbytes = 0
    while len(messages) < most and nbytes < HAND_OVER_BYTES:
        message = server.receive()
        if message is None:
            return messages, True
        messages.append(message)
        nbytes += len(message.payload)
    return messages, False


def _peer_and_small(message: Message) -> tuple[bytes, bool]:
    """Tell whose message it is, and whether it may be one of many small units."""
    small = len(message.payload) <= SMALL_BYTES >= len(message.header) and message.header.startswith(PUT_PREFIX)
    return message.peer, small
