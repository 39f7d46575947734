"""Image files: TIFF, CBF, EDF and what else fabio reads, one message per image."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from asapo.errors import DamagedFile
from asapo_produce.detectors.readers.base import Item, check_dtype
from asapo_produce.detectors.readers.jsonsafe import json_safe

SUFFIXES: Final = frozenset({".tif", ".tiff", ".cbf", ".edf"})
"""Files that are taken from a folder; a trailing .gz or .bz2 does not matter."""


def natural_key(path: Path) -> tuple[Any, ...]:
    """Return what sorts img_2 before img_10.

    >>> sorted(map(Path, ["a10", "a9", "b"]), key=natural_key)[0].name
    'a9'
    """
    parts = re.split(r"(\d+)", str(path))
    return tuple((int(part), part) if place % 2 else part for place, part in enumerate(parts))


def is_image(path: Path) -> bool:
    """Whether the name of a file is that of an image file."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in {".gz", ".bz2"}:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in SUFFIXES


class ImagesRecording:
    """Image files as one stream, in the order in which they are given.

    Metadata of a frame: `file`, `frame` in the file (from 0), and `header` with the fields of the file's header.
    """

    ends_itself = False

    def __init__(self, paths: Sequence[Path], *, name: str) -> None:
        self._paths = list(paths)
        self.name = name

    def n_frames(self) -> int:
        """Return how many files there are; a file may hold more than one image."""
        return len(self._paths)

    def items(self, stream: str) -> Iterator[Item]:
        """Yield one image at a time.

        Raises
        ------
        DamagedFile
            If a file cannot be read as an image.
        WrongInput
            If its element type cannot be sent.
        """
        for path in self._paths:
            for frame, (data, header) in enumerate(_images(path)):
                check_dtype(data.dtype, str(path))
                meta = {"file": path.name, "frame": frame, "header": json_safe(header)}
                yield Item(stream=stream or self.name, frames=data[None], metas=[meta])


def _images(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield data and header of each image of a file."""
    import fabio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fabio warns of header fields that it leaves out; the pixels are whole
            image = fabio.open(str(path))
    except Exception as exc:  # fabio raises OSError, its own classes, and what its parsers happen to raise
        raise DamagedFile(f"{path} cannot be read as an image: {exc}", path=str(path), offset=0) from exc
    with image:
        for number in range(image.nframes):
            try:
                frame = image if image.nframes == 1 else image.get_frame(number)
                data, header = frame.data, dict(frame.header)
            except Exception as exc:
                raise DamagedFile(f"{path}, image {number}, cannot be read: {exc}", path=str(path), offset=0) from exc
            if data is None:
                raise DamagedFile(f"{path}, image {number}, has no pixels", path=str(path), offset=0)
            yield data, header
