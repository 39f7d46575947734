"""What a metadata index promises, whichever database keeps it: the records that go in, the records that come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from asapo.errors import AsapoError, WrongInput
from asapo.index.gaps import Incomplete
from asapo.models import PLAIN, Format, Origin, SegmentInfo, StreamInfo, StreamRef
from asapo.query import Query

SESSION_TIMEOUT_S: Final = 10.0
"""A producer session that was not heard of for this long is lost and holds back nobody (R7)."""
QUERY_ROW_LIMIT: Final = 100_000
"""Most rows one query returns unless the caller says otherwise."""
QUERY_TIME_LIMIT_S: Final = 10.0
"""Longest run time of one query unless the caller says otherwise."""
MAX_DECLARED_KEYS: Final = 2
"""Metadata keys of a beamtime that are indexed while data comes in (R14)."""
MAX_SORTED_KEYS: Final = 6
"""Further keys by which streams are sorted once they are finished."""


@dataclass(frozen=True, slots=True)
class SessionMark:
    """What a producer session says of itself with each put (R7)."""

    session_id: bytes
    """16 random bytes."""
    closed_below: int
    """Every id of the stream under this is acknowledged or will never be sent by the session."""
    receiver_id: str = ""
    """The receiver through which it was heard."""


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file that holds the payload of one message and nothing else."""

    path: str
    receiver_id: str
    epoch: int
    tier_uuid: str
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecord:
    """One stored wire unit as the index takes it: columns of equal length, one format.

    Raises
    ------
    WrongInput
        If the columns differ in length.
    """

    ref: StreamRef
    ids: Sequence[int]
    """A range when dense."""
    offsets: Sequence[int]
    """First byte of each payload in the segment."""
    sizes: Sequence[int]
    """Stored bytes of each payload."""
    checksums: Sequence[int]
    """xxh3_64 of each payload as a signed 64-bit integer."""
    metas: Sequence[str]
    """One JSON object as text for each message, known to be one."""
    t_acq_ns: Sequence[int]
    t_ingest_ns: int
    segment: int = 0
    """The index's number of the segment; 0 or below when the bytes are in a memory only (`models.Row`)."""
    format: Format = PLAIN
    substream: int = 0
    dataset_size: int = 0
    origins: Sequence[Origin | None] | None = None
    """The message that each was computed from; the origin's stream belongs to the same beamtime."""
    session: SessionMark | None = None
    """None when nobody waits for this unit any more (replay of a journal)."""
    begun: int | None = None
    """The last deletion that was known when the unit's segment was begun: the unit is void if its stream was deleted
    since. None: it lies in no segment, and belongs to the stream that has the name now."""
    file: OwnFile | None = None
    """Of a unit of one message: the file that its payload lies in. The index gives it a number when it takes the
    message, and refuses a message whose file belongs to another one; `segment` and `offsets` are 0 then."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        columns = (self.offsets, self.sizes, self.checksums, self.metas, self.t_acq_ns)
        if set(map(len, columns)) != {n} or (self.origins is not None and len(self.origins) != n):
            raise WrongInput(f"unit of {n} messages has columns of other lengths")
        if self.file is not None and n > 1:
            raise WrongInput(f"unit of {n} messages in file {self.file.path}: expected one message in a file")


class UnitOutcome(NamedTuple):
    """What became of one unit."""

    first_seq: int
    """Arrival number of the unit's first new message; 0 when it brought nothing new."""
    head_seq: int
    """Arrival number of the stream's newest message after this unit."""
    errors: tuple[tuple[int, AsapoError], ...] = ()
    """Refused messages: (index in the unit, DuplicateId | DuplicateFile | StreamFinished | WrongInput), ascending."""
    superseded: tuple[int, ...] = ()
    """Indices of messages that were there already with the same fingerprint at another place; those bytes are spare."""
    format_no: int = 0
    """Number under which the index knows the unit's format."""
    segment: int = 0
    """Number under which the index knows the unit's own file; 0 when it has none, or was refused."""
    void: bool = False
    """Nothing was taken: the unit lies in a segment of a stream that was deleted. It must be stored anew."""


@dataclass(frozen=True, slots=True)
class OpenedStream:
    """What a session learns when it opens a stream."""

    id_max: int
    """Highest visible id (of the substream when one was given); 0 when there is none."""
    closed_below: int
    """The mark under which the session now stands."""
    finished: bool = False
    last_id: int = 0
    next_stream: str = ""


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A segment that nobody has closed: its journal is replayed by the receiver's next epoch."""

    no: int
    path: str
    epoch: int
    ref: StreamRef


@dataclass(frozen=True, slots=True)
class Deletion:
    """A stream that was deleted; another one may have its name since."""

    no: int
    """Higher than that of every deletion before in this beamtime."""
    ref: StreamRef
    folders: tuple[str, ...]
    """Where its files lay."""
    moved: bool
    """They are out of the way of a new stream."""


