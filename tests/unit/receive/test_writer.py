"""What the writer thread does beside storing."""

from pathlib import Path
from typing import Any

import pytest

from asapo.metrics import Counters
from asapo.models import StreamRef
from asapo.storage.journal import Kind
from asapo.storage.store import StreamStore
from asapo.storage.tier import Tier
from asapo_receive import writer
from asapo_receive.units import Note
from asapo_receive.writer import Writer
from tests.unit.receive.test_units import a_unit


class WatchedStore:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def close_idle(self, idle_s: float) -> int:
        self.asked.append(f"close_idle {idle_s:g}")
        return 0

    def journal(self, ref: StreamRef, kind: str, fields: dict[str, object]) -> None:
        self.asked.append(f"{kind} {fields['segment']}")

    def close(self) -> None:
        self.asked.append("close")


def test_idle_segments_are_closed_also_while_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "IDLE_CHECK_S", 0.0)
    store = WatchedStore()
    stage = Writer(store, lambda _: None, Counters())  # type: ignore[arg-type]
    for _ in range(2):
        stage.submit([Note(Kind.REFUSED, StreamRef("b", "d", "s"), "/x/y.seg", {})] * writer.TOGETHER_UNITS)
    stage.submit(None)
    stage.run()
    idle, notes = "close_idle 30", ["REFUSED y.seg"] * writer.TOGETHER_UNITS
    assert store.asked == [idle, *notes, idle, *notes, "close"]


def test_a_segment_is_told_closed_behind_the_units_that_lie_in_it(tmp_path: Path) -> None:
    told: list[Any] = []
    store = StreamStore(Tier.open(tmp_path), "r1", 1, segment_bytes=1000, on_closed=lambda s: stage.closed(s))
    stage = Writer(store, told.append, Counters())
    stage.submit([a_unit([b"x" * 600], ["{}"]) for _ in range(5)])
    stage.submit(None)
    stage.run()
    units, *closed, end = told
    assert [unit.slot.segment.number for unit in units] == [1, 2, 3, 4, 5]
    assert [segment.number for segment in closed] == [1, 2, 3, 4, 5]
    assert end is None
