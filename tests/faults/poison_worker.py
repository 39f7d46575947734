"""A worker as a program of its own that one frame is the end of.

Arguments: url, stream, how it ends (kill, stop, raise, leak, hang, none), id of the frame, most deliveries.
Prints `at ID` before it works on a message, `done ID` after it, and `finished` at the end of the stream.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading

from asapo import Consumer

MIB = 1024 * 1024
ROOM_BYTES = 256 * MIB
"""What the worker may allocate beyond what it has."""
LIMIT_S = 2.0
"""What it may work on one frame."""


class PoisonError(Exception):
    """User code cannot bear this frame."""


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def leak() -> None:
    """Take memory until the limit of the process is reached."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    hoard = []
    while True:
        hoard.append(bytearray(8 * MIB))


def work(message_id: int, how: str) -> None:
    """End as it is told."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "leak":
        leak()
    elif how == "hang":
        threading.Event().wait()
    elif how == "raise":
        raise PoisonError(f"frame {message_id}")


def main() -> int:
    """Read the stream as a worker of group g."""
    url, stream, how, poison, bound = sys.argv[1:]
    with Consumer(url, beamtime="bt", source="det") as consumer:
        say("ready")
        sys.stdin.readline()
        for message in consumer.stream(
            group="g", stream=stream, max_attempts=int(bound), timeout_s=45.0, work_timeout_s=LIMIT_S
        ):
            say(f"at {message.id}")
            if message.id == int(poison):
                work(message.id, how)
            say(f"done {message.id}")
    say("finished")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
