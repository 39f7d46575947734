"""Detectors by name: what they emit and how fast.

Frame size and rate are those the facilities plan with: Pilatus 300k 1.2 MB at 200 Hz, Pilatus 6M 25 MB at 25 Hz,
PCO Edge 8 MB at 100 Hz, PerkinElmer 16 MB at 15 Hz, Lambda 7.5 GB/s and Eiger 3.8 GB/s at 2000 Hz, European XFEL 27 000
pulses/s in 10 trains/s. Shapes are the published pixel formats of the detectors, as each entry says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from asapo.errors import WrongInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What one detector emits."""

    name: str
    shape: tuple[int, ...]
    """Pixels of one frame: (n_slow, n_fast), or (modules, n_slow, n_fast)."""
    dtype: str
    rate_hz: float
    """Frames per second, on average when they come in trains."""
    pulses: int = 1
    """Frames of one train, emitted together; 1 when frames come one by one."""
    source: str
    """Where the pixel format is published, and what was derived."""

    @property
    def frame_bytes(self) -> int:
        """Size of one frame."""
        return math.prod(self.shape) * int(self.dtype[2:])

    @property
    def bytes_per_s(self) -> float:
        """Data rate of the detector."""
        return self.frame_bytes * self.rate_hz


PRESETS: Final[dict[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset(
            name="pilatus-300k", shape=(619, 487), dtype="<i4", rate_hz=200,
            source="DECTRIS PILATUS 300K: 487 x 619 pixels, 20-bit counters stored in 32 bits",
        ),
        Preset(
            name="pilatus-6m", shape=(2527, 2463), dtype="<i4", rate_hz=25,
            source="DECTRIS PILATUS 6M: 2463 x 2527 pixels, 20-bit counters stored in 32 bits",
        ),
        Preset(
            name="pco-edge", shape=(2048, 2048), dtype="<u2", rate_hz=100,
            source="PCO pco.edge 4.2: 2048 x 2048 pixels, 16 bits",
        ),
        Preset(
            name="perkinelmer", shape=(2048, 2048), dtype="<u4", rate_hz=15,
            source="PerkinElmer XRD 1621: 2048 x 2048 pixels at 15 Hz; 32 bits because exposures are summed",
        ),
        Preset(
            name="lambda", shape=(1220, 1536), dtype="<u2", rate_hz=2000,
            source="X-Spectrum LAMBDA: modules 1536 pixels wide, 12-bit counters stored in 16 bits; "
            "rows chosen so that 2000 Hz make the planned 7.5 GB/s",
        ),
        Preset(
            name="eiger", shape=(922, 1030), dtype="<u2", rate_hz=2000,
            source="DECTRIS EIGER: modules 1030 pixels wide, 16 bits; "
            "rows chosen so that 2000 Hz make the planned 3.8 GB/s",
        ),
        Preset(
            name="euxfel-agipd", shape=(16, 512, 128), dtype="<u2", rate_hz=3520, pulses=352,
            source="AGIPD 1M at European XFEL: 16 modules of 512 x 128 pixels, 352 memory cells per train, "
            "10 trains/s; 2.1 MB per pulse and 7.4 GB/s, twice that with the gain plane of raw files",
        ),
        Preset(
            name="euxfel-pulses", shape=(32, 64), dtype="<u2", rate_hz=27_000, pulses=2700,
            source="European XFEL machine: 2700 pulses per train, 10 trains/s; a region of 4 kB of each pulse",
        ),
    )
}  # fmt: skip
"""Detector name to what it emits."""


def preset(name: str) -> Preset:
    """Return the detector of that name.

    Raises
    ------
    WrongInput
        If there is none; names those there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise WrongInput(f"preset {name!r}: expected one of {', '.join(PRESETS)}") from None
