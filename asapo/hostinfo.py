"""Which host this is, as far as sharing memory and files goes."""

from __future__ import annotations

import functools
import os
import socket
import sys


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


def who_am_i() -> str:
    """Return host, program and process id for logs and listings."""
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    return f"{socket.gethostname()}:{program}:{os.getpid()}"
