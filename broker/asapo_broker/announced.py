"""Units that a receiver tells of right after their commit: index rows without a look into the index."""

from __future__ import annotations

from itertools import repeat
from typing import Any, Final, NamedTuple

from asapo.delivery.rows import RowTuple
from asapo.errors import WrongInput
from asapo.models import MAX_ID
from asapo.wire.codec import decode_put
from asapo.wire.put import unit_offsets, unpack_column

KINDS: Final = (str, str, int, int, int, int, int, bytes)
"""Types of an entry's columns."""


class AnnouncedUnit(NamedTuple):
    """One entry of `Announce.units`."""

    source: str
    stream: str
    first_seq: int
    """Arrival number of its first message; the others follow without a hole."""
    segment: int
    offset: int
    """Where its payload begins in the segment, in bytes."""
    format: int
    """The index's number of the format."""
    stored_ns: int
    header: bytes
    """Header part of its Put, as the producer sent it."""

    def rows(self) -> list[RowTuple]:
        """Return the rows that the index has for this unit, in the order of seq.

        Raises
        ------
        RemoteProtocolError
            If the header is not that of a Put.
        """
        put = decode_put(self.header)
        n, starts = len(put.ids), unit_offsets(put.sizes)
        return list(
            zip(
                put.ids,
                range(self.first_seq, self.first_seq + n),
                repeat(put.substream, n),
                repeat(put.dataset_size),
                repeat(self.segment),
                [self.offset + start for start in starts[:-1]],
                put.sizes,
                unpack_column(put.checksums, signed=True),
                repeat(self.format),
                put.metas,
                unpack_column(put.acquired_ns, signed=True),
                repeat(self.stored_ns),
                repeat(0),
                repeat(0),
                strict=False,
            )
        )


def announced(entry: Any) -> AnnouncedUnit:
    """Return one entry of `Announce.units`.

    Raises
    ------
    WrongInput
        If it is none.
    """
    if type(entry) is not list or len(entry) < len(KINDS) or tuple(map(type, entry[: len(KINDS)])) != KINDS:
        raise WrongInput(
            f"announced unit {entry!r:.80}: expected [source, stream, seq, segment, offset, format, time, header]"
        )
    unit = AnnouncedUnit(*entry[: len(KINDS)])
    if not 1 <= unit.first_seq <= MAX_ID or unit.offset < 0:
        raise WrongInput(f"announced unit at seq {unit.first_seq}, offset {unit.offset}: expected numbers from 1 and 0")
    return unit


def announced_head(entry: Any) -> tuple[str, str, int]:
    """Return one entry of `Announce.heads`; raises WrongInput if it is none."""
    if type(entry) is not list or len(entry) != 3 or tuple(map(type, entry)) != (str, str, int):
        raise WrongInput(f"announced head {entry!r:.80}: expected [source, stream, head_seq]")
    return entry[0], entry[1], entry[2]
