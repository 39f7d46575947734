"""A Delivery whose loader is played by the test."""

import json
from pathlib import Path
from typing import Any

from asapo.delivery.leases import GroupState
from asapo.index import StreamHead
from asapo.models import SegmentInfo, StreamRef
from asapo.wire.codec import decode
from asapo.wire.events import GetNext, Rows
from asapo_broker.delivery import Delivery
from asapo_broker.feed import (
    Feed,
    GroupReady,
    Opened,
    OpenGroup,
    Tail,
)
from asapo_broker.registry import Registry
from asapo_broker.saves import Stored
from asapo_broker.sessions import Session
from asapo_broker.settings import CoreSettings
from asapo_broker.tables import Tables
from asapo_broker.tally import Tally

REF = StreamRef("bt", "det", "s")


class OneSegment:
    """An index that knows segment 1, format 1 and origin 1."""

    def segments(self, nos: list[int]) -> dict[int, SegmentInfo]:
        return {no: SegmentInfo(f"/t/{no}.seg", "r1", "boot", "tier") for no in nos}

    def formats(self, _nos: list[int]) -> dict[int, Any]:
        return {}

    def stream_refs(self, _nos: list[int]) -> dict[int, Any]:
        return {}


def row(message_id: int, seq: int, meta: dict[str, Any] | None = None) -> tuple[Any, ...]:
    return (message_id, seq, 0, 0, 1, 64, 8, 5, 1, json.dumps(meta or {}), 1, 2, 0, 0)


class World:
    """A Delivery whose loader is played by the test."""

    def __init__(self, **settings: Any) -> None:
        self.jobs: list[Any] = []
        self.sent: list[tuple[bytes, Any]] = []
        self.registry = Registry(5.0)
        self.tally = Tally()
        tables = Tables()
        tables.learn(OneSegment(), [row(1, 1)])  # type: ignore[arg-type]
        self.delivery = Delivery(
            CoreSettings(state_dir=Path(), **settings),
            load=self.jobs.append,
            reply=lambda session, header: self.sent.append((session.peer, decode(header))),
            tables=lambda _beamtime: tables,
            registry=self.registry,
            tally=self.tally,
        )
        self.seq = 0
        self.id_max = 0
        self.number = 0

    def session(self, key: bytes = b"a" * 16) -> Session:
        return Session("bt", key, key[:1], 0.0)

    def ask(self, session: Session, now_s: float = 0.0, **fields: Any) -> int:
        self.number += 1
        given: dict[str, Any] = {"source": "det", "stream": "s", "group": "g", "wait_s": 5.0} | fields
        self.delivery.request(session, GetNext(self.number, **given), now_s)
        return self.number

    def answers(self) -> list[Any]:
        found, self.sent = [event for _, event in self.sent], []
        return found

    def ids(self) -> list[int]:
        """Ids of the one answer that was sent."""
        (answer,) = self.answers()
        assert type(answer) is Rows, answer
        return [one[0] for one in answer.rows]

    def job(self, kind: type[Any]) -> Any:
        """Take the one job of a kind; looks may be asked for several times."""
        found = [job for job in self.jobs if type(job) is kind]
        self.jobs[:] = [job for job in self.jobs if type(job) is not kind]
        assert found, f"no {kind.__name__} among {self.jobs}"
        return found[0]

    @property
    def feed(self) -> Feed:
        return self.delivery.streams["bt", "det", "s"].feed

    def open(self, low: int = 1, head_seq: int = 0, head: StreamHead | None = None) -> None:
        self.feed.no = 1
        head = head or StreamHead(head_seq, 0, False, 0, "", low)
        self.delivery.take(Opened(self.feed, low, head_seq, [], head), 0.0)

    def add(self, *ids: int, watermark: int = 0, now_s: float = 0.0, last: int = 0, metas: Any = None) -> None:
        rows = [row(one, self.seq + k, metas and metas[k - 1]) for k, one in enumerate(ids, 1)]
        self.seq += len(ids)
        self.id_max = max(self.id_max, *ids, 0) if ids else self.id_max
        head = StreamHead(self.seq, self.id_max, last > 0, last, "next" if last else "", watermark or self.id_max + 1)
        self.feed.given += 1
        self.feed.loaded_seq = self.seq
        self.delivery.take(Tail(self.feed, rows, head), now_s)

    def ready(self, state: GroupState | None = None, now_s: float = 0.0) -> None:
        stored = None if state is None else Stored(state, {})
        self.delivery.take(GroupReady(self.job(OpenGroup), stored=stored), now_s)

    def reading(self, session: Session, *ids: int) -> None:
        """Open stream and group with these messages in the window, of which none was given yet."""
        request = self.ask(session, wait_s=9.0)
        self.open()
        self.ready()
        assert not self.answers()
        self.delivery.end(session, 0.0)
        assert request not in session.waiting
        self.add(*ids)
