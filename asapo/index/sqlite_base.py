"""What the parts of the SQLite index share: its file, its transactions, the names of its streams."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from asapo.errors import WrongInput
from asapo.index import ingest
from asapo.index.database import Database
from asapo.index.lookup import Lookup
from asapo.models import StreamRef


class SqliteBase:
    """One beamtime's file; `SqliteIndex` fills it in."""

    beamtime: str
    _database: Database
    _names: ingest.Names
    _refs: Lookup[StreamRef]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run the body in one transaction, the names as they are now."""
        try:
            with self._database.writing() as connection:
                self._names.refresh(connection)
                yield connection
        except BaseException:
            self._names.forget()
            raise

    def _own(self, ref: StreamRef) -> None:
        if ref.beamtime != self.beamtime:
            raise WrongInput(f"{ref} is not of beamtime {self.beamtime!r}")

    def stream_no(self, ref: StreamRef) -> int | None:
        """Return the number of a stream, None when there is no such stream."""
        rows = self._named("SELECT no FROM stream", ref)
        return int(rows[0][0]) if rows else None

    def _named(self, select: str, ref: StreamRef) -> list[Any]:
        self._own(ref)
        return self._database.read(f"{select} WHERE source = ? AND stream = ? AND known = 1", (ref.source, ref.stream))

    def stream_refs(self, nos: Iterable[int]) -> dict[int, StreamRef]:
        """Return the names of streams by number, also of such that are known only as an origin."""
        return self._refs(nos)
