"""The metadata index: what was ingested, where it lies, and who is still sending (R6, R7, R14, R24, R33)."""

from asapo.index.directory import IndexDirectory
from asapo.index.interface import (
    Explanation,
    MetadataIndex,
    OpenedStream,
    OpenSegment,
    RowTuple,
    SessionMark,
    StreamHead,
    UnitOutcome,
    UnitRecord,
)
from asapo.index.sqlite import SqliteIndex

__all__ = [
    "Explanation",
    "IndexDirectory",
    "MetadataIndex",
    "OpenSegment",
    "OpenedStream",
    "RowTuple",
    "SessionMark",
    "SqliteIndex",
    "StreamHead",
    "UnitOutcome",
    "UnitRecord",
]
