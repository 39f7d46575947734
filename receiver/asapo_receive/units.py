"""What travels through the receiver: one unit of work, from the network thread to the writer, the indexer and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from operator import add, itemgetter
from typing import Any, Final, NoReturn

import xxhash

from asapo.errors import AsapoError, PayloadChanged, WrongInput, to_wire
from asapo.index.interface import OwnFile, UnitOutcome, UnitRecord
from asapo.index.records import record_from_put
from asapo.models import StreamRef
from asapo.storage.journal import Kind
from asapo.storage.store import Slot
from asapo.storage.withdrawn import withdrawal
from asapo.wire.events import Event
from asapo.wire.put import Put, aligned, pack_column, unit_offsets, unpack_column


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


PeerKey = tuple[int, bytes]
"""A link: number of the server socket, identity of the peer on it."""
ANNOUNCED_BYTES: Final = 1024 * 1024
"""Most bytes of Put headers in one announcement."""
FIRST: Final = itemgetter(0)
LAST: Final = itemgetter(-1)
_decoder: Final = json.JSONDecoder(parse_constant=_no_constant)


@dataclass(slots=True)
class Unit:
    """One Put on its way; each thread fills in what it found out."""

    peer: PeerKey
    """Who waits for the ack."""
    session: bytes
    ref: StreamRef
    put: Put
    header: bytes
    """The Put's header part, as received unless it was gathered: it becomes the journal record."""
    payload: Any
    """Buffer of the payload part; dropped as soon as it is stored."""
    nbytes: int
    received_ns: int
    wire_units: int = 1
    """Units it was gathered from, of one message each: message i came as unit `put.unit` + i."""
    slot: Slot | None = None
    file: str = ""
    """Path of the file that is this message's own."""
    void: bool = False
    """It was stored in a segment of a stream that was deleted, and must be stored anew."""
    memory_offset: int = 0
    """Place in the memory cache, for level `memory`."""
    errors: list[tuple[int, AsapoError]] = field(default_factory=list)
    """(index in the unit, error) of the messages that are refused."""

    def begin_anew(self) -> None:
        """Forget that it was stored."""
        self.slot, self.file, self.void, self.errors = None, "", False, []

    def refuse_all(self, error: AsapoError) -> None:
        """Refuse every message of the unit."""
        self.errors = [(index, error) for index in range(len(self.put.ids))]

    @property
    def alive(self) -> bool:
        """Whether any message of the unit is still to be stored."""
        return len(self.errors) < len(self.put.ids)

    def refusals(self) -> list[list[Any]]:
        """Return the errors as an Ack has them: number of the wire unit, index in it, error."""
        gathered = self.wire_units > 1
        first = self.put.unit
        return [
            [first + index, 0, to_wire(error)] if gathered else [first, index, to_wire(error)]
            for index, error in sorted(self.errors, key=FIRST)
        ]

    def bad(self) -> list[int]:
        """Return the indices of refused messages, ascending."""
        return sorted(index for index, _ in self.errors)


@dataclass(frozen=True, slots=True)
class Note:
    """Messages of a journaled unit that the index did not take, to be noted in a journal."""

    kind: Kind
    """SUPERSEDED or REFUSED."""
    ref: StreamRef
    segment: str
    """Path of the segment that has the unit."""
    fields: dict[str, Any]
    """As `asapo.storage.withdrawn.withdrawal` makes them."""


@dataclass(frozen=True, slots=True)
class Closing:
    """A segment that takes no more, on its way from the writer back to the index, behind the notes on its units.

    Once the index calls a segment closed, a next life does not look at it again: what was not noted then stays so.
    """

    beamtime: str
    index_no: int
    """Number under which the index knows the segment."""


def notes_of(
    put: Put, outcome: UnitOutcome, *, ref: StreamRef, segment: str, offset: int, ingest_ns: int, skip: Collection[int]
) -> list[Note]:
    """Return what to note of a unit; `skip` names the indices that the index was not asked about."""
    if not outcome.errors and not outcome.superseded:
        return []
    asked = [index for index in range(len(put.ids)) if index not in skip]
    found = ((Kind.SUPERSEDED, outcome.superseded), (Kind.REFUSED, [at for at, _ in outcome.errors]))
    notes = []
    for kind, places in found:
        if indices := [asked[at] for at in places]:
            fields = withdrawal([put.ids[index] for index in indices], indices, offset, ingest_ns)
            notes.append(Note(kind, ref, segment, fields))
    return notes


