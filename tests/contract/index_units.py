"""Units, clocks and fixtures of the contract of every index."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from asapo.index.interface import MetadataIndex, OwnFile, UnitRecord
from asapo.models import StreamRef

TIMEOUT_S = 10.0
ONE, TWO = b"1" * 16, b"2" * 16

AS_THE_EVALUATOR = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
"""Each example has a stream of its own, so one index serves them all; every back end runs the same test."""


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ref(stream: str = "run1", source: str = "det") -> StreamRef:
    return StreamRef("bt", source, stream)


def unit(ids: Sequence[int], to: StreamRef | None = None, **changes: Any) -> UnitRecord:
    """Return a plausible unit; every id has its own metadata, checksum and place."""
    n = len(ids)
    values: dict[str, Any] = {
        "ref": to or ref(),
        "ids": ids,
        "offsets": [64 * i for i in range(n)],
        "sizes": [50] * n,
        "checksums": [-i for i in ids],
        "metas": [json.dumps({"n": i}) for i in ids],
        "t_acq_ns": [10 * i for i in range(n)],
        "t_ingest_ns": 77,
        "segment": 1,
    }
    return UnitRecord(**(values | changes))


def in_file(message_id: int, path: str) -> UnitRecord:
    """Return a unit of one message with a file of its own."""
    file = OwnFile(f"/t/bt/det/run1/files/{path}", "r1", 1, "u", "b")
    return unit([message_id], segment=0, offsets=[0], file=file)


def number(index: MetadataIndex, to: StreamRef | None = None) -> int:
    no = index.stream_no(to or ref())
    assert no is not None
    return no


def ids_of(rows: Sequence[Any]) -> list[int]:
    return [row[0] for row in rows]


class IndexFixtures:
    """What each part of the contract begins with."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def make(self) -> Callable[[], MetadataIndex]:
        """Return a function that gives a fresh index of beamtime `bt` on `clock` with sessions of TIMEOUT_S."""
        raise NotImplementedError

    @pytest.fixture
    def index(self, make: Callable[[], MetadataIndex]) -> Iterator[MetadataIndex]:
        index = make()
        yield index
        index.close()
