"""Index rows as the delivery core sees them: a message is one row, a dataset is the rows of all its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from asapo.models import Row

RowTuple = tuple[Any, ...]
"""A plain tuple with the columns of `models.Row`; what the index selects is passed on as it is."""

row_id: Final[itemgetter[Any]] = itemgetter(Row._fields.index("id"))
row_seq: Final[itemgetter[Any]] = itemgetter(Row._fields.index("seq"))
row_substream: Final[itemgetter[Any]] = itemgetter(Row._fields.index("substream"))
row_dataset_size: Final[itemgetter[Any]] = itemgetter(Row._fields.index("dataset_size"))
row_meta: Final[itemgetter[Any]] = itemgetter(Row._fields.index("meta"))

ROW_BYTES: Final = 640
"""Memory of a row beside its metadata text, in bytes: the tuple, its integers, its places in lists and maps."""


class Parts(tuple[RowTuple, ...]):
    """The rows of one complete dataset, ordered by substream."""

    __slots__ = ()


Entry = RowTuple | Parts
"""What a group is given for one id."""


def entry_id(entry: Entry) -> int:
    """Return the id of a message or dataset."""
    found: int = row_id(entry[0] if type(entry) is Parts else entry)
    return found


def entry_seq(entry: Entry) -> int:
    """Return the arrival number; a dataset arrives with its last part."""
    found: int = max(map(row_seq, entry)) if type(entry) is Parts else row_seq(entry)
    return found


def entry_rows(entry: Entry) -> Sequence[RowTuple]:
    """Return the rows of an entry: one, or one per part."""
    return entry if type(entry) is Parts else (entry,)


def flatten(entries: Iterable[Entry]) -> list[RowTuple]:
    """Return the rows of all entries in their order."""
    return [row for entry in entries for row in entry_rows(entry)]


def rows_bytes(rows: Sequence[RowTuple]) -> int:
    """Return the memory that rows take, in bytes, estimated."""
    return ROW_BYTES * len(rows) + sum(map(len, map(row_meta, rows)))


def gather(parts: list[RowTuple]) -> Parts | None:
    """Return the dataset when all its parts are there, else None."""
    return Parts(sorted(parts, key=row_substream)) if len(parts) >= row_dataset_size(parts[0]) else None


def assemble(rows: Sequence[RowTuple]) -> list[Entry]:
    """Return the messages and complete datasets among `rows`; parts of incomplete datasets are left out."""
    if not any(map(row_dataset_size, rows)):
        return list(rows)
    out: list[Entry] = []
    parts: dict[int, list[RowTuple]] = {}
    for row in rows:
        if row_dataset_size(row):
            parts.setdefault(row_id(row), []).append(row)
        else:
            out.append(row)
    out.extend(found for found in map(gather, parts.values()) if found is not None)
    return out