@dataclass(slots=True)
class Request:
    """A control request on its way (open, finish, metadata, marks, end of a session)."""

    peer: PeerKey
    session: bytes
    beamtime: str
    source: str
    event: Event
    answer: dict[str, Any] = field(default_factory=dict)
    error: AsapoError | None = None


def joined(payloads: Sequence[Any]) -> bytes:
    """Return payloads as they lie in a unit: for small ones, where a copy costs less than a buffer for each."""
    parts: list[Any] = []
    for payload in payloads:
        parts += payload, bytes(aligned(len(payload)) - len(payload))
    return b"".join(parts[:-1])


def verify(unit: Unit) -> None:
    """Check payload checksums and metadata texts; refuse the messages that fail."""
    put = unit.put
    view = memoryview(unit.payload)
    digest = xxhash.xxh3_64_intdigest
    if len(put.sizes) == 1:
        found = [digest(view)]
    else:
        starts = unit_offsets(put.sizes)
        ends = map(add, starts, put.sizes)
        found = list(map(digest, map(view.__getitem__, map(slice, starts, ends))))
    if pack_column(found) != put.checksums:
        expected = unpack_column(put.checksums)
        unit.errors += [
            (index, _changed(put.ids[index]))
            for index, (a, b) in enumerate(zip(found, expected, strict=True))
            if a != b
        ]
    if not _all_objects(put.metas):
        unit.errors += [
            (index, error)
            for index, text in enumerate(put.metas)
            if (error := meta_error(text)) is not None and index not in dict(unit.errors)
        ]


def _changed(message_id: int) -> PayloadChanged:
    return PayloadChanged(
        f"payload of message {message_id} is not what was sent: the buffer was changed before its release; "
        "use copy=True or wait for the handle's release",
        message_id=message_id,
    )


def _all_objects(metas: Any) -> bool:
    """Whether all texts together decode to as many JSON objects: one C call for a whole unit."""
    if len(metas) == 1:
        return metas[0] == "{}" or meta_error(metas[0]) is None
    whole = f"[{','.join(metas)}]"
    if "" in metas or set(map(FIRST, metas)) != {"{"} or set(map(LAST, metas)) != {"}"} or "\\u0000" in whole:
        return False  # looked at one by one
    try:
        values = _decoder.decode(whole)
    except (ValueError, RecursionError):
        return False
    return len(values) == len(metas) and set(map(type, values)) == {dict}


def meta_error(text: str) -> WrongInput | None:
    """Return what is wrong with a metadata text, or None."""
    try:
        value = _decoder.decode(text)
    except (ValueError, RecursionError) as exc:
        return WrongInput(f"metadata {text[:60]!r}: expected one JSON object as text ({exc})")
    if type(value) is not dict:
        return WrongInput(f"metadata {text[:60]!r}: expected a JSON object, found {type(value).__name__}")
    if "\\u0000" in text and _holds_nul(value):
        return WrongInput(f"metadata {text[:60]!r}: expected texts without NUL; databases cut or refuse them")
    return None


def _holds_nul(value: Any) -> bool:
    if type(value) is dict:
        return any(_holds_nul(item) for pair in value.items() for item in pair)
    if type(value) is list:
        return any(map(_holds_nul, value))
    return type(value) is str and "\0" in value


def announcements(units: Sequence[Unit], records: Sequence[UnitRecord], outcomes: Sequence[UnitOutcome]) -> list[Any]:
    """Return the units whose messages are all new, as `Announce.units` has them; none when they are many.

    Readers that wait for them need no look into the index then; more at once are read there at less cost.
    """
    if sum([len(unit.header) for unit in units]) > ANNOUNCED_BYTES:
        return []
    told = []
    for unit, record, out in zip(units, records, outcomes, strict=True):
        whole = out.first_seq and out.head_seq - out.first_seq + 1 == len(unit.put.ids)
        if whole and not (unit.put.origins or unit.file):  # origins and files go by numbers of the index
            at = [out.first_seq, record.segment, record.offsets[0], out.format_no, unit.received_ns]
            told.append([unit.ref.source, unit.ref.stream, *at, unit.header])
    return told


def record_of(unit: Unit, segment: int, receiver_id: str, file: OwnFile | None = None) -> UnitRecord:
    """Return the index's record of the messages of a unit that were stored."""
    return record_from_put(
        unit.ref, unit.put, segment=segment, base=unit.slot.offset if unit.slot else unit.memory_offset,
        skip=unit.bad(), file=file, begun=unit.slot.segment.begun if unit.slot else None,
        received_ns=unit.received_ns, session=unit.session, receiver_id=receiver_id,
    )  # fmt: skip
