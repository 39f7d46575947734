"""Streams are deleted here, on a thread of its own; every receiver of the host also finishes what another one began.

The order (decision 0017): forgotten in the index, which is the deletion; its files moved out of the way of a new stream
by a rename; who asked is told; files and rows removed.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from pathlib import Path

from asapo.errors import AsapoError, IndexUnavailable, StorageError, UnknownStream, to_wire
from asapo.failpoints import failpoint
from asapo.index import IndexDirectory, MetadataIndex
from asapo.index.deletion import move_files
from asapo.index.interface import Deletion
from asapo.models import StreamRef
from asapo.storage.layout import stream_dir
from asapo.storage.slots import SegmentHandle
from asapo.storage.trash import remove_moved
from asapo.wire.events import Done, Failed
from asapo.wire.stream_events import RemoveStream

log = logging.getLogger(__name__)


class Deletions:
    """Deletes streams of one host's index, and of one tier.

    Parameters
    ----------
    answer : callable
        Takes what is to be told to the broker.
    """

    def __init__(self, directory: IndexDirectory, tier_root: Path, answer: Callable[[Done | Failed], None]) -> None:
        self._directory = directory
        self._root = tier_root
        self._answer = answer
        self._inbox: queue.SimpleQueue[RemoveStream | None] = queue.SimpleQueue()
        self._finished: dict[str, int] = {}
        """Beamtime to a deletion up to which all are finished."""
        self.submit = self._inbox.put
        """Take a request. Any thread."""

    # -- any thread -------------------------------------------------------------------------------------------------

    def finish_all(self) -> set[StreamRef]:
        """Finish what this or another receiver began; return the streams whose files are still in the way."""
        stuck: set[StreamRef] = set()
        for beamtime in self._directory.beamtimes():
            index = self._directory.open(beamtime)
            try:
                stuck |= {one.ref for one in self._finish(index)}
            except IndexUnavailable as exc:
                log.warning("deletions of streams of beamtime %s are finished later: %s", beamtime, exc)
                stuck |= {one.ref for one in index.deletions() if not one.moved}
        return stuck

    def begun(self, ref: StreamRef) -> int:
        """Return the last deletion that is known, for a segment that is about to be begun.

        A stream of this name that is being deleted is moved away first. 0 when the index is away: what is stored then
        is stored again, if the stream was ever deleted.

        Raises
        ------
        StorageError
            If files of a deleted stream are in the way and cannot be moved.
        """
        try:
            index = self._directory.find(ref.beamtime)
            if index is None:
                return 0
            last = index.last_deletion()
            waiting = self._finish(index, ref) if last != self._finished.get(ref.beamtime, 0) else []
        except AsapoError as exc:
            log.warning("deletions of streams of beamtime %s are not known now: %s", ref.beamtime, exc)
            return 0
        if any(one.ref == ref for one in waiting):
            raise StorageError(f"files of the deleted stream {ref} cannot be moved away; see the receiver's log")
        return last

    def is_void(self, segment: SegmentHandle) -> bool:
        """Say whether a segment belongs to a stream that was deleted since it was begun."""
        index = self._directory.find(segment.ref.beamtime)
        return index is not None and any(one.ref == segment.ref for one in index.deletions(segment.begun))

    def _finish(self, index: MetadataIndex, only: StreamRef | None = None) -> list[Deletion]:
        """Have the files of deleted streams (`only`: of this name) moved; return the deletions for which that failed.

        Raises
        ------
        IndexUnavailable
            If the index does not answer: then nothing is known.
        """
        found = index.deletions(self._finished.get(index.beamtime, 0))
        unmoved = [one for one in found if not one.moved]
        asked = [one for one in unmoved if only in (None, one.ref)]
        waiting = []
        for one in asked:
            try:
                index.finish_deletion(one.no, move_files)
            except IndexUnavailable:
                raise
            except StorageError as exc:
                log.warning("the files of the deleted stream %s stay where they are: %s", one.ref, exc)
                waiting.append(one)
        if found and not waiting and len(asked) == len(unmoved):
            self._finished[index.beamtime] = found[-1].no
        return waiting

    def stop(self) -> None:
        """End `run` after what it is at. Any thread."""
        self._inbox.put(None)

    # -- its own thread ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`; at first remove what an older life left behind."""
        self._clean()
        while (request := self._inbox.get()) is not None:
            try:
                self._remove(request)
            except AsapoError as exc:
                self._answer(Failed(request.request, to_wire(exc)))
            except Exception as exc:
                log.exception("deletion of %s/%s failed", request.source, request.stream)
                error = StorageError(f"unexpected error: {exc!r}; see the receiver's log")
                self._answer(Failed(request.request, to_wire(error)))
            else:
                failpoint("delete.after-finish")
                self._answer(Done(request.request))
            if self._inbox.empty():
                self._clean()

    def _remove(self, request: RemoveStream) -> None:
        ref = StreamRef(request.beamtime, request.source, request.stream)
        index = self._directory.find(ref.beamtime)
        if index is None:
            raise UnknownStream(f"no stream {ref}: nothing was deleted", source=ref.source, stream=ref.stream)
        deletion = index.delete_stream(
            ref, force=request.force, number=request.number, folders=[str(stream_dir(self._root, ref))]
        )
        log.info("stream %s is deleted (deletion %d)", ref, deletion.no)
        failpoint("delete.after-commit")
        if any(one.no == deletion.no for one in self._finish(index)):
            raise StorageError(
                f"stream {ref} is deleted, but its files could not be moved away; that is tried again before it is "
                "written to, and when a receiver starts"
            )

    def _clean(self) -> None:
        """Remove files and rows that nobody sees any more, until there is something else to do."""
        try:
            remove_moved(self._root)
            for beamtime in self._directory.beamtimes():
                self._directory.open(beamtime).clean_deleted(lambda: not self._inbox.empty())
        except AsapoError as exc:
            log.warning("rows of deleted streams stay for now: %s", exc)
        except Exception:
            log.exception("cleaning up after deleted streams failed")
