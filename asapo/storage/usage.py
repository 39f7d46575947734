"""How much data a folder of a tier holds. It walks through all of it: not for threads that somebody waits for."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from asapo.storage.layout import is_segment

SEEK_DATA: Final = getattr(os, "SEEK_DATA", None)
SEEK_HOLE: Final = getattr(os, "SEEK_HOLE", None)


def data_bytes(folder: str | Path) -> int:
    """Return the bytes of all files in a folder and below; 0 when there is none.

    Open segments are longer than what was written to them, and have blocks reserved ahead: only what holds data counts
    of them, to a page. Links are not followed; what vanishes meanwhile is left out.
    """
    total = 0
    waiting = [os.fspath(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += _written_bytes(entry)
    return total


def _written_bytes(entry: os.DirEntry[str]) -> int:
    try:
        found = entry.stat(follow_symlinks=False)
        if not is_segment(entry.path) or SEEK_DATA is None or SEEK_HOLE is None:
            return found.st_size
        file = os.open(entry.path, os.O_RDONLY)
    except OSError:
        return 0
    try:
        return _extents(file, found.st_size)
    except OSError:
        return found.st_size  # this file system does not tell holes from data
    finally:
        os.close(file)


def _extents(file: int, size: int) -> int:
    """Return the bytes of a file that are no hole."""
    total = at = 0
    while at < size:
        try:
            begin = os.lseek(file, at, SEEK_DATA)  # type: ignore[arg-type]
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                break  # nothing but a hole up to the end
            raise
        at = os.lseek(file, begin, SEEK_HOLE)  # type: ignore[arg-type]
        total += at - begin
    return total
