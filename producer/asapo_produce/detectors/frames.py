"""Simulated single-particle diffraction, prepared in a pool so that it can be sent at full rate.

The frame of message `id` can be computed again from the pool's settings: `FramePool(shape, dtype, seed=..., block=...)`
holds `size` frames, frame `k` made by `diffraction_frame(..., seed=seed, number=k)` alone, and message `id` carries
frame `index_of(id)`. Random numbers are NumPy's; the same NumPy version gives the same frames.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from asapo.errors import WrongInput
from asapo.models import DTYPES

POOL_BYTES: Final = 32 * 1024 * 1024
"""What a pool takes, unless its fewest frames are larger."""
FEWEST: Final = 4
MOST: Final = 32
BLOCK_BYTES: Final = 8 * 1024 * 1024
"""Most bytes of frames that are sent in one call."""
PHOTONS: Final = 20_000.0
"""Photons that a particle scatters onto the detector, on average."""
BACKGROUND: Final = 0.01
"""Photons per pixel without a particle, on average."""
_MASK: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What is known of a simulated frame."""

    number: int
    hit: bool
    """Whether a particle was in the beam."""
    fringe_px: float
    """Distance of the diffraction rings, pixels; 0 without a particle."""
    photons: int
    """Photons counted in the frame."""


def sphere_intensity(shape: tuple[int, int], *, fringe_px: float) -> NDArray[np.float64]:
    """Return where the photons scattered by a homogeneous sphere go, small-angle limit.

    Parameters
    ----------
    shape : (int, int)
        (n_slow, n_fast) in pixels; the beam hits the centre.
    fringe_px : float, pixels
        Distance of neighbouring rings, about pi / (R dq) for radius R and momentum transfer dq per pixel.

    Returns
    -------
    float64 array, shape (n_slow, n_fast)
        Share of the photons in each pixel; the sum is 1.

    Notes
    -----
    I(q) is proportional to [3 (sin x - x cos x) / x^3]^2 with x = q R. Source: Lord Rayleigh, Proc. R. Soc. A 84 (1911)
    25; A. Guinier and G. Fournet, Small-Angle Scattering of X-rays (1955), section 2.1.
    """
    slow = np.arange(shape[0])[:, None] - (shape[0] - 1) / 2
    fast = np.arange(shape[1])[None, :] - (shape[1] - 1) / 2
    x = np.hypot(slow, fast) * (math.pi / fringe_px)
    x = np.maximum(x, 1e-2)  # the limit for x -> 0 is 1; below this the difference of the two terms is lost in rounding
    intensity = (3 * (np.sin(x) - x * np.cos(x)) / x**3) ** 2
    share: NDArray[np.float64] = intensity / intensity.sum()
    return share


def is_hit(number: int, hit_fraction: float) -> bool:
    """Whether frame `number` has a particle; hits are spread evenly over the numbers."""
    return math.floor((number + 1) * hit_fraction) > math.floor(number * hit_fraction)


