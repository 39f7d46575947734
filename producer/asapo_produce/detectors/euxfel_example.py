"""Writes a small European XFEL run with EXtra-data's own example writer and fills it with simulated diffraction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from asapo.errors import WrongInput
from asapo_produce.detectors.frames import diffraction_frame

DETECTOR: Final = "SCS_DET_DSSC1M-1"
FIRST_TRAIN: Final = 10_000
FORMAT_VERSION: Final = "1.2"
DSSC_MODULE: Final = (128, 512)


@dataclass(frozen=True, slots=True)
class ExampleRun:
    """What was written: the ground truth."""

    folder: Path
    sources: tuple[str, ...]
    """Names of the modules' sources."""
    key: str
    shape: tuple[int, ...]
    """Shape of one message: (n_slow, n_fast), or (modules, n_slow, n_fast)."""
    dtype: str
    train_ids: tuple[int, ...]
    pulses: int
    """Pulses in each train; pulse ids are 0 to `pulses` - 1."""
    hits: frozenset[tuple[int, int]]
    """(train id, pulse id) of the frames with a particle."""
    seed: int
    hit_fraction: float

    @property
    def n_frames(self) -> int:
        """Number of messages."""
        return len(self.train_ids) * self.pulses

    @property
    def n_bytes(self) -> int:
        """Bytes of all frames."""
        return self.n_frames * int(np.prod(self.shape)) * int(self.dtype[2:])

    def frame(self, train_id: int, pulse_id: int) -> NDArray[Any]:
        """Return the frame that was written for a pulse, computed again."""
        number = self.train_ids.index(train_id) * self.pulses + pulse_id
        return diffraction_frame(self.shape, self.dtype, seed=self.seed, number=number, hit_fraction=self.hit_fraction)[
            0
        ]


def write_example_run(
    folder: str | Path,
    *,
    trains: int = 8,
    pulses: int = 16,
    modules: int = 1,
    shape: tuple[int, int] = DSSC_MODULE,
    seed: int = 0,
    hit_fraction: float = 0.25,
    run: int = 1,
) -> ExampleRun:
    """Write a run of a DSSC detector: one raw file per module, time of each train, diffraction in the image data.

    Parameters
    ----------
    folder : path
        Run folder; made when missing, must be empty.
    trains, pulses, modules : int
        How many trains, pulses in each, and detector modules (1 to 16).
    shape : (int, int), pixels
        One module, (n_slow, n_fast); that of the real detector when left out.
    seed : int
        The same seed gives the same frames.
    hit_fraction : float
        Share of the pulses with a particle in the beam.
    run : int
        Run number, in the file names.

    Raises
    ------
    WrongInput
        If a number is out of range or the folder is not empty.
    """
    import h5py

    folder = Path(folder)
    if min(trains, pulses, *shape) < 1 or not 1 <= modules <= 16:
        raise WrongInput(
            f"{trains} trains, {pulses} pulses, {modules} modules, shape {shape}: expected at least 1 of each"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise WrongInput(f"folder {folder} is not empty; give a new one", path=str(folder))
    paths, sources = _write_empty(folder, trains, pulses, modules, shape, run)
    whole = shape if modules == 1 else (modules, *shape)
    facts = ExampleRun(
        folder, sources, "image.data", whole, "<u2", tuple(range(FIRST_TRAIN, FIRST_TRAIN + trains)), pulses,
        _hits(trains, pulses, hit_fraction), seed, hit_fraction,
    )  # fmt: skip
    files = [h5py.File(path, "r+") for path in paths]
    try:
        _fill([file[f"INSTRUMENT/{source}/image/data"] for file, source in zip(files, sources, strict=True)], facts)
        _same_times(files)
    finally:
        for file in files:
            file.close()
    return facts


def _write_empty(
    folder: Path, trains: int, pulses: int, modules: int, shape: tuple[int, int], run: int
) -> tuple[list[Path], tuple[str, ...]]:
    """Write the files of the modules without image data; return them and the names of the sources."""
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.detectors import DSSCModule

    paths, sources = [], []
    for number in range(modules):
        device = DSSCModule(f"{DETECTOR}/DET/{number}CH0", frames_per_train=pulses)
        device.image_dims = (1, *shape)
        path = folder / f"RAW-R{run:04d}-DSSC{number:02d}-S00000.h5"
        write_file(
            str(path), [device], ntrains=trains, firsttrain=FIRST_TRAIN, chunksize=16, format_version=FORMAT_VERSION
        )
        paths.append(path)
        sources.append(f"{device.device_id}:xtdf")
    return paths, tuple(sources)


def _hits(trains: int, pulses: int, hit_fraction: float) -> frozenset[tuple[int, int]]:
    from asapo_produce.detectors.frames import is_hit

    return frozenset(
        (FIRST_TRAIN + number // pulses, number % pulses)
        for number in range(trains * pulses)
        if is_hit(number, hit_fraction)
    )


def _fill(datasets: list[Any], facts: ExampleRun) -> None:
    number = 0
    for train_id in facts.train_ids:
        for pulse_id in range(facts.pulses):
            frame = facts.frame(train_id, pulse_id)
            for module, dataset in enumerate(datasets):
                dataset[number, 0] = frame if len(datasets) == 1 else frame[module]
            number += 1


def _same_times(files: list[Any]) -> None:
    """Give all modules the times of the first: the writer takes the clock anew for each file."""
    times = files[0]["INDEX/timestamp"][()]
    for file in files[1:]:
        file["INDEX/timestamp"][...] = times
