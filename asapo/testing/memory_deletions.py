"""Deletion of streams in the index in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from asapo.errors import StreamBusy, UnknownStream
from asapo.index.interface import Deletion, OpenSegment, UnitRecord
from asapo.models import SegmentInfo, StreamRef
from asapo.storage.layout import is_segment
from asapo.testing.memory_stream import MemorySession, MemoryStream


class MemoryDeletions:
    """The part of the index in memory that deletes streams."""

    _lock: threading.RLock
    _streams: list[MemoryStream]
    _numbers: dict[StreamRef, int]
    _segments: dict[str, int]
    _segment_infos: list[tuple[SegmentInfo, OpenSegment]]

    def __init__(self) -> None:
        self._deletions: list[Deletion] = []

    def _known(self, ref: StreamRef) -> MemoryStream:
        raise NotImplementedError

    def _is_open(self, session: MemorySession) -> bool:
        raise NotImplementedError

    def delete_stream(
        self, ref: StreamRef, *, force: bool = False, number: int = 0, folders: Sequence[str] = ()
    ) -> Deletion:
        """Forget a stream; see `MetadataIndex.delete_stream`."""
        with self._lock:
            stream = self._known(ref)
            if number not in (0, self._numbers[ref]):
                raise UnknownStream(f"no stream {ref} of number {number}", source=ref.source, stream=ref.stream)
            live = {key for (_, key), session in stream.sessions.items() if self._is_open(session)}
            if live and not (stream.finished or force):
                raise StreamBusy(f"{ref} is not finished, and {len(live)} sessions write to it", sessions=len(live))
            places = {path.rpartition("/")[0] for path in self._paths(ref) if is_segment(path)}
            found = Deletion(self.last_deletion() + 1, ref, tuple(sorted({*folders, *places})), moved=False)
            self._deletions.append(found)
            del self._numbers[ref]
            stream.known, stream.deleted = False, True
            return found

    def _paths(self, ref: StreamRef) -> list[str]:
        """Return the files of a stream; the memory of a receiver serves all streams."""
        known = [opened for _, opened in self._segment_infos if opened.path in self._segments and opened.ref == ref]
        return [opened.path for opened in known if not opened.path.startswith("memory:")]

    def last_deletion(self, ref: StreamRef | None = None) -> int:
        """Return the number of the newest deletion (of a stream of this name), 0 when there was none."""
        return max((one.no for one in self._deletions if ref in (None, one.ref)), default=0)

    def deletions(self, after: int = 0) -> list[Deletion]:
        """Return the deletions with higher numbers, in their order."""
        return [one for one in self._deletions if one.no > after]

    def finish_deletion(self, no: int, move: Callable[[Deletion], None]) -> None:
        """Forget a deleted stream's segments and have its files moved; once for each deletion."""
        with self._lock:
            for at, one in enumerate(self._deletions):
                if one.no == no and not one.moved:
                    for path in self._paths(one.ref):
                        del self._segments[path]
                    move(one)
                    self._deletions[at] = replace(one, moved=True)

    def clean_deleted(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Remove what nobody can see any more of deleted streams."""
        for stream in self._streams:
            if stream.deleted and not stopped():
                stream.rows, stream.by_id = [], {}

    def withdraw_segment(self, no: int) -> None:
        """Forget a segment that no message lies in."""
        self._segments = {path: known for path, known in self._segments.items() if known != no}

    def _void(self, unit: UnitRecord) -> bool:
        """Say whether a unit lies in a segment of a stream that was deleted since."""
        return unit.begun is not None and any(one.ref == unit.ref for one in self.deletions(unit.begun))
