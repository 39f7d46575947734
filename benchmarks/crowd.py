"""A process of many clients: the SDK's sessions, each with a connection of its own, all served by one thread.

A thread for each would measure how threads share an interpreter; a thousand clients are a thousand processes elsewhere.

Run as `python -m benchmarks.crowd URL`; one JSON line for each round: {stream, round, clients, groups, seconds, batch},
and when all have answered that they are connected, another one, upon which they begin.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import zmq

from asapo.hostinfo import boot_id, who_am_i
from asapo.transport import connect, resolve
from asapo.wire.events import SESSION_BYTES, GetLast, GetNext, Hello
from asapo_work.message import ranges_of
from asapo_work.payload import MessagePayloads
from asapo_work.plans import Place, Reading
from asapo_work.session import Call, ClientSession
from benchmarks.product import BEAMTIME, SOURCE
from benchmarks.roles import answer, rounds

PATIENCE_S: Final = 60.0
BEAT_S: Final = 2.0


class Client:
    """Takes batch after batch for its group, acknowledging each with the next request."""

    def __init__(self, address: str, facts: dict[str, Any], group: str) -> None:
        self.group = group
        self.taken = 0
        self.taken_ms: list[float] = []
        self._asked_s = 0.0
        hello = Hello("consumer", os.urandom(SESSION_BYTES), BEAMTIME, SOURCE, who_am_i(), boot_id(), "")
        payloads = MessagePayloads(hello, access="auto", verify=False, timeout_s=PATIENCE_S, locate=lambda *_: None)
        self._place = Place(BEAMTIME, SOURCE, facts["stream"], payloads)
        reading = Reading(group=group)
        self._fields = {**self._place.fields, **reading.fields, "n": facts["batch"], "wait_s": PATIENCE_S}
        self._session = ClientSession(hello)
        self.link = connect(address)
        self._session.opened()
        self.waiting = True
        self.call = self._begin(GetLast, self._place.fields)

    def _begin(self, kind: type[Any], fields: dict[str, Any]) -> Call:
        call = self._session.begin(kind, fields)
        self.flush()
        return call

    def flush(self) -> None:
        """Send what is queued."""
        while self._session.outgoing:
            assert self.link.send(self._session.outgoing.popleft()), "the transport takes no more"

    def descriptor(self) -> int:
        """Return what becomes readable when something happens on the connection: once, however much came."""
        return int(self.link.pollables()[0].getsockopt(zmq.FD))

    def receive(self) -> None:
        """Take in what came."""
        while (message := self.link.receive()) is not None:
            self._session.receive(message.header, message.payload)
        self.flush()

    def connected(self) -> None:
        """Take the answer to the first request."""
        self.call.result()
        self.waiting = False

    def take(self) -> None:
        """Take the messages of an answer."""
        messages = self._place.messages(self.call.result())
        self.taken_ms.append((time.perf_counter() - self._asked_s) * 1e3)
        self.taken += len(messages)
        self.ask(ranges_of([message.id for message in messages]))

    def ask(self, done: list[tuple[int, int]]) -> None:
        """Ask for the next messages, and report those that are done."""
        self.waiting = True
        self._asked_s = time.perf_counter()
        self.call = self._begin(GetNext, {**self._fields, "done": done})

    def beat(self) -> None:
        """Give a sign of life."""
        self._session.beat()
        self.flush()

    def leave(self) -> None:
        """End the session."""
        self._session.leave()
        self.flush()
        self.link.close(linger_s=1.0)


class Crowd:
    """The clients of this process on one epoll: asking hundreds of sockets for each answer costs more than all else."""

    def __init__(self, address: str, facts: dict[str, Any]) -> None:
        groups = [f"{facts['round']}-{number % facts['groups']}" for number in range(facts["clients"])]
        self.clients = [Client(address, facts, group) for group in groups]
        self._client_of = {client.descriptor(): client for client in self.clients}
        self._epoll = select.epoll()
        for descriptor in self._client_of:
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._beat_due_s = 0.0

    def serve(self, answered: Callable[[Client], None]) -> None:
        """Wait for something to happen; call `answered` for each client whose request is answered."""
        came = [self._client_of[descriptor] for descriptor, _ in self._epoll.poll(0.1)]
        if time.perf_counter() >= self._beat_due_s:
            for client in self.clients:
                client.beat()
            self._beat_due_s = time.perf_counter() + BEAT_S
            came = self.clients
        for client in came:
            client.receive()
            while client.call.done and client.waiting:
                answered(client)
                client.receive()  # sending may have taken the sign that there is more

    def leave(self) -> None:
        """End all sessions."""
        for client in self.clients:
            client.leave()
        self._epoll.close()


def serve(address: str, facts: dict[str, Any], go: Callable[[], Any]) -> dict[str, Any]:
    """Run one round of all clients; return what each group took, and the times of the requests."""
    crowd = Crowd(address, facts)
    clients = crowd.clients
    while any(client.waiting for client in clients):
        crowd.serve(Client.connected)
    answer(connected=True)
    go()
    started_s = time.perf_counter()
    for client in clients:
        client.ask([])
    while (now_s := time.perf_counter()) < started_s + facts["seconds"]:
        crowd.serve(Client.take)
    crowd.leave()
    taken = Counter[str]()
    for client in clients:
        taken[client.group] += client.taken
    return {
        "taken": taken,
        "seconds": now_s - started_s,
        "taken_ms": [round(ms, 3) for client in clients for ms in client.taken_ms],
        "idlest": min(client.taken for client in clients),
    }


if __name__ == "__main__":
    lines = rounds()
    for round_facts in lines:
        answer(**serve(resolve(sys.argv[1]), round_facts, lambda: next(lines)))
