"""European XFEL runs, read with EXtra-data: one message per pulse, one wire unit per train (R4)."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from asapo.errors import WrongInput
from asapo_produce.detectors.readers.base import Item, check_dtype

IMAGE_KEYS: Final = ("image.data", "data.adc", "data.image.pixels", "data.image.data")
"""Keys of images: AGIPD, LPD and DSSC; Jungfrau; cameras."""
RUN_FILE: Final = re.compile(r"(RAW|CORR|PROC)-R\d+-.+-S\d+\.h5\Z")
MODULE: Final = re.compile(r"/(?:DET|CORR)/(?:[A-Za-z]*?)(\d+)(?:CH\d+)?(?::|\Z)")
NO_TIME: Final = np.iinfo(np.int64).min


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds the files of a European XFEL run."""
    return any(RUN_FILE.match(path.name) for path in folder.glob("*.h5"))


def is_run_file(path: Path) -> bool:
    """Whether a file is one of a European XFEL run."""
    return RUN_FILE.match(path.name) is not None


@dataclass(frozen=True, slots=True)
class _Part:
    """What one module has of one train."""

    pulses: NDArray[np.uint64]
    """Pulse ids, or places in the train where the source has none."""
    cells: NDArray[np.uint64] | None
    frames: NDArray[Any]


class EuxfelRecording:
    """A run folder, or one file of it.

    Parameters
    ----------
    path : path
        Run folder or file.
    source_name : str
        Source, or a pattern such as `*/DET/*CH0:xtdf` for several modules, which are stacked in the order of their
        numbers. Empty: the modules of the only detector, or the only camera.
    key : str
        Key of the images; empty: the first usual one that the sources have.

    Notes
    -----
    Metadata of a pulse: `train_id`, `pulse_id` and `cell_id` as far as the source has them, and `missing_modules` where
    a module has nothing for this pulse: its pixels are 0 (NaN for floats) then. An axis of length 1 between pulses and
    pixels, as in raw files, is left out.
    """

    ends_itself = False

    def __init__(self, path: str | Path, *, source_name: str = "", key: str = "") -> None:
        self._path = Path(path)
        self._wanted = source_name
        self._key = key
        self.name = self._path.stem if self._path.is_file() else self._path.resolve().name

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """Open all files; EXtra-data's own way leaves out files that it cannot open, and may write into the folder."""
        from extra_data.file_access import FileAccess
        from extra_data.reader import DataCollection

        files = []
        for path in self._files():
            try:
                files.append(FileAccess(str(path)))
            except Exception as exc:  # OSError, KeyError and EXtra-data's own classes, whatever is wrong with the file
                raise WrongInput(
                    f"{path}: no file of a European XFEL run ({exc}); leave it out", path=str(path)
                ) from exc
        with DataCollection(files, ctx_closes=True, is_single_run=True) as run:
            yield run

    def _files(self) -> list[Path]:
        if self._path.is_file():
            return [self._path]
        found = sorted(each for each in self._path.glob("*.h5") if each.name.lower() != "overview.h5")
        if not found:
            raise WrongInput(f"{self._path}: no HDF5 files in it; expected a run folder", path=str(self._path))
        return found

    def n_frames(self) -> int:
        """Return how many pulses the first module has."""
        with self._open() as run:
            sources, key = self._choose(run)
            data = run[sources[0], key]
            return int(data.data_counts(labelled=False).sum()) * _cells_per_entry(run, sources[0], key)

    def items(self, stream: str) -> Iterator[Item]:
        """Yield one item per train.

        Raises
        ------
        WrongInput
            If sources and key are not there or not clear; names the candidates.
        """
        with self._open() as run:
            sources, key = self._choose(run)
            reader = _Reader(run, sources, key)
            for train_id, time_ns in zip(run.train_ids, _times_ns(run), strict=True):
                parts = reader.parts(train_id)
                if not parts:
                    continue
                frames, metas = _assembled(parts, sources, int(train_id), named=reader.has_pulse_ids)
                times = None if time_ns is None else [time_ns] * len(metas)
                yield Item(stream=stream or self.name, frames=frames, metas=metas, acquired_ns=times, together=True)

    def _choose(self, run: Any) -> tuple[list[str], str]:
        """Return the sources, in the order of their modules, and the key."""
        sources = self._matching(run) if self._wanted else self._only(run)
        keys = set.intersection(*(set(run.keys_for_source(source)) for source in sources))
        key = self._key or next((usual for usual in IMAGE_KEYS if usual in keys), "")
        if key not in keys:
            raise WrongInput(
                f"{self._path}: {sources[0]} has no key {key or IMAGE_KEYS!r}; name it with --key, one of: "
                f"{_listed(sorted(keys))}",
                path=str(self._path),
            )
        check_dtype(np.dtype(run[sources[0], key].dtype), f"{self._path}: {sources[0]} {key}")
        return sources, key

    def _matching(self, run: Any) -> list[str]:
        known = sorted(run.instrument_sources)
        found = [source for source in known if source == self._wanted]
        found = found or [source for source in known if fnmatch.fnmatchcase(source, self._wanted)]
        if not found:
            raise WrongInput(
                f"{self._path}: no source matches {self._wanted!r}; expected one of: {_listed(known)}",
                path=str(self._path),
            )
        # Corrected data may have a second, older name; EXtra-data warns when it is used.
        renamed = getattr(run, "legacy_sources", {})
        return sorted({renamed.get(source, source) for source in found}, key=module_key)

    def _only(self, run: Any) -> list[str]:
        """Return the modules of the only detector, or the only camera."""
        legacy = set(getattr(run, "legacy_sources", ()))
        having = [
            source
            for source in sorted(run.instrument_sources - legacy)
            if any(key in run.keys_for_source(source) for key in ([self._key] if self._key else IMAGE_KEYS))
        ]
        groups: dict[str, list[str]] = {}
        for source in having:
            groups.setdefault(MODULE.sub("/#", source), []).append(source)
        detectors = {name: each for name, each in groups.items() if MODULE.search(each[0])}
        chosen = detectors if len(detectors) == 1 else groups
        if len(chosen) != 1:
            state = "more than one source of images" if chosen else "no source of images"
            raise WrongInput(
                f"{self._path}: {state}; name it with --source-name (a pattern for several modules), one of: "
                f"{_listed(having or sorted(run.instrument_sources))}",
                path=str(self._path),
            )
        return sorted(next(iter(chosen.values())), key=module_key)


