"""SQLite indexes that are closed in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asapo.index import (
    SqliteIndex,
)
from tests.contract.index_units import TIMEOUT_S, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "index.sqlite"


@pytest.fixture
def open_index(path: Path, clock: Clock) -> Iterator[Callable[..., SqliteIndex]]:
    """Return a function that opens the index; everything it opened is closed in the end."""
    opened: list[SqliteIndex] = []

    def open_one(beamtime: str = "bt", **settings: Any) -> SqliteIndex:
        index = SqliteIndex(path, beamtime, clock_s=clock, session_timeout_s=TIMEOUT_S, **settings)
        opened.append(index)
        return index

    yield open_one
    for index in opened:
        index.close()
