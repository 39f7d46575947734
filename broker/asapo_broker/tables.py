"""The tables that rows refer to by number: segments, formats and origins of one beamtime, cached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from asapo.delivery.rows import RowTuple
from asapo.index.interface import MetadataIndex
from asapo.models import Row, SegmentInfo
from asapo.wire.events import Rows

_segment: Final = itemgetter(Row._fields.index("segment"))
_format: Final = itemgetter(Row._fields.index("format"))
_origin: Final = itemgetter(Row._fields.index("origin"))


class Tables:
    """Number to contents. Filled by the threads that read the index, read by all; entries never change."""

    def __init__(self) -> None:
        self._segments: dict[int, SegmentInfo] = {}
        self._formats: dict[int, list[Any]] = {}
        self._origins: dict[int, list[str]] = {}

    def learn(self, index: MetadataIndex, rows: Sequence[RowTuple]) -> None:
        """Fetch what these rows refer to and is not known yet."""
        if missing := _unknown(map(_segment, rows), self._segments):
            self._segments.update(index.segments(missing))
        if missing := _unknown(map(_format, rows), self._formats):
            for no, found in index.formats(missing).items():
                self._formats[no] = [found.dtype, list(found.shape), found.codec]
        if missing := _unknown(map(_origin, rows), self._origins):
            for no, ref in index.stream_refs(missing).items():
                self._origins[no] = [ref.source, ref.stream]

    def answer(
        self, request: int, rows: Sequence[RowTuple], data_address: Callable[[str, str], str], **extra: Any
    ) -> Rows:
        """Return the event that carries these rows with the tables that their numbers refer to."""
        segments = {}
        for no in set(map(_segment, rows)):
            info = self._segments.get(no)
            if info is not None:
                address = data_address(info.receiver_id, info.tier_uuid)
                segments[no] = [info.path, info.receiver_id, info.boot_id, info.tier_uuid, address]
        formats = {no: self._formats[no] for no in set(map(_format, rows)) if no in self._formats}
        origins = {no: self._origins[no] for no in set(map(_origin, rows)) if no in self._origins}
        return Rows(request, rows, segments, formats, origins, **extra)  # type: ignore[arg-type]


def _unknown(numbers: Iterable[int], known: dict[int, Any]) -> list[int]:
    return [no for no in set(numbers) if no and no not in known]