def diffraction_frame(
    shape: tuple[int, ...], dtype: str, *, seed: int, number: int, hit_fraction: float = 0.5
) -> tuple[NDArray[Any], FrameFacts]:
    """Return simulated frame `number`: a sphere of random size, Poisson photon noise, background.

    Parameters
    ----------
    shape : tuple of int, pixels
        Shape of the frame; leading axes (modules) are taken as one tall image.
    dtype : str
        Element type of the frame, one of `asapo.models.DTYPES`; counts are cut at its largest value.
    seed, number : int
        Both together decide the contents.
    hit_fraction : float
        Share of the frames that have a particle.

    Returns
    -------
    array of `dtype`, shape `shape`, unit photons; and what is known of it.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number])))
    fast = shape[-1] if shape else 1
    image = (math.prod(shape) // fast if fast else 0, fast)
    hit = is_hit(number, hit_fraction) and math.prod(image) > 0
    expected = np.full(image, BACKGROUND)
    fringe_px = 0.0
    if hit:
        fringe_px = float(rng.uniform(0.06, 0.15)) * max(8, min(image))
        expected += sphere_intensity(image, fringe_px=fringe_px) * (PHOTONS * rng.uniform(0.5, 1.5))
    counts = rng.poisson(expected)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        counts = np.minimum(counts, np.iinfo(kind).max)
    return counts.reshape(shape).astype(kind), FrameFacts(number, hit, round(fringe_px, 2), int(counts.sum()))


def largest_divisor(n: int, limit: int) -> int:
    """Return the largest divisor of `n` that is at most `limit`, at least 1."""
    return next(d for d in range(max(1, min(n, limit)), 0, -1) if n % d == 0)


def mix(seed: int, number: int) -> int:
    """Return 64 well-mixed bits of two integers (splitmix64; Steele, Lea, Flood, OOPSLA 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class FramePool:
    """Prepared frames, and which of them each message carries.

    Parameters
    ----------
    shape : tuple of int
        Shape of one frame.
    dtype : str
        Element type with byte order.
    seed : int
        Decides contents and order.
    block : int
        Frames that are sent in one call when messages are dense; message ids `1 + b * block` to `(b + 1) * block` lie
        side by side in the pool, so that a call sends a window of it without a copy.
    hit_fraction : float
        Share of the pool's frames that have a particle.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: str, *, seed: int = 0, block: int = 1, hit_fraction: float = 0.5
    ) -> None:
        if dtype not in DTYPES:
            raise WrongInput(f"dtype {dtype!r}: expected one of {', '.join(sorted(DTYPES))}")
        if not shape or min(shape) < 1:
            raise WrongInput(f"shape {shape!r}: expected at least one pixel along each axis, for example 512x1024")
        self.seed = seed
        self.block = block
        nbytes = math.prod(shape) * int(dtype[2:])
        self.size = max(FEWEST, min(MOST, POOL_BYTES // nbytes), 2 * block)
        self._frames = np.empty((self.size, *shape), dtype)
        facts = []
        for number in range(self.size):
            self._frames[number], known = diffraction_frame(
                shape, dtype, seed=seed, number=number, hit_fraction=hit_fraction
            )
            facts.append(known)
        self._frames.flags.writeable = False
        self.facts = tuple(facts)
        """What is known of each frame of the pool."""
        self._texts = [
            json.dumps({"hit": f.hit, "photons": f.photons, "pool_index": f.number}, separators=(",", ":"))[1:-1]
            for f in facts
        ]

    @property
    def frame_bytes(self) -> int:
        """Size of one frame."""
        return int(self._frames[0].nbytes)

    def index_of(self, message_id: int) -> int:
        """Return which frame of the pool message `message_id` carries."""
        group, place = divmod(message_id - 1, self.block)
        return mix(self.seed, group) % (self.size - self.block + 1) + place

    def frame(self, message_id: int) -> NDArray[Any]:
        """Return the frame of a message, read-only, not copied."""
        return self._at(self.index_of(message_id))

    def other_frame(self, message_id: int) -> NDArray[Any]:
        """Return a frame that differs from that of the message: what a conflicting repetition carries."""
        return self._at((self.index_of(message_id) + 1) % self.size)

    def _at(self, index: int) -> NDArray[Any]:
        found: NDArray[Any] = self._frames[index]
        return found

    def frames(self, first_id: int, n: int) -> NDArray[Any]:
        """Return the frames of `n` messages of one block, shape (n, ...), read-only, not copied."""
        start = self.index_of(first_id)
        return self._frames[start : start + n]

    def meta(self, message_id: int, extra: str = "") -> str:
        """Return the metadata of a message as JSON text; `extra` goes first and ends in a comma."""
        return f"{{{extra}{self._texts[self.index_of(message_id)]}}}"

    def facts_of(self, message_id: int) -> FrameFacts:
        """Return what is known of the frame of a message."""
        return self.facts[self.index_of(message_id)]
