"""What user code gets: one message, its metadata and bytes looked at only when they are asked for."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, Protocol

from asapo.errors import RemoteProtocolError
from asapo.models import PLAIN, Format, Origin, Row, format_of
from asapo.storage.layout import client_path_of
from asapo.wire.events import Rows

N_COLUMNS: Final = len(Row._fields)
ROW_TYPES: Final = frozenset((list, tuple, Row))
SHOWN_META: Final = 60
"""Characters of metadata in a one-line repr."""
_dataset_size = itemgetter(Row._fields.index("dataset_size"))


class Payloads(Protocol):
    """Where the bytes of messages come from."""

    def raw(self, batch: Batch, row: Sequence[Any]) -> memoryview:
        """Return the stored bytes, read-only."""

    def array(self, raw: memoryview, form: Format) -> Any:
        """Return the array (read-only) or, for plain bytes, the bytes that `raw` holds."""


class Batch:
    """What the messages of one answer have in common."""

    __slots__ = (
        "ahead",
        "ahead_bytes",
        "asked",
        "attempts",
        "beamtime",
        "formats",
        "late",
        "origins",
        "payloads",
        "reached",
        "rows",
        "segments",
        "settled",
        "source",
        "stream",
        "windows",
    )

    def __init__(self, beamtime: str, source: str, stream: str, rows: Rows, payloads: Payloads) -> None:
        self.beamtime = beamtime
        self.source = source
        self.stream = stream
        self.payloads = payloads
        self.rows = rows.rows
        self.reached = -1
        """Index of the row whose payload was fetched last."""
        self.ahead: dict[int, Any] = {}
        """Index of a row to the request for its payload that is under way."""
        self.ahead_bytes = 0
        self.asked = 0
        """Index of the first row whose payload was not asked for ahead."""
        self.segments = rows.segments
        self.windows: dict[int, memoryview] = {}
        """Segment number to the mapped file, up to the end that it had when this answer was first read from it."""
        self.settled: set[int] = set()
        """Ids that were acknowledged or handed back."""
        self.formats: dict[int, Format] = {}
        self.origins = rows.origins
        self.attempts = rows.attempts
        self.late = frozenset(rows.late)
        try:
            for number, (dtype, shape, codec, *_) in rows.formats.items():
                self.formats[number] = format_of(dtype, tuple(shape), codec)
        except (TypeError, ValueError) as exc:
            raise RemoteProtocolError(f"the broker sent a table of formats that is none: {exc}") from exc

    def forget_ahead(self) -> None:
        """Wait no more for payloads that were asked for ahead: their data server is gone."""
        self.ahead.clear()
        self.ahead_bytes = 0


class Message:
    """One message of a stream; metadata and payload are decoded on first use and kept.

    Messages compare by identity. The payload memory belongs to the message: a mapped file, or what a data server sent.
    """

    __slots__ = ("_batch", "_data", "_meta", "_raw", "_row", "parts")

    def __init__(self, row: Sequence[Any], batch: Batch) -> None:
        self._row = row
        self._batch = batch
        self._meta: dict[str, Any] | None = None
        self._raw: memoryview | None = None
        self._data: Any = None
        self.parts: tuple[Message, ...] = ()
        """Parts of a dataset by substream, this first one among them; empty for a plain message."""

    @property
    def id(self) -> int:
        """Message id, from 1."""
        return self._row[0]  # type: ignore[no-any-return]

    @property
    def seq(self) -> int:
        """Arrival number in the stream, from 1."""
        return self._row[1]  # type: ignore[no-any-return]

    @property
    def substream(self) -> int:
        """Module of a dataset, from 1; 0 for a message that is no dataset part."""
        return self._row[2]  # type: ignore[no-any-return]

    @property
    def dataset_size(self) -> int:
        """Parts of the dataset; 0 for a message that is no dataset part."""
        return self._row[3]  # type: ignore[no-any-return]

    @property
    def complete(self) -> bool:
        """False when this is a dataset, or a part of one, and other parts are not in `parts`."""
        return len(self.parts) >= self.dataset_size

    @property
    def missing_parts(self) -> tuple[int, ...]:
        """Substreams of the dataset of which there is no part in `parts`; empty when it is complete."""
        return tuple(sorted({*range(1, self.dataset_size + 1)} - {part.substream for part in self.parts}))

    @property
    def beamtime(self) -> str:
        """Beamtime it was taken in."""
        return self._batch.beamtime

    @property
    def source(self) -> str:
        """Data source that sent it."""
        return self._batch.source

    @property
    def stream(self) -> str:
        """Stream it belongs to."""
        return self._batch.stream

    @property
    def size(self) -> int:
        """Stored bytes of the payload."""
        return self._row[6]  # type: ignore[no-any-return]

    @property
    def path(self) -> str:
        """Path that the producer gave the message's file (`send(..., path=)`); "" when it has none of its own."""
        entry = self._batch.segments.get(self._row[4])
        return client_path_of(entry[0], self.source, self.stream) if entry else ""

    @property
    def format(self) -> Format:
        """Element type, shape and compression of the payload."""
        return self._batch.formats.get(self._row[8], PLAIN)

    @property
    def meta_text(self) -> str:
        """Metadata as the producer wrote it: one JSON object as text."""
        return self._row[9]  # type: ignore[no-any-return]

    @property
    def meta(self) -> dict[str, Any]:
        """Metadata."""
        if self._meta is None:
            text = self._row[9]
            self._meta = json.loads(text) if text else {}
        return self._meta

    @property
    def acquired_ns(self) -> int:
        """Acquisition time as the producer gave it, ns since the Unix epoch."""
        return self._row[10]  # type: ignore[no-any-return]

    @property
    def stored_ns(self) -> int:
        """When the receiver took it in, ns since the Unix epoch; orders nothing."""
        return self._row[11]  # type: ignore[no-any-return]

    @property
    def origin(self) -> Origin | None:
        """The message that this one was computed from (R28)."""
        where = self._batch.origins.get(self._row[12])
        return None if where is None else Origin(where[0], where[1], self._row[13])

    @property
    def late(self) -> bool:
        """True when it arrived after its group had passed its id (R7)."""
        return self._row[0] in self._batch.late

    @property
    def attempt(self) -> int:
        """How often it was given to user code, this time included; 1 for the first time."""
        return self._batch.attempts.get(self._row[0], 1)  # type: ignore[no-any-return]

    @property
    def settled(self) -> bool:
        """True once it was acknowledged or handed back."""
        return self._row[0] in self._batch.settled

    @property
    def raw(self) -> memoryview:
        """The stored bytes, read-only, as they left the producer.

        Raises
        ------
        StorageError
            If they cannot be read; `DamagedFile` and `ChecksumMismatch` say what is wrong with them.
        TransportError
            If they come from a data server and it does not answer.
        """
        if self._raw is None:
            self._raw = self._batch.payloads.raw(self._batch, self._row)
        return self._raw

    @property
    def data(self) -> Any:
        """The payload: a read-only NumPy array of the producer's dtype and shape, or a memoryview of plain bytes.

        Raises as `raw`.
        """
        if self._data is None:
            self._data = self._batch.payloads.array(self.raw, self.format)
        return self._data

    def __repr__(self) -> str:
        text = self.meta_text
        shown = text if len(text) <= SHOWN_META else text[: SHOWN_META - 3] + "..."
        of = "" if self.complete else f" of {self.dataset_size}"
        dataset = f", {len(self.parts)}{of} parts" if self.parts else ""
        return f"<Message {self.id} of {self.source}/{self.stream}: {_payload_words(self)}{dataset}, meta {shown}>"

    def _repr_html_(self) -> str:
        """Show a table in Jupyter; everything a producer wrote is escaped."""
        facts = {"payload": _payload_words(self), **self.meta}
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(str(key))}</th><td>{html.escape(_cut(value))}</td></tr>"
            for key, value in facts.items()
        )
        title = html.escape(f"{self.beamtime}/{self.source}/{self.stream} message {self.id}")
        return f"<table><caption>{title}</caption>{cells}</table>"


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _payload_words(message: Message) -> str:
    form, nbytes = message.format, message.size
    size = (
        f"{nbytes} B"
        if nbytes < 1024
        else f"{nbytes / 1024:.1f} KiB"
        if nbytes < 2**20
        else f"{nbytes / 2**20:.1f} MiB"
    )
    if not form.dtype:
        return size
    packed = "" if form.codec == "raw" else f" ({form.codec})"
    return f"{'x'.join(map(str, form.shape))} {form.dtype.lstrip('|')}{packed}, {size}"


