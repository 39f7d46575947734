"""Buffers for detectors that would reuse theirs: recycled when nobody holds a view of them any more."""

from __future__ import annotations

import ctypes
import threading
import weakref
from math import prod
from typing import Any


class BufferPool:
    """Memory handed out as views; it comes back when the last view of it is gone.

    "Gone" is decided by reference counts: the caller's array, slices of it, the SDK's and the transport's hold all keep
    the memory, so a buffer in use is never handed out again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._free: dict[int, list[bytearray]] = {}
        self._free_bytes = 0
        self._lock = threading.Lock()
        self.recycled = 0
        """Buffers handed out again so far."""

    def take(self, nbytes: int) -> memoryview:
        """Return a writable view of `nbytes`; its contents are undefined."""
        with self._lock:
            free = self._free.get(nbytes)
            memory = free.pop() if free else None
            if memory is not None:
                self._free_bytes -= nbytes
                self.recycled += 1
        if memory is None:
            memory = bytearray(max(1, nbytes))
        # A ctypes array can be watched by a weak reference, and every view made from it keeps it alive.
        owner = (ctypes.c_ubyte * nbytes).from_buffer(memory)
        weakref.finalize(owner, self._put_back, memory, nbytes).atexit = False
        return memoryview(owner).cast("B")

    def take_array(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Return a writable array; its contents are undefined."""
        return as_array(self.take(prod(shape) * int(dtype[2:])), shape, dtype)

    def _put_back(self, memory: bytearray, nbytes: int) -> None:
        # May run inside `take` of the same thread (garbage collection): then the lock is taken, and the memory goes.
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._free_bytes + nbytes <= self._limit_bytes:
                self._free.setdefault(nbytes, []).append(memory)
                self._free_bytes += nbytes
        finally:
            self._lock.release()


def as_array(view: memoryview, shape: tuple[int, ...], dtype: str) -> Any:
    """Return the view as a NumPy array."""
    import numpy  # noqa: PLC0415, ICN001 - only callers that ask for arrays pay for it

    return numpy.frombuffer(view, numpy.dtype(dtype)).reshape(shape)
