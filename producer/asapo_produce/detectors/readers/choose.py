"""From paths to recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asapo.errors import WrongInput
from asapo_produce.detectors.readers.base import Recording
from asapo_produce.detectors.readers.euxfel import EuxfelRecording, is_run_file, is_run_folder
from asapo_produce.detectors.readers.hdf5 import Hdf5Recording
from asapo_produce.detectors.readers.images import ImagesRecording, is_image, natural_key
from asapo_produce.detectors.readers.recorded import RecordedStreams, has_journals

FORMATS: Final = ("auto", "hdf5", "euxfel", "images", "recorded")
HDF5_SUFFIXES: Final = frozenset({".h5", ".hdf5", ".hdf", ".nxs", ".nx5", ".cxi", ".he5"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """How to read what is given; each field belongs to the formats that know it."""

    format: str = "auto"
    dataset: str = ""
    """HDF5: path of the images inside the files."""
    source_name: str = ""
    """European XFEL: source or pattern of sources. Recorded streams: the source."""
    key: str = ""
    """European XFEL: key of the images."""
    verify: bool = True
    """Recorded streams: check every checksum."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise WrongInput(f"format {self.format!r}: expected one of {', '.join(FORMATS)}")


def open_recordings(paths: Sequence[str | Path], settings: ReadSettings) -> list[Recording]:
    """Return what lies at `paths`, in order: files of HDF5, run folders, folders or files of images, recorded streams.

    Image files that are given together are one recording.

    Raises
    ------
    WrongInput
        If a path does not exist, or what it is cannot be told.
    """
    found: list[Recording] = []
    images: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise WrongInput(f"path {path}: not there; give files or folders that exist", path=str(path))
        kind = settings.format if settings.format != "auto" else guess(path)
        if kind == "images" and path.is_file():
            images.append(path)
        else:
            found += _open(path, kind, settings)
    if images:
        found.append(ImagesRecording(images, name=images[0].resolve().parent.name or "images"))
    if not found:
        raise WrongInput("no paths: expected files or folders to replay")
    return found


def guess(path: Path) -> str:
    """Return the format of a file or folder by its name and what lies in it."""
    if path.is_file():
        if path.suffix.lower() in HDF5_SUFFIXES or _begins_like_hdf5(path):
            return "euxfel" if is_run_file(path) else "hdf5"
        if is_image(path):
            return "images"
        raise WrongInput(
            f"file {path}: format not recognised; expected HDF5, NeXus or CXI, TIFF, CBF or EDF; name it with --format",
            path=str(path),
        )
    if is_run_folder(path):
        return "euxfel"
    if any(is_image(each) for each in path.iterdir()):
        return "images"
    if any(each.suffix.lower() in HDF5_SUFFIXES for each in path.iterdir()):
        return "hdf5"
    if has_journals(path):
        return "recorded"
    raise WrongInput(
        f"folder {path}: nothing to replay in it; expected a European XFEL run, image files, HDF5 files, or recorded "
        "streams",
        path=str(path),
    )


def _begins_like_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _open(path: Path, kind: str, settings: ReadSettings) -> list[Any]:
    if kind == "euxfel":
        return [EuxfelRecording(path, source_name=settings.source_name, key=settings.key)]
    if kind == "recorded":
        return [RecordedStreams(path, source=settings.source_name, verify=settings.verify)]
    if kind == "hdf5":
        return [Hdf5Recording(each, dataset=settings.dataset) for each in _members(path, kind)]
    return [ImagesRecording(_members(path, kind), name=path.resolve().name)]


def _members(path: Path, kind: str) -> list[Path]:
    """Return the files of a folder in natural order, or the file itself."""
    if path.is_file():
        return [path]
    fits = is_image if kind == "images" else (lambda each: each.suffix.lower() in HDF5_SUFFIXES)
    found = sorted((each for each in path.iterdir() if each.is_file() and fits(each)), key=natural_key)
    if not found:
        raise WrongInput(f"folder {path}: no file of format {kind} in it", path=str(path))
    return found
