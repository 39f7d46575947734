"""Metadata keys that users declare for fast queries, in the SQLite index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asapo.index import keys, sorting
from asapo.index.sqlite_base import SqliteBase
from asapo.models import StreamRef


class SqliteKeys(SqliteBase):
    """The part of the SQLite index that knows declared keys."""

    def declare_keys(self, names: Sequence[str]) -> None:
        """Say which metadata keys (`a.b`) have a live index; replaces those declared before. At most two (R14).

        Building an index over rows that are there takes about 1 s per million rows, during which nothing is committed.
        """
        with self._writing() as connection:
            keys.declare(connection, names)

    def declare_sorted_keys(self, names: Sequence[str]) -> None:
        """Say by which further keys finished streams are sorted; replaces those named before. At most six.

        Streams that are finished already are sorted by them when `sort_finished` is called for them, see `unsorted`.
        """
        with self._writing() as connection:
            keys.declare_sorted(connection, names)

    def sort_finished(self, ref: StreamRef, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Prepare a finished stream for queries on all declared keys; False when there is nothing (more) to prepare.

        1e6 messages take some seconds of one thread for each key, in transactions of about 10 ms.
        """
        no = self.stream_no(ref)
        return no is not None and sorting.build(self._database, no, stopped)

    def unsorted(self) -> list[StreamRef]:
        """Return the finished streams that `sort_finished` has something to do for."""
        with self._database.reading() as connection:
            waiting = sorting.waiting(connection)
        return list(self.stream_refs(waiting).values())

    def declared_keys(self) -> list[str]:
        """Return the keys that have a live index."""
        return [name for (name,) in self._database.read("SELECT name FROM declared_key ORDER BY no")]

    def sorted_keys(self) -> list[str]:
        """Return the further keys by which finished streams are sorted."""
        with self._database.reading() as connection:
            return keys.sorted_keys(connection)
