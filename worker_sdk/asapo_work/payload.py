"""Where payload bytes come from: a mapped segment on the receiver's own host, else its data server (R10, R22)."""

from __future__ import annotations

import dataclasses
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from asapo.errors import ConnectFailed, DamagedFile, RemoteProtocolError, StorageError, WrongInput
from asapo.models import Format, SegmentInfo
from asapo.reader import PayloadReader, array_of, check_payload
from asapo.storage.layout import is_segment
from asapo.wire.events import Fetch, Hello, Piece
from asapo.wire.limits import MIB
from asapo_work.link import Channel
from asapo_work.session import Call, ClientSession

if TYPE_CHECKING:
    from asapo_work.message import Batch

Access = Literal["auto", "map", "fetch"]

DIGEST_MASK: Final = 2**64 - 1
"""Rows carry the checksum as a signed integer because databases do."""
CACHED: Final = 0
"""Segment numbers up to this are those of bytes that lie in a receiver's memory only."""
MAX_PLACES: Final = 4096
"""Segments whose way is remembered; all are forgotten at once when there are more."""


AHEAD_BYTES: Final = 32 * MIB
"""Payloads asked for ahead while messages are read in their order; the data server would else idle between them."""
AHEAD_MESSAGES: Final = 64
PIECE_BYTES: Final = 64 * MIB
"""Longer payloads come in pieces: a link shows no other sign of life while one message passes."""
ASK_AGAIN_S: Final = 0.2
"""Between two questions to the broker for a data server that can be reached."""

Locate = Callable[[str, str, Sequence[Any]], Any]
"""Source, stream and row to the row's entry in the broker's present table of segments; None when it does not say."""


class _Place(NamedTuple):
    """A segment, and whether its file can be mapped here."""

    entry: Any
    """As the broker sent it, to see when it changed."""
    segment: SegmentInfo
    mappable: bool


class _Large:
    """A payload that comes in pieces."""

    __slots__ = ("deadline_s", "done", "room")

    def __init__(self, size: int, timeout_s: float) -> None:
        self.deadline_s = time.monotonic() + timeout_s
        """When the next piece must be there."""
        self.room = memoryview(mmap.mmap(-1, size))
        self.done = 0
        """Bytes that are there."""

    @property
    def piece_bytes(self) -> int:
        """Length of the next piece; 0 when all is there."""
        return min(PIECE_BYTES, len(self.room) - self.done)

    def add(self, piece: memoryview) -> None:
        """Take in the next piece."""
        self.room[self.done : self.done + len(piece)] = piece
        self.done += len(piece)


