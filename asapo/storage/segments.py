"""One segment file: payloads appended by one writer, read by anyone (R19)."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final

from asapo.errors import LocalProtocolError, StorageError
from asapo.storage.files import Buffer, FileOps, OpenFile, free_bytes, is_removed, size_of

logger = logging.getLogger(__name__)

MIB: Final = 1024 * 1024
ALIGN: Final = 64
"""Payloads start at multiples of this: a cache line, and enough for every dtype."""
PAGE_ALIGN: Final = 4096
PAGE_ALIGN_FROM: Final = 1_000_000
"""Units of at least this many bytes start at a page."""
AHEAD_FIRST_BYTES: Final = 64 * MIB
AHEAD_MAX_BYTES: Final = 1024 * MIB
AHEAD_AFTER_BYTES: Final = 16 * MIB
"""A stream that wrote this much is one that fills its segments."""
NEVER: Final = 2**63
AHEAD_FREE_SHARE: Final = 8
"""Nothing is preallocated when it would take more than one part in so many of the free space."""


def alignment(nbytes: int) -> int:
    """Return at which multiple a unit of `nbytes` starts."""
    return PAGE_ALIGN if nbytes >= PAGE_ALIGN_FROM else ALIGN


class Housekeeper:
    """A thread for file work that may take long and that nobody waits for: preallocation, and closing what has it.

    One thread, so the close of a file never overtakes its allocation.
    """

    def __init__(self, name: str = "asapo-storage-housekeeper") -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """Do `task` later; it handles its own storage errors."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # no more threads for this process: slower, but as good
                logger.warning("storage housekeeping is done by who writes: %s", exc)
                self._do(task)
                return
            self._thread = thread
        self._tasks.put(task)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._do(task)

    @staticmethod
    def _do(task: Callable[[], None]) -> None:
        try:
            task()
        except StorageError as exc:
            logger.warning("storage housekeeping: %s", exc)

    def close(self, timeout_s: float) -> bool:
        """Finish all tasks; False when they took longer than `timeout_s`, for example on a dead file server."""
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        self._tasks.put(None)
        thread.join(timeout_s)
        return not thread.is_alive()


class SegmentWriter:
    """Appends to a new segment file. One life: after an error or `close` nothing is written any more. Not thread-safe.

    Parameters
    ----------
    path : str
        File to create; it must not exist.
    files : FileOps
        How files are written.
    housekeeper : Housekeeper or None
        Given: disk blocks are preallocated ahead by its thread. None: the file ends in a hole, which costs nothing.
    limit_bytes : int
        Size beyond which the file is not extended ahead.
    ahead_bytes : int
        First preallocation; 0 waits until the stream has shown that it fills segments.
    """

    def __init__(
        self, path: str, files: FileOps, *, housekeeper: Housekeeper | None, limit_bytes: int, ahead_bytes: int = 0
    ) -> None:
        self._files = files
        self._file: OpenFile = files.create(path)
        self._housekeeper = housekeeper
        self._limit = limit_bytes
        self._next_ahead = ahead_bytes or AHEAD_FIRST_BYTES
        self._allocated = 0
        self._size = 0
        self._grow_at = 0
        self.path = path
        self.end = 0
        """Where the next unit may start, before alignment, in bytes."""
        self.written_end = 0
        """End of the last byte that was written whole; everything above is released at close."""
        if ahead_bytes and housekeeper is not None:
            self._allocate_ahead(housekeeper)
        else:
            self._extend()
            if housekeeper is not None:
                self._grow_at = min(self._grow_at, AHEAD_AFTER_BYTES)

    @property
    def is_removed(self) -> bool:
        """Whether the file has no name any more."""
        return self._file.fd >= 0 and is_removed(self._file.fd)

    @property
    def ahead_bytes(self) -> int:
        """Preallocation that a next segment of the same stream should begin with; 0 when this one never needed any."""
        return self._next_ahead if self._allocated else 0

    def reserve(self, nbytes: int, align: int) -> int:
        """Return the offset (bytes) of room for `nbytes`."""
        offset = (self.end + align - 1) & -align
        self.end = offset + nbytes
        if self.end >= self._grow_at:
            self._grow()
        return offset

    def give_back(self, offset: int, nbytes: int) -> None:
        """Take back a reservation that will not be written; only the last one makes room again, others stay holes."""
        if self.end == offset + nbytes:
            self.end = max(offset, self.written_end)

    def write(self, offset: int, buffers: Sequence[Buffer], reserved: int) -> int:
        """Write `buffers` at an offset where `reserved` bytes were reserved, and return their size in bytes."""
        size = size_of(buffers)
        if size > reserved:
            raise LocalProtocolError(f"{self.path}: {size} bytes at {offset} where {reserved} were reserved")
        self._files.pwrite_all(self._file, buffers, offset)
        self.written_end = max(self.written_end, offset + size)
        return size

    def _grow(self) -> None:
        """Make room ahead of the writes: with disk blocks where they are cheap, else by a hole."""
        if self._housekeeper is not None:
            self._allocate_ahead(self._housekeeper)
        else:
            self._extend()

    def _extend(self) -> None:
        """Let the file end well ahead of the writes, in a hole, so that readers need not map it anew for each unit."""
        length = min(self._next_ahead, self._limit - self.end)
        self._grow_at = NEVER
        if length <= 0:
            return
        try:
            self._files.truncate(self._file, self.end + length)
        except StorageError as exc:
            logger.debug("file not extended: %s", exc)
            return
        self._size = self._grow_at = self.end + length
        if self._housekeeper is None:
            self._next_ahead = min(2 * self._next_ahead, AHEAD_MAX_BYTES)

    def _allocate_ahead(self, housekeeper: Housekeeper) -> None:
        """Ask for the next piece of preallocated space."""
        start = max(self._allocated, self.end)
        length = min(self._next_ahead, self._limit - start)
        self._grow_at = NEVER
        if length <= 0:
            return
        self._size = self._allocated = start + length
        self._grow_at = start + length // 2
        self._next_ahead = min(2 * self._next_ahead, AHEAD_MAX_BYTES)
        housekeeper.submit(lambda: self._allocate(start, length))

    def _allocate(self, start: int, length: int) -> None:
        """Allocate a piece; on the housekeeper's thread."""
        if free_bytes(self.path) < AHEAD_FREE_SHARE * length:
            return
        try:
            self._files.allocate(self._file, start, length)
        except StorageError as exc:
            logger.debug("no preallocation: %s", exc)

    def fdatasync(self) -> None:
        """Bring all bytes to the medium."""
        self._files.fdatasync(self._file)

    def close(self) -> None:
        """Release the space above the last written byte and close the file; on the housekeeper's thread if allocated.

        Raises
        ------
        StorageError
            If the system reports at close that earlier bytes were lost.
        """
        if self._allocated and self._housekeeper is not None:
            self._housekeeper.submit(self._release)
        else:
            self._release()

    def _release(self) -> None:
        try:
            if max(self._size, self.end) > self.written_end:
                self._files.truncate(self._file, self.written_end)
        finally:
            self._files.close(self._file)
