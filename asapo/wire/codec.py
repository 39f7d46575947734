"""Events to buffers and back.

A message on a link is two parts: the header (magic `aP`, major, minor, kind byte, MessagePack map) and the payload,
empty for all kinds but Put and Piece. The number of parts never varies, so nobody can send parts without end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

import msgpack

from asapo.errors import RemoteProtocolError, UnsupportedVersion, WrongInput
from asapo.wire.event import USUAL
from asapo.wire.events import KINDS, PAYLOAD_KINDS, Event
from asapo.wire.limits import MAX_HEADER_BYTES, VERSION
from asapo.wire.put import Put, put_from_map, put_from_singles, put_to_map

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"aP"
PUT_KIND: Final = 16
PREFIX: Final = struct.Struct("<2sBBB")
KIND_OF: Final[dict[type, int]] = {event: kind for kind, event in KINDS.items()}
FIELDS: Final[dict[type, tuple[str, ...]]] = {
    kind: tuple(item.name for item in fields(kind)) for kind in KINDS.values()
}
FIELD_SETS: Final = {kind: frozenset(names) for kind, names in FIELDS.items()}
PREFIXES: Final = {kind: PREFIX.pack(MAGIC, *VERSION, kind) for kind in (PUT_KIND, *KINDS)}
BLAMED: Final = (WrongInput, KeyError, TypeError, ValueError, IndexError, OverflowError)
"""What is raised while an event is built from wrong contents."""
PACKER_BYTES: Final = 64 * 1024
"""First size of a packer's buffer; one that had to grow is not kept."""
MAX_PACKERS: Final = 8
_packers: list[Any] = []


def encode(event: Event | Put) -> bytes:
    """Return the header part of an event; the payload part travels beside it, untouched."""
    if isinstance(event, Put):
        return _joined(PUT_KIND, put_to_map(event))
    kind = type(event)
    return _joined(KIND_OF[kind], dict(zip(FIELDS[kind], USUAL[kind].values(event), strict=True)))


def encode_put(header: dict[str, Any]) -> bytes:
    """Return the header part of a Put that is a map already (`asapo.wire.put.put_map`)."""
    return _joined(PUT_KIND, header)


def _joined(kind: int, body: dict[str, Any]) -> bytes:
    # A packer is kept because making one costs more than packing. Taken out of the list while it works, it is never
    # used by two threads, nor again by a finalizer that the garbage collector runs inside this call.
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(buf_size=PACKER_BYTES)
    packed: bytes = packer.pack(body)
    if len(packed) <= PACKER_BYTES and len(_packers) < MAX_PACKERS:
        _packers.append(packer)
    return PREFIXES[kind] + packed


def decode(header: Buffer, payload_bytes: int = 0) -> Event | Put:
    """Return the event of a header part that came with a payload part of `payload_bytes`.

    Raises
    ------
    UnsupportedVersion
        If the peer speaks another major version; fields `ours`, `theirs`.
    RemoteProtocolError
        If anything else is wrong with the header; names what was found and expected.
    """
    kind, body = _open(header)
    if kind == PUT_KIND:
        put: Put = _blamed(put_from_map, body, "Put")
        if put.nbytes != payload_bytes:
            raise RemoteProtocolError(f"Put announces {put.nbytes} payload bytes, {payload_bytes} came")
        return put
    event = KINDS.get(kind)
    if event is None:
        raise RemoteProtocolError(f"event kind {kind}: expected one of {sorted([PUT_KIND, *KINDS])}")
    if payload_bytes and event not in PAYLOAD_KINDS:
        raise RemoteProtocolError(f"{event.__name__} came with {payload_bytes} payload bytes: expected none")
    if body.keys() != FIELD_SETS[event]:  # a peer of another version, or one that leaves defaults out
        body = {name: body[name] for name in FIELDS[event] if name in body}
    try:
        return event(**body)
    except BLAMED as exc:
        raise _blame(exc, event.__name__) from exc


def decode_put(header: Buffer) -> Put:
    """Return the Put of a header kept in a journal, where its payload's length is known by the Put itself.

    Raises
    ------
    UnsupportedVersion, RemoteProtocolError
        As `decode`.
    """
    kind, body = _open(header)
    if kind != PUT_KIND:
        raise RemoteProtocolError(f"event kind {kind}: expected {PUT_KIND} (Put)")
    put: Put = _blamed(put_from_map, body, "Put")
    return put


def decode_singles(headers: Sequence[bytes], payload_bytes: Sequence[int]) -> Put | None:
    """Return one Put for headers of Puts that follow each other on a link and have one message each.

    A quarter of the price of decoding each (64 of 4 kB: 3 instead of 11 us). None when they do not go together or one
    of them is not as it should be: `decode` then says of each what is the matter. `payload_bytes` are the lengths of
    the payload parts.
    """
    prefix = PREFIXES[PUT_KIND]
    if not all(header.startswith(prefix) for header in headers):
        return None
    try:
        maps = [msgpack.unpackb(memoryview(header)[PREFIX.size :], strict_map_key=False) for header in headers]
        put = put_from_singles(maps)
    except Exception:  # as in `_open`, and whatever a map can have wrong
        return None
    return put if put is not None and put.sizes == payload_bytes else None


def _open(header: Buffer) -> tuple[int, dict[str, Any]]:
    """Check prefix and size, return kind and map."""
    if len(header) > MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"header of {len(header)} bytes: expected at most {MAX_HEADER_BYTES}")
    if len(header) < PREFIX.size:
        raise RemoteProtocolError(f"header of {len(header)} bytes: expected at least {PREFIX.size}")
    magic, major, minor, kind = PREFIX.unpack_from(header)
    if magic != MAGIC:
        raise RemoteProtocolError(f"header begins with {bytes(magic)!r}: expected {MAGIC!r}")
    if major != VERSION[0]:
        raise UnsupportedVersion(
            f"protocol version {major}.{minor}: this program speaks {VERSION[0]}.{VERSION[1]}; update the older side",
            ours=list(VERSION),
            theirs=[major, minor],
        )
    try:
        body = msgpack.unpackb(memoryview(header)[PREFIX.size :], strict_map_key=False)
    except Exception as exc:  # msgpack raises ValueError, its own classes, and UnicodeDecodeError among others
        raise RemoteProtocolError(f"header of event kind {kind} is not MessagePack: {type(exc).__name__}") from exc
    if type(body) is not dict:
        raise RemoteProtocolError(f"header of event kind {kind}: expected a map, found {type(body).__name__}")
    return kind, body


def _blamed(build: Any, body: dict[str, Any], name: str) -> Any:
    """Build an event; whatever is wrong with its contents is the peer's fault."""
    try:
        return build(body)
    except BLAMED as exc:
        raise _blame(exc, name) from exc


def _blame(error: Exception, name: str) -> RemoteProtocolError:
    if isinstance(error, WrongInput):
        return RemoteProtocolError(error.message, **error.fields)
    return RemoteProtocolError(f"{name}: a field is missing or of the wrong type ({error!r})")
