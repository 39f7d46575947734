"""User-declared metadata keys in the SQLite index (R14)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from asapo.errors import WrongInput
from asapo.index.interface import MAX_DECLARED_KEYS, key_path
from asapo.index.schema import RUN_BITS
from asapo.query import declared_expression

Declared = dict[tuple[str, ...], str]
"""Path of a declared key to the expression that its index is made of."""

RUN: Final = f"key >> {RUN_BITS}"
"""Number of the run of arrivals that a row belongs to: what the index of a declared key begins with."""


def declare(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Make these the declared keys; builds an index over what is there already."""
    wanted = {".".join(path): declared_expression(path) for path in map(key_path, keys)}
    if len(wanted) > MAX_DECLARED_KEYS:
        raise WrongInput(
            f"{len(wanted)} declared keys: expected at most {MAX_DECLARED_KEYS}, since each slows every insert; "
            "queries on other keys work, only slower"
        )
    present = dict(connection.execute("SELECT name, no FROM declared_key").fetchall())
    for name, no in present.items():
        if name not in wanted:
            connection.execute(f"DROP INDEX key_{no}")
            connection.execute("DELETE FROM declared_key WHERE no = ?", (no,))
    for name, expression in wanted.items():
        if name not in present:
            cursor = connection.execute("INSERT INTO declared_key(name) VALUES(?)", (name,))
            connection.execute(f"CREATE INDEX key_{cursor.lastrowid} ON message({RUN}, {expression})")


def declared(connection: sqlite3.Connection) -> Declared:
    """Return the declared keys."""
    names = connection.execute("SELECT name FROM declared_key ORDER BY no").fetchall()
    return {(path := key_path(name)): declared_expression(path) for (name,) in names}