class MessagePayloads:
    """Gets the payloads of one consumer's messages. Thread-safe; a forked child makes its own links.

    Parameters
    ----------
    hello : Hello
        Greeting of the consumer; data servers get the same session and token.
    access : {"auto", "map", "fetch"}
        Map where that is possible and fetch elsewhere; or only the one.
    verify : bool
        Compare the checksum of every payload when it is read.
    timeout_s : float
        Longest wait for a data server, seconds.
    locate : Locate
        Asks the broker again where a message lies.
    """

    def __init__(self, hello: Hello, *, access: Access, verify: bool, timeout_s: float, locate: Locate) -> None:
        if access not in ("auto", "map", "fetch"):
            raise WrongInput(f"access {access!r}: expected 'auto', 'map' or 'fetch'")
        self._hello = dataclasses.replace(hello, role="reader")
        self._access = access
        self._verify = verify
        self._timeout_s = timeout_s
        self._locate = locate
        self._lock = threading.Lock()
        self._channels: dict[str, Channel] = {}
        self._places: dict[int, _Place] = {}
        self._reader = PayloadReader()
        self._pid = os.getpid()
        self._closed = False

    def raw(self, batch: Batch, row: Sequence[Any]) -> memoryview:
        """Return the stored bytes of a message, read-only; see `Message.raw` for what is raised."""
        offset, size = row[5], row[6]
        if size == 0:
            return memoryview(b"")
        window = batch.windows.get(row[4])
        raw = None if window is None else window[offset : offset + size]
        if raw is None or len(raw) != size:
            raw = self._found(batch, row)
        if self._verify:
            check_payload(raw, row[7] & DIGEST_MASK, f"{batch.source}/{batch.stream} message {row[0]}")
        return raw

    @staticmethod
    def array(raw: memoryview, form: Format) -> Any:
        """Return a read-only array for a typed payload, the bytes themselves for a plain one."""
        return array_of(raw, form) if form.dtype else raw

    def close(self) -> None:
        """End the links to data servers; mapped payloads stay readable as long as they are referred to."""
        with self._lock:
            self._closed = True
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()
        self._reader.close()

    def _found(self, batch: Batch, row: Sequence[Any]) -> memoryview:
        """Return the bytes of the first message of an answer in a segment, or of one beyond the window opened then."""
        place = self._place(batch, row)
        if place.mappable:
            offset, end = row[5], row[5] + row[6]
            try:
                window = batch.windows[row[4]] = self._reader.maps.window(place.segment, end)
            except OSError:  # gone, or cannot be mapped
                batch.windows.pop(row[4], None)
            else:
                if not is_segment(place.segment.path):  # a new stream may have a file of that name since
                    check_payload(window[offset:end], row[7] & DIGEST_MASK, place.segment.path)
                return window[offset:end]
        return self._fetched(place.segment, batch, row)

    def _place(self, batch: Batch, row: Sequence[Any]) -> _Place:
        """Return where the message lies; the answer is kept because asking the file system costs more than the rest."""
        number = row[4]
        entry = batch.segments.get(number)
        known = self._places.get(number)
        if known is not None and known.entry == entry:
            return known
        if entry is None:
            where = "in the memory of a receiver only" if number <= CACHED else f"in segment {number}"
            raise StorageError(
                f"{batch.source}/{batch.stream} message {row[0]} is {where}, and no receiver that has it is known; "
                "check that the receiver that took it in is running"
            )
        try:
            segment = SegmentInfo(*entry[:5])
        except TypeError as exc:
            raise RemoteProtocolError("the broker sent a table of segments that is none") from exc
        mappable = number > CACHED and self._access != "fetch" and self._reader.maps.can_map(segment)
        if len(self._places) >= MAX_PLACES:
            self._places.clear()
        place = self._places[number] = _Place(entry, segment, mappable)
        return place

    def _fetched(self, segment: SegmentInfo, batch: Batch, row: Sequence[Any]) -> memoryview:
        """Return the bytes from a data server; while none is reached, the broker is asked again which one has them.

        A broker that was just started knows no receiver before they register, and one that died may be replaced.
        """
        what = f"{batch.source}/{batch.stream} message {row[0]}: {segment.path or 'its memory'}"
        large = _Large(row[6], self._timeout_s) if row[6] > PIECE_BYTES else None
        deadline_s = time.monotonic() + self._timeout_s
        while self._access != "map":
            left_s = deadline_s - time.monotonic()
            if segment.data_address:
                channel = self._channel(segment.data_address)
                if large is not None:
                    if self._completed(large, what, segment.path, channel, batch, row):
                        return large.room.toreadonly()
                else:
                    call = self._request(channel, batch, row)
                    if self._answered(channel, call, deadline_s):
                        return self._content(what, segment.path, channel, call, row, row[6])
                batch.forget_ahead()
            elif left_s > 0:
                time.sleep(min(ASK_AGAIN_S, left_s))
            else:
                break
            entry = self._locate(batch.source, batch.stream, row)
            if entry is not None:
                batch.segments[row[4]] = entry
                segment = SegmentInfo(*entry[:5])
        way = "access='map' forbids to fetch it" if self._access == "map" else "no data server that has it is known"
        raise StorageError(
            f"{what} of receiver {segment.receiver_id} cannot be mapped here, and {way}; check that the file is there "
            "and that the receiver is running",
            path=segment.path,
        )

    def _completed(
        self, large: _Large, what: str, path: str, channel: Channel, batch: Batch, row: Sequence[Any]
    ) -> bool:
        """Fetch the pieces that are missing; False as soon as nobody is there who could give one."""
        while length := large.piece_bytes:
            call = channel.begin(Fetch, {**_names(batch, row), "offset": large.done, "length": length})
            if not self._answered(channel, call, large.deadline_s):
                return False
            large.add(self._content(what, path, channel, call, row, length))
            large.deadline_s = time.monotonic() + self._timeout_s
        return True

    @staticmethod
    def _answered(channel: Channel, call: Call, deadline_s: float) -> bool:
        """Wait for an answer until the deadline; False as soon as nobody is there who could give one."""
        while not channel.wait(call, min(ASK_AGAIN_S, max(0.0, deadline_s - time.monotonic()))):
            if time.monotonic() >= deadline_s:
                break
            if not channel.connected:
                channel.abandon(call)
                return False
        return True

    def _content(
        self, what: str, path: str, channel: Channel, call: Call, row: Sequence[Any], length: int
    ) -> memoryview:
        """Return the bytes of an answer, or raise what there is instead of them."""
        try:
            piece = channel.outcome(call, self._timeout_s)
        except ConnectFailed as exc:
            raise StorageError(f"{what} cannot be read here, and {exc.message}", path=path) from exc
        raw = memoryview(call.payload).cast("B").toreadonly()
        if not isinstance(piece, Piece) or piece.size != row[6] or len(raw) != length:
            raise DamagedFile(
                f"{what}: the data server at {channel.address} sent {len(raw)} bytes of "
                f"{getattr(piece, 'size', 0)}, expected {length} of {row[6]}",
                path=path,
                offset=row[5],
            )
        return raw

    @staticmethod
    def _request(channel: Channel, batch: Batch, row: Sequence[Any]) -> Call:
        """Ask for a payload; once messages are read in their order, also for those that follow in the same segment."""

        def begin(row: Sequence[Any]) -> Call:
            return channel.begin(Fetch, _names(batch, row))

        at = batch.reached + 1
        if at >= len(batch.rows) or batch.rows[at] is not row:
            batch.reached = next((i for i, one in enumerate(batch.rows) if one is row), -1)
            return begin(row)
        batch.reached = at
        call: Call | None = batch.ahead.pop(at, None)
        if call is None:
            call = begin(row)
        else:
            batch.ahead_bytes -= row[6]
        batch.asked = max(batch.asked, at + 1)
        while at > 0 and batch.asked < len(batch.rows) and len(batch.ahead) < AHEAD_MESSAGES:
            following = batch.rows[batch.asked]
            if following[4] != row[4] or batch.ahead_bytes + following[6] > AHEAD_BYTES:
                break
            if following[6]:
                batch.ahead[batch.asked] = begin(following)
                batch.ahead_bytes += following[6]
            batch.asked += 1
        return call

    def _channel(self, address: str) -> Channel:
        with self._lock:
            if self._closed:
                raise StorageError("the consumer was closed; read payloads before that, or keep `msg.data`")
            if self._pid != os.getpid():
                self._channels, self._pid = {}, os.getpid()
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = Channel(address, ClientSession(self._hello), peer="data server")
            return channel


def _names(batch: Batch, row: Sequence[Any]) -> dict[str, Any]:
    """Return the fields by which a data server knows a payload."""
    names = {"source": batch.source, "stream": batch.stream, "message_id": row[0], "substream": row[2]}
    return {**names, "segment": max(0, row[4])}