class StreamHead(NamedTuple):
    """How far a stream has come; what the delivery core polls."""

    head_seq: int
    id_max: int
    finished: bool
    last_id: int
    next_stream: str
    watermark: int
    """Every id under it is visible or will never come (R7)."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a query would be answered."""

    index: str
    """`id`, or the name of the declared key, whose index narrows the messages down; empty when none does."""
    scans: bool
    """No index narrows them down: every message of the stream may be looked at."""
    rows: int
    """Most messages that are looked at."""
    rows_total: int
    """Messages of the stream."""
    sorts: bool
    """The selected messages are put in order afterwards, so that all of them are found before the first is returned."""
    plan: tuple[str, ...] = ()
    """What the database itself says of its plan."""


Clock = Callable[[], float]
"""Seconds on a clock that never steps and that all processes writing the index share."""
RowTuple = tuple[int, int, int, int, int, int, int, int, int, str, int, int, int, int]
"""A `models.Row` as it comes from the database."""


class MetadataIndex(Protocol):
    """The index of one beamtime. Safe to use from several threads; several processes may write it at once.

    Every method raises IndexUnavailable when the database does not answer (locked, full, I/O error, damaged); the call
    can be repeated then, even when it is unknown whether it took effect. No error of the database itself gets out.
    """

    beamtime: str

    # -- ingest

    def commit(self, units: Sequence[UnitRecord]) -> list[UnitOutcome]:
        """Index the units in one transaction; one bad message refuses only itself; units keep their order."""

    def register_segment(
        self, path: str, receiver_id: str, epoch: int, tier_uuid: str, boot_id: str, ref: StreamRef
    ) -> int:
        """Return the number of a segment, from 1; the same path again returns the same number."""

    def close_segment(self, no: int) -> None:
        """Note that the segment is complete and everything in it indexed."""

    def open_segments(self, receiver_id: str) -> list[OpenSegment]:
        """Return the receiver's segments that are not closed, oldest first."""

    def known_segments(self, paths: Sequence[str]) -> set[str]:
        """Return those of these paths that are registered."""

    def open_session(
        self, ref: StreamRef, session_id: bytes, substream: int, numbering: bool, receiver_id: str
    ) -> OpenedStream:
        """Open the stream for a session, creating it if need be; StreamBusy when another live session numbers it."""

    def beat(self, session_id: bytes, marks: Mapping[StreamRef, int]) -> None:
        """Keep a session alive on all its streams and raise its `closed_below` on those given."""

    def close_session(self, session_id: bytes) -> None:
        """End a session; it holds back nobody any more."""

    def finish_stream(self, ref: StreamRef, last_id: int, next_stream: str) -> None:
        """Note the end of a stream; again with the same values is fine, else WrongInput."""

    def delete_stream(
        self, ref: StreamRef, *, force: bool = False, number: int = 0, folders: Sequence[str] = ()
    ) -> Deletion:
        """Forget a stream, if a number is given only the one that has it; its name is free for a new one.

        UnknownStream when there is none; StreamBusy, unless forced, when it is not finished and a session is live on
        it. Its files lie in `folders`, and wherever segments of it are registered.
        """

    def last_deletion(self, ref: StreamRef | None = None) -> int:
        """Return the number of the newest deletion (of a stream of this name), 0 when there was none."""

    def deletions(self, after: int = 0) -> list[Deletion]:
        """Return the deletions with higher numbers, in their order."""

    def finish_deletion(self, no: int, move: Callable[[Deletion], None]) -> None:
        """Forget a deleted stream's segments and have its files moved, while nobody commits; once for each deletion."""

    def clean_deleted(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Remove what nobody can see any more of deleted streams, in short transactions; `stopped` ends it early."""

    def withdraw_segment(self, no: int) -> None:
        """Forget a segment that no message lies in."""

    def set_stream_meta(self, ref: StreamRef, text: str) -> None:
        """Set the stream's metadata (one JSON object as text), creating the stream if need be."""

    def set_beamtime_meta(self, text: str) -> None:
        """Set the beamtime's metadata (one JSON object as text)."""

    def declare_keys(self, keys: Sequence[str]) -> None:
        """Say which metadata keys (`a.b`) have a live index; replaces those declared before. At most two (R14)."""

    def declare_sorted_keys(self, keys: Sequence[str]) -> None:
        """Say by which further keys finished streams are sorted; replaces those named before. At most six."""

    def sort_finished(self, ref: StreamRef, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Prepare a finished stream for queries on all declared keys; False when there is nothing (more) to prepare.

        Works in short transactions, so it may run beside ingest; `stopped` ends it early. Answers never depend on it.
        """

    def unsorted(self) -> list[StreamRef]:
        """Return the finished streams that `sort_finished` has something to do for."""

    # -- reading

    def declared_keys(self) -> list[str]:
        """Return the keys that have a live index."""

    def sorted_keys(self) -> list[str]:
        """Return the further keys by which finished streams are sorted."""

    def stream_meta(self, ref: StreamRef) -> str:
        """Return the stream's metadata as text; UnknownStream when there is no such stream."""

    def beamtime_meta(self) -> str:
        """Return the beamtime's metadata as text."""

    def stream_no(self, ref: StreamRef) -> int | None:
        """Return the number of a stream, None when there is no such stream. Numbers never change, nor come again."""

    def stream_refs(self, nos: Iterable[int]) -> dict[int, StreamRef]:
        """Return the names of streams by number, also of such that are known only as an origin."""

    def stream_info(self, ref: StreamRef) -> StreamInfo:
        """Return what is known of a stream; UnknownStream when there is no such stream."""

    def heads(self, stream_nos: Sequence[int]) -> dict[int, StreamHead]:
        """Return the heads of these streams in one cheap look."""

    def watermark(self, stream_no: int) -> int:
        """Return the id under which everything is visible or will never come; 0 for an unknown number."""

    def streams(self, source: str | None = None, after: StreamRef | None = None, limit: int = 1000) -> list[StreamInfo]:
        """Return streams ordered by source and name, of one source or all, from the first one behind `after`."""

    def sources(self) -> list[str]:
        """Return the data sources that have a stream, ordered."""

    def segments(self, nos: Iterable[int]) -> dict[int, SegmentInfo]:
        """Return where these segments lie (without data server address: the core knows that)."""

    def formats(self, nos: Iterable[int]) -> dict[int, Format]:
        """Return the payload formats by number."""

    def rows_after_seq(self, stream_no: int, seq: int, limit: int) -> list[RowTuple]:
        """Return rows that arrived after `seq`, in order of arrival."""

    def rows_from_id(self, stream_no: int, id_from: int, id_below: int, limit: int) -> list[RowTuple]:
        """Return rows with `id_from <= id < id_below`, ordered by id and substream."""

    def row(self, stream_no: int, message_id: int, substream: int | None = None) -> RowTuple | None:
        """Return one message (of its lowest substream unless one is named), or None."""

    def last_row(self, stream_no: int) -> RowTuple | None:
        """Return the message with the highest id, of datasets only complete ones (R9), or None."""

    def query(
        self,
        stream_no: int,
        query: Query,
        *,
        after: int = 0,
        row_limit: int = QUERY_ROW_LIMIT,
        time_limit_s: float = QUERY_TIME_LIMIT_S,
    ) -> list[RowTuple]:
        """Return the rows that a query selects; DeadlineExceeded when it ran too long.

        With `after`, the arrival number of a row, only those behind that row in the query's order; WrongInput when the
        stream has no such row.
        """

    def count(self, stream_no: int, query: Query, *, time_limit_s: float = QUERY_TIME_LIMIT_S) -> int:
        """Return how many rows a query selects, at most its limit; DeadlineExceeded when it ran too long."""

    def explain(self, stream_no: int, query: Query, *, time_limit_s: float = QUERY_TIME_LIMIT_S) -> Explanation:
        """Return how a query would be answered; DeadlineExceeded when finding out took too long."""

    def absent_ids(
        self, stream_no: int, first: int, limit: int, *, time_limit_s: float = QUERY_TIME_LIMIT_S
    ) -> list[tuple[int, int]]:
        """Return the first `limit` closed ranges of ids, from `first` to the highest id, that are not there."""

    def incomplete(
        self, stream_no: int, first: int, limit: int, *, time_limit_s: float = QUERY_TIME_LIMIT_S
    ) -> list[Incomplete]:
        """Return the first `limit` datasets with ids from `first` on that are not complete."""

    def close(self) -> None:
        """Close the index; using it afterwards raises IndexUnavailable."""


def check_object_text(text: str) -> str:
    """Return `text` when it is one JSON object, else raise WrongInput."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise WrongInput(f"metadata {text[:80]!r}: expected one JSON object ({exc})") from None
    if not isinstance(value, dict):
        raise WrongInput(f"metadata {text[:80]!r}: expected one JSON object, found {type(value).__name__}")
    return text


def key_path(key: str) -> tuple[str, ...]:
    """Return the path of a metadata key as users write it.

    >>> key_path("hits.score"), key_path("meta.score")
    (('hits', 'score'), ('score',))
    """
    path = tuple(key.removeprefix("meta.").split("."))
    if not all(path):
        raise WrongInput(f"declared key {key!r}: expected names joined by dots, for example hits.score")
    return path
