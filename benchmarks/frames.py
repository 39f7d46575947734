"""The frames that are sent, and how a reader knows that it got the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RING_BYTES = 64_000_000
"""Distinct content held by the sender; more than a processor's cache, as frames of a detector would be."""


def ring(size: int) -> list[NDArray[np.uint8]]:
    """Return distinct frames of `size` bytes, about 64 MB in all, between 8 and 512 of them."""
    count = max(8, min(512, RING_BYTES // size))
    generator = np.random.default_rng(size)
    return [generator.integers(0, 256, size, dtype=np.uint8) for _ in range(count)]


def read_every_byte(buffer: Any) -> int:
    """Return the sum of the buffer's bytes taken as 64-bit words: touches every byte, at memory speed."""
    whole = len(buffer) // 8 * 8
    words = np.frombuffer(buffer, dtype=np.uint64, count=whole // 8)
    rest = np.frombuffer(buffer, dtype=np.uint8, offset=whole)
    return int(np.add.reduce(words)) + int(rest.sum())


def sums(frames: list[NDArray[np.uint8]]) -> list[int]:
    """Return what `read_every_byte` gives for each frame."""
    return [read_every_byte(frame.data) for frame in frames]
