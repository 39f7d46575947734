"""The indexes of all beamtimes, opened when first asked for; never created here: receivers write them (R33)."""

from __future__ import annotations

import threading
from pathlib import Path

from asapo.errors import UnknownStream
from asapo.index import IndexDirectory, MetadataIndex
from asapo_broker.tables import Tables


class Indexes:
    """Open indexes and their tables; safe from any thread."""

    def __init__(self, state_dir: Path, *, session_timeout_s: float) -> None:
        self._directory = IndexDirectory(state_dir, session_timeout_s=session_timeout_s)
        self._lock = threading.Lock()
        self._tables: dict[str, Tables] = {}

    def open(self, beamtime: str) -> MetadataIndex | None:
        """Return the index of a beamtime, None when no receiver has made one yet."""
        return self._directory.find(beamtime)

    def opened(self, beamtime: str) -> MetadataIndex:
        """Return the index of a beamtime.

        Raises
        ------
        UnknownStream
            If no receiver has made one yet.
        """
        found = self.open(beamtime)
        if found is None:
            raise UnknownStream(f"beamtime {beamtime!r} holds no stream (yet)", source="", stream="")
        return found

    def tables(self, beamtime: str) -> Tables:
        """Return the tables that rows of a beamtime refer to."""
        found = self._tables.get(beamtime)
        if found is None:
            with self._lock:
                found = self._tables.setdefault(beamtime, Tables())
        return found

    def beamtimes(self) -> list[str]:
        """Return the beamtimes that have an index."""
        return self._directory.beamtimes()

    def close(self) -> None:
        """Close all."""
        self._directory.close()
