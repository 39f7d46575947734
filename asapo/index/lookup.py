"""Small tables of the index whose rows never change: looked up by number, kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from asapo.index.database import Database

MAX_NUMBERS: Final = 30_000
"""Most numbers bound in one statement; SQLite allows 32766."""

T = TypeVar("T")


class Lookup(Generic[T]):
    """Number to record, read through `select` (which ends before WHERE and gives `no` first) and built by `build`."""

    def __init__(self, database: Database, select: str, build: Callable[[Any], T]) -> None:
        self._database = database
        self._select = select
        self._build = build
        self._known: dict[int, T] = {}

    def __call__(self, nos: Iterable[int]) -> dict[int, T]:
        """Return the records of those numbers that exist."""
        wanted = set(nos)
        missing = [no for no in wanted if no not in self._known]
        for start in range(0, len(missing), MAX_NUMBERS):
            some = missing[start : start + MAX_NUMBERS]
            for row in self._database.read(f"{self._select} WHERE no IN ({','.join('?' * len(some))})", some):
                self._known[row[0]] = self._build(row)
        return {no: self._known[no] for no in wanted if no in self._known}
