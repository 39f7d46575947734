"""User-declared metadata keys in the SQLite index (R14)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from asapo.errors import WrongInput
from asapo.index.interface import MAX_DECLARED_KEYS, MAX_SORTED_KEYS, key_path
from asapo.index.schema import RUN_BITS
from asapo.query import declared_expression

Declared = dict[tuple[str, ...], str]
"""Path of a declared key to the expression that its index is made of."""

RUN: Final = f"key >> {RUN_BITS}"
"""Number of the run of arrivals that a row belongs to: what the index of a declared key begins with."""


def declare(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Make these the keys with a live index; builds it over what is there already."""
    wanted = checked_live(keys)
    present = dict(connection.execute("SELECT name, no FROM declared_key").fetchall())
    for name, no in present.items():
        if name not in wanted:
            connection.execute(f"DROP INDEX key_{no}")
            connection.execute("DELETE FROM declared_key WHERE no = ?", (no,))
    for name, expression in wanted.items():
        if name not in present:
            cursor = connection.execute("INSERT INTO declared_key(name) VALUES(?)", (name,))
            connection.execute(f"CREATE INDEX key_{cursor.lastrowid} ON message({RUN}, {expression})")


def declare_sorted(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Make these the further keys by which finished streams are sorted."""
    wanted = checked_sorted(keys)
    connection.execute("DELETE FROM sorted_key")
    connection.executemany("INSERT INTO sorted_key(name) VALUES(?)", [(name,) for name in wanted])


def checked_live(keys: Sequence[str]) -> dict[str, str]:
    """Return name and expression of keys that may have a live index; WrongInput tells what is the matter with one."""
    return _checked(keys, MAX_DECLARED_KEYS, "declared keys", "each slows every insert; others are searched, too")


def checked_sorted(keys: Sequence[str]) -> dict[str, str]:
    """Return name and expression of keys by which streams may be sorted, or raise WrongInput."""
    return _checked(keys, MAX_SORTED_KEYS, "sorted keys", "each is stored with every other; others are searched, too")


def _checked(keys: Sequence[str], most: int, what: str, why: str) -> dict[str, str]:
    wanted = {".".join(path): declared_expression(path) for path in map(key_path, keys)}
    if len(wanted) > most:
        raise WrongInput(f"{len(wanted)} {what}: expected at most {most}, since {why}, only slower")
    return wanted


def declared(connection: sqlite3.Connection) -> Declared:
    """Return the keys with a live index."""
    names = connection.execute("SELECT name FROM declared_key ORDER BY no").fetchall()
    return {(path := key_path(name)): declared_expression(path) for (name,) in names}


def sorted_keys(connection: sqlite3.Connection) -> list[str]:
    """Return the further keys by which finished streams are sorted."""
    return [name for (name,) in connection.execute("SELECT name FROM sorted_key ORDER BY no")]
