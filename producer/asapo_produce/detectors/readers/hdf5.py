"""HDF5 files: NeXus, CXI and plain ones, with external links, virtual datasets and compression."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from asapo.errors import DamagedFile, WrongInput
from asapo_produce.detectors.readers.base import Item, check_dtype
from asapo_produce.detectors.readers.h5find import check_virtual, find_images
from asapo_produce.detectors.readers.jsonsafe import json_safe

READ_BYTES: Final = 8 * 1024 * 1024
"""Bytes read at once, unless one frame or one chunk is larger."""
MOST_COLUMNS: Final = 32
"""Datasets beside the images that go into the metadata."""


class Hdf5Recording:
    """The frames of one file: the first axis counts frames, unless there are two axes only.

    Metadata of a frame: `file`, `dataset`, `frame` (from 0), and the values of one-dimensional datasets of as many
    elements that lie beside the images.
    """

    ends_itself = False

    def __init__(self, path: str | Path, *, dataset: str = "") -> None:
        self._path = Path(path)
        self._dataset = dataset
        self.name = self._path.stem

    def n_frames(self) -> int:
        """Return how many frames the file has."""
        with self._open() as file:
            return sum(_n_frames(images) for images in find_images(file, self._dataset, str(self._path)))

    def items(self, stream: str) -> Iterator[Item]:
        """Yield the frames in blocks of a few megabytes.

        Raises
        ------
        WrongInput
            If the images are not found, are no numbers, or files they lie in are missing.
        DamagedFile
            If they cannot be read.
        """
        with self._open() as file:
            for images in find_images(file, self._dataset, str(self._path)):
                check_dtype(images.dtype, f"{self._path}: {images.name}")
                check_virtual(images)
                columns = _columns(images)
                for start, frames in _blocks(images, str(self._path)):
                    metas = [self._meta(images, start + k, columns) for k in range(len(frames))]
                    yield Item(stream=stream or self.name, frames=frames, metas=metas)

    def _meta(self, images: Any, index: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: json_safe(column[index]) for name, column in columns.items()}
        return {**own, "file": self._path.name, "dataset": images.name, "frame": index}

    def _open(self) -> Any:
        return open_file(self._path)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open an HDF5 file for reading, with the compression filters that are installed.

    Raises
    ------
    WrongInput
        If it cannot be opened.
    """
    import h5py

    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401 - registers its filters
    try:
        file = h5py.File(path, "r")
    except OSError as exc:
        raise WrongInput(f"{path}: cannot be opened as HDF5 ({exc}); give an HDF5 file", path=str(path)) from exc
    with file:
        yield file


def _n_frames(images: Any) -> int:
    return int(images.shape[0]) if images.ndim > 2 else 1


def _blocks(images: Any, path: str) -> Iterator[tuple[int, Any]]:
    """Yield (first frame, array of frames): whole chunks, so that none is decompressed twice."""
    if images.ndim <= 2:
        yield 0, _read(images, (), path)[None]
        return
    n = int(images.shape[0])
    frame_bytes = max(1, images.dtype.itemsize * int(images.size) // max(1, n))
    chunk = images.chunks[0] if images.chunks else 1
    step = max(1, READ_BYTES // frame_bytes // chunk) * chunk
    if chunk * frame_bytes > 8 * READ_BYTES:
        step = max(1, READ_BYTES // frame_bytes)  # huge chunks: rather decompress twice than hold all of it
    for start in range(0, n, step):
        yield start, _read(images, slice(start, min(start + step, n)), path)


def _read(images: Any, where: Any, path: str) -> Any:
    try:
        return images[where]
    except (OSError, RuntimeError) as exc:
        name = f"{path}: {images.name}"
        if "filter" in str(exc) or "plugin" in str(exc):
            raise WrongInput(
                f"{name} is compressed with a filter that is not installed ({exc}); pip install hdf5plugin", path=path
            ) from exc
        raise DamagedFile(f"{name} cannot be read: {exc}", path=path, offset=0) from exc


def _columns(images: Any) -> dict[str, Any]:
    """Return what is known of each frame: one-dimensional datasets beside the images, one value a frame."""
    if images.ndim <= 2:
        return {}
    found: dict[str, Any] = {}
    group = images.parent
    for name in group:
        if len(found) >= MOST_COLUMNS:
            break
        try:
            each = group[name]
            shape, kind = each.shape, each.dtype.kind
        except (KeyError, OSError, AttributeError):
            continue
        if shape == images.shape[:1] and kind in "biufSO" and name not in {"file", "dataset", "frame"}:
            found[name] = each[()]
    return found
