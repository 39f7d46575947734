"""How the SQL of the SQLite index reaches a metadata key, and what it must know about text that is stored there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeAlias

from asapo.query.ast import MetaKey

Param: TypeAlias = int | float | str
Path: TypeAlias = tuple[str, ...]

COLUMNS: Final = {
    "_id": "id",
    "timestamp": "t_acq_ns",
    "_stored": "t_ingest_ns",
    "_size": "size",
    "_substream": "substream",
}
"""Built-in key to integer column."""

# A part that a JSON path can spell: json.dumps writes it as it is, and no quote ends it early.
PATH_PART = re.compile(r"[ !#-\[\]-~]+\Z")
_NUL: Final = r"'\u0000'"
NO_NUL: Final = rf"instr(replace(meta, '\\', ''), {_NUL}) = 0"
NO_NUL_AT_PATH: Final = rf"(instr(meta, {_NUL}) = 0 OR instr(replace(meta -> ?, '\\', ''), {_NUL}) = 0)"


def has_json_path(key: MetaKey) -> bool:
    """Tell whether a JSON path of SQLite can spell this key."""
    return all(PATH_PART.match(part) for part in key.path)


def json_path(key: MetaKey) -> str:
    """Return the JSON path of a key that has one."""
    return "$" + "".join(f'."{part}"' for part in key.path)


def odd_key(key: MetaKey) -> tuple[str, str, tuple[Param, ...]]:
    """Return table list and condition that walk to `key` by `json_each`, the alias of its last step, and the values."""
    tables = ["json_each(meta) AS j0"]
    for n in range(1, len(key.path)):
        tables.append(f"json_each(CASE j{n - 1}.type WHEN 'object' THEN j{n - 1}.value ELSE '{{}}' END) AS j{n}")
    places = " AND ".join(f"j{n}.key = ?" for n in range(len(key.path)))
    # json_each counts the elements of an array by integers, and `key = ?` never finds a number by text.
    return f"FROM {', '.join(tables)} WHERE {places}", f"j{len(key.path) - 1}", key.path


def extract(key: MetaKey, declared: Mapping[Path, str]) -> tuple[str, tuple[Param, ...]]:
    """Return the expression for the value at `key`, the one that is indexed when there is one, and its values."""
    column = declared.get(key.path)
    return ("json_extract(meta, ?)", (json_path(key),)) if column is None else (column, ())
