"""Index rows as the delivery core sees them: a message is one row, a dataset is the rows of all its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from asapo.models import Row

RowTuple = tuple[Any, ...]
"""A plain tuple with the columns of `models.Row`; what the index selects is passed on as it is."""
Matches = Callable[[RowTuple], bool]
"""A filter on one row."""

row_id: Final[itemgetter[Any]] = itemgetter(Row._fields.index("id"))
row_seq: Final[itemgetter[Any]] = itemgetter(Row._fields.index("seq"))
row_substream: Final[itemgetter[Any]] = itemgetter(Row._fields.index("substream"))
row_dataset_size: Final[itemgetter[Any]] = itemgetter(Row._fields.index("dataset_size"))
row_meta: Final[itemgetter[Any]] = itemgetter(Row._fields.index("meta"))

ROW_BYTES: Final = 640
"""Memory of a row beside its metadata text, in bytes: the tuple, its integers, its places in lists and maps."""


class Parts(tuple[RowTuple, ...]):
    """The rows of one dataset, ordered by substream: all of them, or those that a group is content with."""

    __slots__ = ()


class Chunk(tuple["Entry", ...]):
    """Messages that are given to one session as a whole, ascending."""

    __slots__ = ()


Entry = RowTuple | Parts | Chunk
"""What a group is given for one id; a chunk stands for the id of its first message."""


def entry_id(entry: Entry) -> int:
    """Return the id of a message or dataset."""
    if type(entry) is Chunk:
        return entry_id(entry[0])
    found: int = row_id(entry[0] if type(entry) is Parts else entry)
    return found


def entry_members(entry: Entry) -> Sequence[Entry]:
    """Return the messages and datasets of an entry: those of a chunk, or itself."""
    return entry if type(entry) is Chunk else (entry,)


def entry_ids(entry: Entry) -> list[int]:
    """Return the ids of all messages of an entry."""
    return list(map(entry_id, entry_members(entry)))


def entry_seq(entry: Entry) -> int:
    """Return the arrival number; a dataset arrives with its last part."""
    found: int = max(map(row_seq, entry)) if type(entry) is Parts else row_seq(entry)
    return found


def entry_rows(entry: Entry) -> Sequence[RowTuple]:
    """Return the rows of an entry: one, or one per part."""
    return flatten(entry) if type(entry) is Chunk else entry if type(entry) is Parts else (entry,)


def is_incomplete(entry: Entry) -> bool:
    """Tell whether this is a dataset of which parts are missing."""
    return type(entry) is Parts and len(entry) < row_dataset_size(entry[0])


def flatten(entries: Iterable[Entry]) -> list[RowTuple]:
    """Return the rows of all entries in their order."""
    return [row for entry in entries for row in entry_rows(entry)]


def rows_bytes(rows: Sequence[RowTuple]) -> int:
    """Return the memory that rows take, in bytes, estimated."""
    return ROW_BYTES * len(rows) + sum(map(len, map(row_meta, rows)))


def gather(parts: list[RowTuple]) -> Parts | None:
    """Return the dataset when all its parts are there, else None."""
    return Parts(sorted(parts, key=row_substream)) if len(parts) >= row_dataset_size(parts[0]) else None


def assemble(rows: Sequence[RowTuple], *, incomplete: bool = False) -> list[Entry]:
    """Return the messages and complete datasets among `rows`, and the `incomplete` ones only when told to."""
    if not any(map(row_dataset_size, rows)):
        return list(rows)
    out: list[Entry] = []
    parts: dict[int, list[RowTuple]] = {}
    for row in rows:
        if row_dataset_size(row):
            parts.setdefault(row_id(row), []).append(row)
        else:
            out.append(row)
    for some in parts.values():
        found = Parts(sorted(some, key=row_substream)) if incomplete else gather(some)
        if found is not None:
            out.append(found)
    return out
