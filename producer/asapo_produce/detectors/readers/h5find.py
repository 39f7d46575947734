"""Finds the image data of an HDF5 file: NeXus signal, CXI, `entry/data/data*`, or the only stack of images there is."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from asapo.errors import WrongInput

MOST_CANDIDATES: Final = 20
NUMBERED: Final = re.compile(r"(.*?)_?(\d+)\Z")
USUAL: Final = ("entry/data", "entry_1/data_1", "entry/instrument/detector", "entry_1/instrument_1/detector_1")
"""Groups that hold images in NeXus and CXI files whose attributes do not say so."""


def find_images(file: Any, dataset: str, path: str) -> list[Any]:
    """Return the datasets with the frames of an open file, to be read one after the other.

    Parameters
    ----------
    file : h5py.File
        The open file.
    dataset : str
        Path inside the file as the user gave it; empty: find it.
    path : str
        The file's name, for messages.

    Raises
    ------
    WrongInput
        If there is no such dataset, or the choice is not clear; names the candidates.
    """
    if dataset:
        return _named(file, dataset, path)
    for group in _signal_groups(file):
        found = _of_group(group)
        if found:
            return found
    for name in USUAL:
        group = _get(file, name)
        found = _of_group(group) if _is_group(group) else []
        if found:
            return found
    stacks = [found for found in _datasets(file) if found.ndim >= 3]
    if len(stacks) == 1:
        return stacks
    raise WrongInput(
        f"{path}: {'no image data found' if not stacks else 'more than one stack of images'}; name it with --dataset, "
        f"one of: {_candidates(file)}",
        path=path,
    )


def _named(file: Any, dataset: str, path: str) -> list[Any]:
    found = _get(file, dataset)
    if _is_group(found):
        inside = _of_group(found)
        if inside:
            return inside
    elif found is not None and _is_numeric(found):
        return [found]
    state = "not there" if found is None else "a group without images" if _is_group(found) else "no array of numbers"
    raise WrongInput(f"{path}: dataset {dataset!r} is {state}; expected one of: {_candidates(file)}", path=path)


def _signal_groups(file: Any) -> Iterator[Any]:
    """Yield groups that say they hold the data: the NeXus default first, then every NXdata."""
    group = file
    for _ in range(8):
        name = _text(group.attrs.get("default"))
        child = _get(group, name) if name else None
        if not _is_group(child):
            break
        group = child
    if group is not file:
        yield group
    for entry in _children(file):
        if not _is_group(entry):
            continue
        for child in _children(entry):
            if _is_group(child) and _text(child.attrs.get("NX_class")) == "NXdata":
                yield child


def _of_group(group: Any) -> list[Any]:
    """Return the images of a group: numbered parts, the signal, the dataset marked as signal, or `data`."""
    signal = _text(group.attrs.get("signal"))
    stem = "data" if not signal else (found[1] if (found := NUMBERED.match(signal)) else signal)
    if not signal or signal != stem or signal not in group:
        parts = _numbered(group, stem)
        if parts:
            return parts
    name = signal or "data"
    chosen = _get(group, name)
    if chosen is None and name in list(group):
        raise _broken(group, [name])
    if chosen is None and not signal:
        marked = [each for each in _children(group) if not _is_group(each) and _text(each.attrs.get("signal")) == "1"]
        chosen = marked[0] if marked else None
    usable = chosen is not None and not _is_group(chosen) and _is_numeric(chosen) and chosen.ndim >= 2
    return [chosen] if usable else []


def _numbered(group: Any, stem: str) -> list[Any]:
    """Return datasets such as data_000001, data_000002, usually links to files of their own, in order."""
    pattern = re.compile(rf"{re.escape(stem)}_(\d+)\Z")
    names = sorted((int(found[1]), name) for name in group if (found := pattern.match(name)))
    parts = [_get(group, name) for _, name in names]
    missing = [name for (_, name), part in zip(names, parts, strict=True) if part is None]
    if missing:
        raise _broken(group, missing)
    return [part for part in parts if not _is_group(part) and _is_numeric(part) and part.ndim >= 2]


def _broken(group: Any, names: list[str]) -> WrongInput:
    """Return the error for links to what is not there."""
    links = [group.get(name, getlink=True) for name in names]
    targets = sorted({str(getattr(link, "filename", "") or getattr(link, "path", link)) for link in links})
    return WrongInput(
        f"{group.file.filename}: {group.name} links to what is not there: {', '.join(targets[:5])}; "
        "put the linked files beside it",
        path=group.file.filename,
    )


def check_virtual(dataset: Any) -> None:
    """Raise WrongInput when a source of a virtual dataset is missing: HDF5 would read fill values and say nothing."""
    if not dataset.is_virtual:
        return
    home = Path(dataset.file.filename).parent
    names = {(source.file_name, source.dset_name) for source in dataset.virtual_sources() if source.file_name != "."}
    missing = sorted(f"{file_name}:{name}" for file_name, name in names if not _source_exists(home, file_name, name))
    if missing:
        raise WrongInput(
            f"{dataset.file.filename}: virtual dataset {dataset.name} needs {len(missing)} sources that are not there: "
            f"{', '.join(missing[:5])}; put the files beside it",
            path=dataset.file.filename,
        )


def _source_exists(home: Path, file_name: str, name: str) -> bool:
    """Look where HDF5 looks: beside the file, an absolute path that moved by its last part, then from here."""
    import h5py

    named = Path(file_name)
    for place in (home / named, *([home / named.name] if named.is_absolute() else []), named):
        if "%b" in file_name or "%b" in name:  # a numbered series, open at its end
            if glob.glob(glob.escape(str(place)).replace("%b", "*")):
                return True
        elif place.is_file():
            try:
                with h5py.File(place, "r") as file:
                    return name in file
            except OSError:
                return False
    return False


def _datasets(file: Any) -> list[Any]:
    """Return all numeric datasets with at least two axes, links into other files not followed."""
    import h5py

    found: list[Any] = []

    def visit(name: str, each: Any) -> None:
        if isinstance(each, h5py.Dataset) and each.ndim >= 2 and _is_numeric(each):
            found.append(each)

    file.visititems(visit)
    return found


def _candidates(file: Any) -> str:
    found = [f"{each.name} {each.shape} {each.dtype}" for each in _datasets(file)]
    more = f" and {len(found) - MOST_CANDIDATES} more" if len(found) > MOST_CANDIDATES else ""
    return ("; ".join(found[:MOST_CANDIDATES]) or "(no array with two axes or more in the file)") + more


def _get(group: Any, name: str) -> Any:
    """Return a member, None when it is not there or is a link to nowhere."""
    try:
        return group[name]
    except (KeyError, OSError, ValueError):
        return None


def _children(group: Any) -> list[Any]:
    return [child for name in group if (child := _get(group, name)) is not None]


def _is_group(thing: Any) -> bool:
    return thing is not None and not hasattr(thing, "dtype") and hasattr(thing, "keys")


def _is_numeric(dataset: Any) -> bool:
    dtype = getattr(dataset, "dtype", None)
    return dtype is not None and dtype.kind in "biufc" and dataset.shape is not None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "ravel") and getattr(value, "size", 0) == 1:
        return _text(value.ravel()[0])
    return "" if value is None else str(value)
