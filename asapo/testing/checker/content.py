"""What the checker sends: every frame is a function of (seed, stream, id), so any reader knows what it must hold."""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from asapo.errors import WrongInput

Weights = tuple[tuple[int, int], ...]
"""(size in bytes, how many of so many frames have it)."""

SIZES: Final[Weights] = ((0, 5), (1, 5), (4_096, 80), (2_000_000, 9), (16_000_000, 1))
"""Nothing, a byte, small frames that share a wire unit, a common detector, a large one."""
SMALL_SIZES: Final[Weights] = ((0, 1), (1, 1), (700, 2), (5_000, 2), (64_000, 1), (300_000, 1))
"""The same classes for tests on a slow machine: nothing, a byte, packed ones, and above the size that is packed."""


@dataclass(frozen=True, slots=True)
class Content:
    """What one stream of the checker holds.

    >>> frames = Content(1, "s", sizes=((8, 1),), longest_step=1)
    >>> frames.payload(1).hex(), frames.payload(2).hex()
    ('269073c850c30b80', '71e206d954a6ae6c')
    """

    seed: int
    stream: str
    sizes: Weights = SIZES
    """Size classes in bytes, with their weights."""
    longest_step: int = 3
    """Ids ascend by 1 to this much: what lies between is a hole that nobody ever sends."""

    def __post_init__(self) -> None:
        if not self.sizes or any(size < 0 or weight < 1 for size, weight in self.sizes):
            raise WrongInput(f"sizes {self.sizes!r}: expected pairs (bytes from 0, weight from 1)")
        if self.longest_step < 1:
            raise WrongInput(f"longest_step {self.longest_step}: expected 1 or more")

    def size(self, message_id: int) -> int:
        """Return the size of a frame in bytes."""
        totals = list(itertools.accumulate(weight for _, weight in self.sizes))
        return self.sizes[bisect_right(totals, self._draw("size", message_id) % totals[-1])][0]

    def payload(self, message_id: int, variant: int = 0) -> bytes:
        """Return the bytes of a frame; another `variant` is what a conflicting sender would give the same id."""
        size = max(self.size(message_id), 1) if variant else self.size(message_id)
        # SHAKE: no two frames, and no two parts of one, are alike, whatever language computes them.
        data = hashlib.shake_128(self._name("payload", message_id, variant)).digest(size)
        if variant and data == self.payload(message_id):  # one byte is soon the same
            data = bytes(byte ^ 0xFF for byte in data)
        return data

    def digest(self, message_id: int, variant: int = 0) -> str:
        """Return the SHA-256 of a frame as hexadecimal text."""
        return hashlib.sha256(self.payload(message_id, variant)).hexdigest()

    def meta(self, message_id: int) -> dict[str, int]:
        """Return the metadata of a frame: it names its id, because short frames are alike."""
        return {"n": message_id}

    def ids(self) -> Iterator[int]:
        """Yield the ids of the stream, ascending, without end."""
        message_id = 0
        while True:
            message_id += 1 + self._draw("step", message_id) % self.longest_step
            yield message_id

    def facts(self) -> dict[str, Any]:
        """Return what `from_facts` needs."""
        sizes = [list(each) for each in self.sizes]
        return {"seed": self.seed, "stream": self.stream, "sizes": sizes, "longest_step": self.longest_step}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Content:
        """Return the content that another process described."""
        sizes = tuple((int(size), int(weight)) for size, weight in facts["sizes"])
        return cls(int(facts["seed"]), str(facts["stream"]), sizes, int(facts["longest_step"]))

    def _name(self, *parts: object) -> bytes:
        return "/".join(map(str, (self.seed, self.stream, *parts))).encode()

    def _draw(self, what: str, message_id: int) -> int:
        return int.from_bytes(hashlib.blake2b(self._name(what, message_id), digest_size=8).digest(), "big")


def sizes_up_to(largest: int, *, segment_bytes: int = 0) -> Weights:
    """Return the usual size classes up to `largest` bytes, and one above `segment_bytes` when that fits.

    Raises
    ------
    WrongInput
        If `largest` is below 0.
    """
    if largest < 0:
        raise WrongInput(f"largest frame of {largest} bytes: expected 0 or more")
    above = ((segment_bytes + 1, 1),) if segment_bytes else ()
    return tuple(each for each in (*SIZES, *above) if each[0] <= largest)
