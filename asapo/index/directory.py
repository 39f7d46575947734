"""All embedded indexes of one host: a folder with one SQLite file per beamtime."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from asapo.errors import StorageError
from asapo.hostinfo import check_memory
from asapo.index import keys
from asapo.index.schema import read_beamtime
from asapo.index.sqlite import SqliteIndex
from asapo.models import check_name
from asapo.storage.layout import encode_name

FILE_NAME: Final = "index.sqlite"


class IndexDirectory:
    """Opens the index of a beamtime, each once per process. Thread-safe.

    Parameters
    ----------
    state_dir : path
        Local folder that all receivers and the delivery core of the host share.
    declared_keys : sequence of str
        Metadata keys (`a.b`) to declare in an index that has none declared when it is opened.
    sorted_keys : sequence of str
        Further keys by which finished streams are sorted; they replace those of an index when it is opened, if any.
    settings
        Handed to every `SqliteIndex`, for example `session_timeout_s`.

    Raises
    ------
    WrongInput
        If there are too many keys, or one cannot be declared.
    """

    def __init__(
        self,
        state_dir: str | Path,
        *,
        declared_keys: Sequence[str] = (),
        sorted_keys: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.state_dir = Path(state_dir)
        self._declared_keys = keys.checked_live(declared_keys)
        self._sorted_keys = keys.checked_sorted(sorted_keys)
        self._settings = settings
        self._lock = threading.Lock()
        self._open: dict[str, SqliteIndex] = {}
        self._names: dict[Path, str] = {}
        self.lost: set[str] = set()
        """Beamtimes that must have had an index: none is begun in its place, or it would take old ids for new ones."""

    def path(self, beamtime: str) -> Path:
        """Return the file of a beamtime's index, whether it is there or not."""
        return self.state_dir / encode_name(check_name("beamtime", beamtime)) / FILE_NAME

    def open(self, beamtime: str) -> SqliteIndex:
        """Return the index of a beamtime, creating it if need be; raises what `SqliteIndex` raises."""
        index = self._open.get(beamtime)
        if index is not None:
            return index
        path = self.path(beamtime)
        with self._lock:
            index = self._open.get(beamtime)
            if index is None:
                if beamtime in self.lost:
                    self._check_lost(beamtime, path)
                check_memory(f"open the index of beamtime {beamtime}")
                index = SqliteIndex(path, beamtime, **self._settings)
                self._declare(index)
                self._open[beamtime] = index
            return index

    def _declare(self, index: SqliteIndex) -> None:
        if self._declared_keys and not index.declared_keys():
            index.declare_keys(list(self._declared_keys))
        if self._sorted_keys and index.sorted_keys() != list(self._sorted_keys):
            index.declare_sorted_keys(list(self._sorted_keys))

    def _check_lost(self, beamtime: str, path: Path) -> None:
        if not path.exists():
            raise StorageError(
                f"the index {path} of beamtime {beamtime} is gone, and the tier holds data of it: nothing is taken for "
                "this beamtime; stop the services and run asapo reindex",
                path=str(path),
            )
        self.lost.discard(beamtime)

    def find(self, beamtime: str) -> SqliteIndex | None:
        """Return the index of a beamtime, None when nobody has written one yet."""
        return self.open(beamtime) if beamtime in self._open or read_beamtime(self.path(beamtime)) else None

    def beamtimes(self) -> list[str]:
        """Return the beamtimes that have an index, ordered."""
        for path in self.state_dir.glob(f"*/{FILE_NAME}"):
            # A name never changes once it is written; before that the file is being created and asked again next time.
            if path not in self._names and (name := read_beamtime(path)):
                self._names[path] = name
        return sorted(self._names.values())

    def close(self) -> None:
        """Close all indexes."""
        with self._lock:
            for index in self._open.values():
                index.close()
            self._open.clear()
