"""Which messages of a journal's PUTs do not count: there already, refused by the index, or deleted (R20, R26)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from asapo.storage.journal import Kind

KINDS: Final = frozenset({Kind.SUPERSEDED, Kind.REFUSED, Kind.DELETE})
"""Records that withdraw messages of an earlier PUT, in this journal or in that of another segment."""


def withdrawal(ids: Sequence[int], indices: Sequence[int], offset: int, ingest_ns: int) -> dict[str, Any]:
    """Return the fields of a record that withdraws messages of the unit at `offset`, taken in at `ingest_ns`.

    A segment may hold an id twice, so an id alone does not say which of the two is meant.
    """
    return {"ids": list(ids), "indices": list(indices), "offset": offset, "t": ingest_ns}


class Withdrawn:
    """What the records of some journals withdraw."""

    def __init__(self) -> None:
        self._units: dict[tuple[str, int, int], set[int]] = {}
        self._ids: set[tuple[str, int]] = set()

    def note(self, fields: Mapping[str, Any]) -> None:
        """Take up the fields of a record of one of `KINDS`."""
        segment = str(fields.get("segment", ""))
        if "indices" in fields:
            place = (segment, int(fields["offset"]), int(fields["t"]))
            self._units.setdefault(place, set()).update(fields["indices"])
        else:
            self._ids.update((segment, message_id) for message_id in fields.get("ids", ()))

    def __len__(self) -> int:
        """Return how many messages are withdrawn."""
        return sum(map(len, self._units.values())) + len(self._ids)

    def left_out(self, segment: str, put_fields: Mapping[str, Any], ids: Sequence[int]) -> set[int]:
        """Return the indices of a PUT's messages that do not count, those refused before storing among them."""
        gone = set(put_fields.get("skip", ()))
        gone |= self._units.get((segment, put_fields["offset"], put_fields["t"]), set())
        if self._ids:
            gone.update(index for index, message_id in enumerate(ids) if (segment, message_id) in self._ids)
        return gone