def module_key(source: str) -> tuple[int, str]:
    """Return what sorts sources by the number of their module.

    >>> sorted(["X/DET/10CH0:xtdf", "X/DET/9CH0:xtdf"], key=module_key)[0]
    'X/DET/9CH0:xtdf'
    """
    found = MODULE.search(source)
    return (int(found[1]) if found else 0, source)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _times_ns(run: Any) -> list[int | None]:
    """Return the time of each train, None where the files have none (before format version 1.0)."""
    values = run.train_timestamps().astype("datetime64[ns]").astype(np.int64)
    return [None if value == NO_TIME else int(value) for value in values]


def _cells_per_entry(run: Any, source: str, key: str) -> int:
    """Return the frames in one entry: Jungfrau keeps the memory cells of a train in one, with a number for each."""
    group = key.rpartition(".")[0]
    if f"{group}.memoryCell" not in run.keys_for_source(source):
        return 1
    cells, images = run[source, f"{group}.memoryCell"].entry_shape, run[source, key].entry_shape
    return int(cells[0]) if len(cells) == 1 and len(images) == 3 and images[0] == cells[0] else 1


class _Reader:
    """Reads train by train what each module has."""

    def __init__(self, run: Any, sources: Sequence[str], key: str) -> None:
        group = key.rpartition(".")[0]
        self._modules = []
        for source in sources:
            keys = run.keys_for_source(source)
            cell_name = "cellId" if f"{group}.cellId" in keys else "memoryCell"
            ids = [
                run[source, name] if (name := f"{group}.{each}") in keys else None for each in ("pulseId", cell_name)
            ]
            self._modules.append((run[source, key], ids[0], ids[1], _cells_per_entry(run, source, key)))

    def parts(self, train_id: int) -> dict[int, _Part]:
        """Return module number to its part of the train, without modules that have none."""
        found: dict[int, _Part] = {}
        for number, (images, pulse_ids, cell_ids, per_entry) in enumerate(self._modules):
            frames = _entries(images, train_id)
            if frames is None:
                continue
            if per_entry > 1:
                frames = frames.reshape(-1, *frames.shape[2:])
            n = len(frames)
            pulses = None if pulse_ids is None else _column(pulse_ids, train_id, n)
            cells = None if cell_ids is None else _column(cell_ids, train_id, n)
            found[number] = _Part(
                np.arange(n, dtype=np.uint64) if pulses is None else pulses, cells, _without_ones(frames)
            )
        return found

    @property
    def has_pulse_ids(self) -> bool:
        """Whether the first module says which pulse a frame is of."""
        return self._modules[0][1] is not None


