"""Where the answer to a query ended, as text that the client gives back to go on from there.

A cursor names the last message of the answer by its arrival number: its metadata never change, so its place in any
order is found again, whatever arrived meanwhile. A fingerprint ties the cursor to the stream and the query.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from typing import Final, NamedTuple

from asapo.errors import WrongInput
from asapo.models import StreamRef
from asapo.query import Query

VERSION: Final = 1
FINGERPRINT_BYTES: Final = 8
_LAYOUT: Final = struct.Struct(f">B{FINGERPRINT_BYTES}sQQ")


class Place(NamedTuple):
    """How far an answer came."""

    seq: int = 0
    """Arrival number of its last message; 0 before the first."""
    given: int = 0
    """Messages given so far: they count for the LIMIT of the query."""


def write(ref: StreamRef, query: Query, place: Place) -> str:
    """Return the cursor of a place."""
    return base64.urlsafe_b64encode(_LAYOUT.pack(VERSION, _fingerprint(ref, query), *place)).decode()


def read(text: str, ref: StreamRef, query: Query) -> Place:
    """Return the place that a cursor names.

    Raises
    ------
    WrongInput
        If it is no cursor, or one of another stream or query.
    """
    try:
        version, fingerprint, *place = _LAYOUT.unpack(base64.b64decode(text.encode(), altchars=b"-_", validate=True))
    except (binascii.Error, struct.error):
        version, fingerprint, place = 0, b"", []
    if version != VERSION:
        raise WrongInput(f"after {text!r:.80}: expected the cursor of an earlier answer; leave it out to begin anew")
    if fingerprint != _fingerprint(ref, query):
        raise WrongInput(
            f"after {text!r}: this cursor belongs to another query or stream than {query!s:.200} of {ref}; give the "
            "same query as before, or leave the cursor out to begin anew"
        )
    return Place(*place)


def _fingerprint(ref: StreamRef, query: Query) -> bytes:
    text = "\0".join((ref.beamtime, ref.source, ref.stream, str(query)))
    return hashlib.blake2b(text.encode(), digest_size=FINGERPRINT_BYTES).digest()
