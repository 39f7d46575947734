"""Which segments a life of a receiver began: written down before each is made, so that the next life misses none.

The index learns of a segment with the first commit from it. A receiver that dies before that leaves journal records the
index was never told of; sent again, their messages would count twice on disk.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Final

from asapo.errors import StorageError
from asapo.models import StreamRef
from asapo.storage.files import FileOps, default_files, storage_error
from asapo.storage.layout import RECEIVERS_FOLDER
from asapo.storage.slots import SegmentHandle

log = logging.getLogger(__name__)

SUFFIX: Final = ".segments"


class Lifebook:
    """The list of one life, and those that earlier lives left behind. Not thread-safe."""

    def __init__(self, state_dir: Path, receiver_id: str, epoch: int, files: FileOps | None = None) -> None:
        self._files = files or default_files()
        self._folder = state_dir / RECEIVERS_FOLDER
        mine = re.compile(re.escape(receiver_id) + r"-\d+" + re.escape(SUFFIX))
        self._earlier = [path for path in sorted(self._folder.glob(f"*{SUFFIX}")) if mine.fullmatch(path.name)]
        self._file = self._files.create(self._folder / f"{receiver_id}-{epoch}{SUFFIX}", append=True)

    def left_behind(self) -> dict[str, dict[str, StreamRef]]:
        """Return the segments that earlier lives began, for each beamtime: path to stream."""
        found: dict[str, dict[str, StreamRef]] = {}
        for path in self._earlier:
            try:
                lines = path.read_bytes().splitlines()
            except OSError as exc:
                raise storage_error(exc, "read", str(path)) from exc
            for line in lines:
                try:
                    beamtime, source, stream, segment = json.loads(line)
                except ValueError:
                    continue  # the last line of a killed writer: it did not come to make that segment
                found.setdefault(beamtime, {})[segment] = StreamRef(beamtime, source, stream)
        return found

    def forget(self) -> None:
        """Remove the lists of earlier lives: what they name was looked at."""
        for path in self._earlier:
            try:
                self._files.unlink(str(path))
            except StorageError as exc:
                log.warning("%s stays: %s", path, exc)
        self._earlier = []

    def note(self, segment: SegmentHandle) -> None:
        """Write down that a segment is about to be made; raises DiskFull or StorageError."""
        ref = segment.ref
        line = json.dumps([ref.beamtime, ref.source, ref.stream, segment.path]) + "\n"
        self._files.append(self._file, line.encode())

    def close(self) -> None:
        """Close the list."""
        self._files.close(self._file)