def messages_of(beamtime: str, source: str, stream: str, rows: Rows, payloads: Payloads) -> list[Message]:
    """Return the messages of an answer in its order; parts of one dataset become one message.

    Raises
    ------
    RemoteProtocolError
        If a row has fewer columns than every version sends.
    """
    columns = rows.rows
    if not ROW_TYPES.issuperset(map(type, columns)) or min(map(len, columns), default=N_COLUMNS) < N_COLUMNS:
        raise RemoteProtocolError(f"the broker sent a row that is not {N_COLUMNS} columns")
    batch = Batch(beamtime, source, stream, rows, payloads)
    messages = [Message(row, batch) for row in columns]
    return list(_datasets(messages)) if any(map(_dataset_size, columns)) else messages


def _datasets(messages: list[Message]) -> Iterator[Message]:
    """Put neighbours with the same id together."""
    at = 0
    while at < len(messages):
        first, end = messages[at], at + 1
        if first.dataset_size:
            while end < len(messages) and messages[end].id == first.id:
                end += 1
            first.parts = tuple(sorted(messages[at:end], key=lambda part: part.substream))
        yield first
        at = end


def settle(messages: Sequence[Message]) -> list[int]:
    """Note that messages of one answer were acknowledged or handed back; return the ids of those that were not yet."""
    if not messages:
        return []
    settled = messages[0]._batch.settled  # noqa: SLF001 - a message is ours
    ids = [message._row[0] for message in messages]  # noqa: SLF001
    if settled:
        ids = [message_id for message_id in ids if message_id not in settled]
    settled.update(ids)
    return ids


def ranges_of(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return the closed ranges that hold exactly these ids.

    >>> ranges_of([4, 1, 2, 3, 9])
    [(1, 4), (9, 9)]
    """
    if not ids:
        return []
    if ids[-1] - ids[0] + 1 == len(ids) and list(ids) == list(range(ids[0], ids[-1] + 1)):
        return [(ids[0], ids[-1])]
    ordered = sorted(set(ids))
    ranges: list[tuple[int, int]] = []
    low = last = ordered[0]
    for message_id in ordered[1:]:
        if message_id != last + 1:
            ranges.append((low, last))
            low = message_id
        last = message_id
    ranges.append((low, last))
    return ranges
