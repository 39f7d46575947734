"""Which host this is, as far as sharing memory and files goes, and what it leaves to this process."""

from __future__ import annotations

import functools
import os
import socket
import sys
from typing import Final

from asapo.errors import OutOfMemory

RESERVE_BYTES: Final = 32 * 1024 * 1024
"""Kept for what is served already: ZeroMQ ends a process that has no memory for a few bytes."""


@functools.cache
def boot_id() -> str:
    """Return the id of this host's present boot; "" where the system has none, which never equals a receiver's.

    Two processes with the same boot id see the same page cache (R22).
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def memory_left() -> int | None:
    """Return the bytes that the limits of this process leave to it (`ulimit -v`, `-d`); None without a limit."""
    try:
        import resource
    except ImportError:
        return None  # a system without such limits
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    if all(limit == resource.RLIM_INFINITY for limit in limits):
        return None
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            size, _, _, _, _, data, _ = (int(pages) * resource.getpagesize() for pages in file.read().split())
    except OSError:
        return None
    return min(
        limit - used for limit, used in zip(limits, (size, data), strict=True) if limit != resource.RLIM_INFINITY
    )


def check_memory(what: str) -> None:
    """Refuse to begin something new when little memory is left: what goes on already needs it.

    Raises
    ------
    OutOfMemory
        If a limit of this process leaves less than `RESERVE_BYTES`; `what` is not done.
    """
    left = memory_left()
    if left is not None and left < RESERVE_BYTES:
        raise OutOfMemory(
            f"no memory to {what}: {max(0, left)} bytes are left, and {RESERVE_BYTES} are kept for what goes on "
            "already; give the service more",
            left_bytes=max(0, left),
        )


def who_am_i() -> str:
    """Return host, program and process id for logs and listings."""
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    return f"{socket.gethostname()}:{program}:{os.getpid()}"
