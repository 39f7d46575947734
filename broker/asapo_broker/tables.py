"""The tables that rows refer to by number: segments, formats and origins of one beamtime, cached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from asapo.delivery.rows import RowTuple
from asapo.index.interface import MetadataIndex
from asapo.models import Row, SegmentInfo
from asapo.wire.events import Rows
from asapo_broker.registry import Registry

_segment: Final = itemgetter(Row._fields.index("segment"))
_format: Final = itemgetter(Row._fields.index("format"))
_origin: Final = itemgetter(Row._fields.index("origin"))


class Tables:
    """Number to contents. Filled by the threads that read the index, read by all; entries never change."""

    def __init__(self) -> None:
        self._segments: dict[int, SegmentInfo] = {}
        self._formats: dict[int, list[Any]] = {}
        self._origins: dict[int, list[str]] = {}
        self._said: tuple[int, dict[int, list[str]]] = (-1, {})
        """Segments as they are told, for one version of the registry, and replaced with it."""

    def learn(self, index: MetadataIndex, rows: Sequence[RowTuple]) -> None:
        """Fetch what these rows refer to and is not known yet."""
        # Below 0 stands for a receiver's memory, which has a number like any segment.
        if missing := _unknown(map(abs, map(_segment, rows)), self._segments):
            self._segments.update(index.segments(missing))
        if missing := _unknown(map(_format, rows), self._formats):
            for no, found in index.formats(missing).items():
                self._formats[no] = [found.dtype, list(found.shape), found.codec]
        if missing := _unknown(map(_origin, rows), self._origins):
            for no, ref in index.stream_refs(missing).items():
                self._origins[no] = [ref.source, ref.stream]

    def know(self, segment: int, format_no: int) -> bool:
        """Tell whether rows that refer to these can be answered without a look into the index."""
        return (not segment or abs(segment) in self._segments) and (not format_no or format_no in self._formats)

    def answer(self, request: int, rows: Sequence[RowTuple], registry: Registry, **extra: Any) -> Rows:
        """Return the event that carries these rows with the tables that their numbers refer to."""
        if self._said[0] != registry.version:
            self._said = (registry.version, {})
        said = self._said[1]
        segments = {}
        for no in set(map(_segment, rows)):
            told = said.get(no) or self._tell(no, registry, said)
            if told:
                segments[no] = told
        formats = {no: self._formats[no] for no in set(map(_format, rows)) if no in self._formats}
        origins = {no: self._origins[no] for no in set(map(_origin, rows)) if no in self._origins}
        return Rows(request, rows, segments, formats, origins, **extra)  # type: ignore[arg-type]

    def _tell(self, no: int, registry: Registry, said: dict[int, list[str]]) -> list[str] | None:
        info = self._segments.get(abs(no))
        if info is None:
            return None
        address = registry.data_address(info.receiver_id, info.tier_uuid)
        told = said[no] = [info.path, info.receiver_id, info.boot_id, info.tier_uuid, address]
        return told


def _unknown(numbers: Iterable[int], known: dict[int, Any]) -> list[int]:
    return [no for no in set(numbers) if no and no not in known]