def _entries(data: Any, train_id: int) -> NDArray[Any] | None:
    """Return the entries of a train, first axis kept, None when there are none."""
    from extra_data.exceptions import TrainIDError

    try:
        found = data.train_from_id(train_id, keep_dims=True)
    except TrainIDError:
        return None
    # With nothing for this train EXtra-data gives an empty array instead of (train id, array).
    array: NDArray[Any] = np.asarray(found[1] if isinstance(found, tuple) else found)
    return array if array.shape[0] else None


def _column(data: Any, train_id: int, n: int) -> NDArray[np.uint64] | None:
    values = _entries(data, train_id)
    return values.reshape(-1).astype(np.uint64) if values is not None and values.size == n else None


def _without_ones(frames: NDArray[Any]) -> NDArray[Any]:
    """Leave out axes of length 1 between pulses and pixels."""
    between = tuple(axis for axis in range(1, frames.ndim - 2) if frames.shape[axis] == 1)
    return frames.squeeze(between) if between else frames


def _assembled(
    parts: Mapping[int, _Part], sources: Sequence[str], train_id: int, *, named: bool
) -> tuple[NDArray[Any], list[dict[str, Any]]]:
    """Return the frames of a train, modules stacked pulse by pulse, and their metadata."""
    first = next(iter(parts.values()))
    same = len(parts) == len(sources) and all(np.array_equal(part.pulses, first.pulses) for part in parts.values())
    pulses = first.pulses if same else _union(parts, train_id)
    if len(sources) == 1:
        stacked = first.frames
    elif same:
        # Without dtype NumPy would change big-endian frames to the machine's byte order.
        modules = [parts[number].frames for number in range(len(sources))]
        stacked = np.stack(modules, axis=1, dtype=first.frames.dtype)
    else:
        stacked = _aligned(parts, len(sources), pulses)
    cells = _cells(parts, pulses, same=same)
    metas: list[dict[str, Any]] = []
    for place, pulse in enumerate(pulses.tolist()):
        meta: dict[str, Any] = {"train_id": train_id, "pulse_id": pulse} if named else {"train_id": train_id}
        if cells is not None and cells[place] is not None:
            meta["cell_id"] = cells[place]
        if not same:
            absent = [n for n in range(len(sources)) if n not in parts or pulse not in parts[n].pulses]
            if absent:
                meta["missing_modules"] = [sources[number] for number in absent]
        metas.append(meta)
    return stacked, metas


def _union(parts: Mapping[int, _Part], train_id: int) -> NDArray[np.uint64]:
    """Return the pulses that any module has."""
    for part in parts.values():
        if len(np.unique(part.pulses)) != len(part.pulses):
            raise WrongInput(
                f"train {train_id}: the modules have different pulses, and one names a pulse twice, so they cannot be "
                "stacked; replay them one by one with --source-name"
            )
    return np.unique(np.concatenate([part.pulses for part in parts.values()]))


def _aligned(parts: Mapping[int, _Part], n_modules: int, pulses: NDArray[np.uint64]) -> NDArray[Any]:
    """Stack modules that do not have the same pulses; what is missing is 0, or NaN for floats."""
    some = next(iter(parts.values())).frames
    empty = np.nan if some.dtype.kind in "fc" else 0
    stacked = np.full((len(pulses), n_modules, *some.shape[1:]), empty, some.dtype)
    for number, part in parts.items():
        stacked[np.searchsorted(pulses, part.pulses), number] = part.frames
    return stacked


def _cells(parts: Mapping[int, _Part], pulses: NDArray[np.uint64], *, same: bool) -> list[int | None] | None:
    """Return the memory cell of each pulse, from the first module that has it."""
    known: dict[int, int] = {}
    for part in parts.values():
        if part.cells is None:
            continue
        if same:
            return list(part.cells.tolist())
        for pulse, cell in zip(part.pulses.tolist(), part.cells.tolist(), strict=True):
            known.setdefault(pulse, cell)
    return [known.get(pulse) for pulse in pulses.tolist()] if known else None
