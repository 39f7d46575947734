"""Payloads of an offline folder: its segments, mapped; read where they cannot be mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from asapo.errors import StorageError
from asapo.models import Format, SegmentInfo
from asapo.reader import SegmentMaps, array_of, check_payload
from asapo.reader.payloads import pread_payload
from asapo_work.message import Batch

DIGEST_MASK: Final = 2**64 - 1
"""Rows carry the checksum as a signed integer because databases do."""


class FolderPayloads:
    """Gets the payloads of messages from files, wherever those were copied to. Thread-safe.

    Parameters
    ----------
    verify : bool
        Compare the checksum of every payload when it is read.
    """

    def __init__(self, *, verify: bool) -> None:
        self._verify = verify
        self._maps = SegmentMaps()

    def raw(self, batch: Batch, row: Sequence[Any]) -> memoryview:
        """Return the stored bytes of a message, read-only; see `Message.raw` for what is raised."""
        number, offset, size = row[4], row[5], row[6]
        if size == 0:
            return memoryview(b"")
        window = batch.windows.get(number)
        raw = None if window is None else window[offset : offset + size]
        if raw is None or len(raw) != size:
            raw = self._found(batch, row)
        if self._verify:
            check_payload(raw, row[7] & DIGEST_MASK, f"{batch.source}/{batch.stream} message {row[0]}")
        return raw

    def _found(self, batch: Batch, row: Sequence[Any]) -> memoryview:
        number, offset, size = row[4], row[5], row[6]
        segment = SegmentInfo(*batch.segments[number])
        try:
            window = batch.windows[number] = self._maps.window(segment, offset + size)
        except OSError:  # not there, or on a file system without maps
            batch.windows.pop(number, None)
            raw = pread_payload(segment.path, offset, size)
            if raw is None:
                raise StorageError(
                    f"{batch.source}/{batch.stream} message {row[0]}: {segment.path} cannot be read; copy segments "
                    "and journals together, or open the folder of the tier that has it, too",
                    path=segment.path,
                ) from None
            return raw
        return window[offset : offset + size]

    @staticmethod
    def array(raw: memoryview, form: Format) -> Any:
        """Return a read-only array for a typed payload, the bytes themselves for a plain one."""
        return array_of(raw, form) if form.dtype else raw

    def close(self) -> None:
        """Let go of all files; payloads that are still held stay valid."""
        self._maps.close()
