"""A core, its index and bare clients, for tests of the core's process."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asapo.index import IndexDirectory, SessionMark, SqliteIndex, UnitRecord
from asapo.models import StreamRef
from asapo.supervise import Service
from asapo.transport import Link, Waiter, connect
from asapo.wire.codec import decode, encode
from asapo.wire.events import (
    Beat,
    Event,
    GetNext,
    Hello,
    ListReceivers,
    ListStreams,
    Rows,
)

REF = StreamRef("bt/1", "det", "scan 1/ä")
ANSWER_S = 20.0
SESSION = b"producer session"


class Client:
    """A bare client: a link, a session, one request after the other."""

    def __init__(self, address: str, session: bytes = b"s" * 16, *, role: str = "consumer", beamtime: str = "bt/1"):
        self.link: Link = connect(address)
        self._waiter = Waiter(self.link)
        self.number = 0
        self.session = session
        self.send(Hello(role, session, beamtime))
        self.first = self.receive()

    def send(self, event: Event) -> None:
        assert self.link.send(encode(event))

    def receive(self, timeout_s: float = ANSWER_S) -> Any:
        """Return the next event that is no Beat."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            message = self.link.receive()
            if message is None:
                if not self._waiter.wait(1.0):
                    self.send(Beat())
                continue
            event = decode(message.header, len(message.payload))
            if type(event) is not Beat:
                return event
        pytest.fail(f"no answer within {timeout_s} s")

    def ask(self, kind: type[Event], **fields: Any) -> Any:
        self.number += 1
        if kind is not ListReceivers and kind is not ListStreams:
            fields = {"source": REF.source, "stream": REF.stream} | fields
        self.send(kind(self.number, **fields))  # type: ignore[call-arg]
        return self.receive()

    def next(self, group: str = "g", **fields: Any) -> Any:
        return self.ask(GetNext, group=group, **{"wait_s": 10.0, **fields})

    def ids(self, **fields: Any) -> list[int]:
        answer = self.next(**fields)
        assert type(answer) is Rows, answer
        return [row[0] for row in answer.rows]

    def close(self) -> None:
        self.link.close()


class World:
    """One core and the index it reads."""

    def __init__(self, state_dir: Path, **settings: Any) -> None:
        self.directory = IndexDirectory(state_dir)
        self.service = Service(
            "broker",
            ["broker", "--log-level", "warning"],
            {"listen": "tcp://127.0.0.1:*", "state_dir": str(state_dir), "session_timeout_s": 3.0, **settings},
            pin=lambda ready: {"listen": ready["native"]},
        )
        self.clients: list[Client] = []
        self.address: str = self.service.start()["native"]

    def client(self, session: bytes = b"s" * 16, **options: Any) -> Client:
        client = Client(self.address, session, **options)
        self.clients.append(client)
        return client

    @property
    def index(self) -> SqliteIndex:
        return self.directory.open(REF.beamtime)

    def put(self, *ids: int, closed_below: int = 0, meta: Callable[[int], str] = lambda _id: "{}", **more: Any) -> int:
        """Index messages as a receiver does and return the new head."""
        n = len(ids)
        segment = self.index.register_segment("/tier/a.seg", "r1", 1, "tier", "boot", REF)
        record = UnitRecord(
            ref=REF, ids=ids, offsets=[64 * k for k in range(n)], sizes=[8] * n, checksums=[-5] * n,
            metas=[meta(one) for one in ids], t_acq_ns=[1] * n, t_ingest_ns=2, segment=segment,
            session=SessionMark(SESSION, closed_below or ids[-1] + 1), **more,
        )  # fmt: skip
        (outcome,) = self.index.commit([record])
        assert not outcome.errors
        return outcome.head_seq

    def kill(self) -> None:
        """Kill the core and start it again on the same port."""
        process = self.service.process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.service.stop()
        self.service.start()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.service.stop()
        self.directory.close()
