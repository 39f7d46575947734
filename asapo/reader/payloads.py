"""The bytes of one message, by the cheapest way there is from here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from xxhash import xxh3_64_intdigest

from asapo.errors import ChecksumMismatch, DamagedFile, StorageError
from asapo.models import SegmentInfo
from asapo.reader.maps import SegmentMaps

Buffer = bytes | bytearray | memoryview
EMPTY: Final = memoryview(b"")


def check_payload(payload: Buffer, checksum: int, what: str = "payload") -> None:
    """Compare stored bytes with their xxh3_64.

    Raises
    ------
    ChecksumMismatch
        If they differ; fields `expected`, `found`.
    """
    found = xxh3_64_intdigest(payload)
    if found != checksum:
        raise ChecksumMismatch(
            f"{what}: checksum {found:016x}, {checksum:016x} was sent; the stored bytes were changed",
            expected=checksum,
            found=found,
        )


class PayloadReader:
    """Gets payloads: a view of the mapped file, else `pread`, else the fetcher that the caller gives. Thread-safe.

    Parameters
    ----------
    maps : SegmentMaps or None
        Where maps are kept; None makes an own set.
    verify : bool
        Check every payload against its checksum, which reads each byte once more.
    """

    def __init__(self, maps: SegmentMaps | None = None, *, verify: bool = False) -> None:
        self.maps = maps or SegmentMaps()
        self._verify = verify

    def read(
        self, segment: SegmentInfo | None, offset: int, size: int, *, checksum: int, fetch: Callable[[], Buffer]
    ) -> memoryview:
        """Return the payload as a read-only view.

        Parameters
        ----------
        segment : SegmentInfo or None
            File that holds the payload; None when it is in the receiver's memory only.
        offset, size : int
            Where it lies in the file, in bytes.
        checksum : int
            xxh3_64 of the payload.
        fetch : callable
            Gets the payload from the data server; called when the file is not to be had here.

        Raises
        ------
        DamagedFile, ChecksumMismatch, StorageError
            If the bytes are not there, not the right ones, or not as many as announced; and what `fetch` raises.
        """
        if size == 0:
            return EMPTY
        payload = self._local(segment, offset, size) if segment is not None else None
        if payload is None:
            payload = memoryview(fetch()).cast("B").toreadonly()
            if payload.nbytes != size:
                raise StorageError(f"the data server sent {payload.nbytes} bytes of a message of {size}")
        if self._verify:
            where = f"{segment.path} at {offset}" if segment is not None else "payload from memory"
            check_payload(payload, checksum, where)
        return payload

    def _local(self, segment: SegmentInfo, offset: int, size: int) -> memoryview | None:
        """Return the payload from the file on this host, None when there is no such file here."""
        if not self.maps.can_map(segment):
            return None
        try:
            return self.maps.view(segment, offset, size)
        except (FileNotFoundError, PermissionError):
            return None
        except OSError:  # no map left for this process: memory or files at their limit, or a file system without maps
            return pread_payload(segment.path, offset, size)

    def close(self) -> None:
        """Let go of all files; payloads that are still held stay valid."""
        self.maps.close()


def pread_payload(path: str, offset: int, size: int) -> memoryview | None:
    """Return a copy of `size` bytes from `offset` of a file, None when the file cannot be read here.

    Raises
    ------
    DamagedFile
        If the file ends before; fields `path`, `offset` (where it ends).
    """
    try:
        with open(path, "rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            if offset + size > end:
                raise DamagedFile(f"{path} ends at {end}, before byte {offset + size}", path=path, offset=end)
            payload = bytearray(size)
            rest = memoryview(payload)
            file.seek(offset)
            while rest.nbytes:
                done = file.readinto(rest)
                if not done:
                    at = offset + size - rest.nbytes
                    raise DamagedFile(f"{path} ends at {at} while it is read", path=path, offset=at)
                rest = rest[done:]
    except OSError:
        return None
    return memoryview(payload).toreadonly()
