"""A producer that sends as much as it is allowed to, until stdin ends.

Arguments: url, beamtime, stream, bytes of a frame. It prints a line when it has begun, and at its end the bytes
acknowledged and the seconds that took.
"""

from __future__ import annotations

import sys
import threading
import time

from asapo import Producer

QUEUE_BYTES = 64 * 1024 * 1024


def main() -> int:
    """Send without a pause."""
    url, beamtime, stream, size = sys.argv[1:]
    frame = bytes(int(size))
    began_s = time.monotonic()
    stopping = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=listen, daemon=True).start()
    with Producer(url, beamtime=beamtime, source="flood", retry_s=600.0, queue_bytes=QUEUE_BYTES) as producer:
        handles = []
        while not stopping.is_set():
            handles.append(producer.send(frame, stream=stream))
            if len(handles) == 1:
                handles[0].result(45.0)
                sys.stdout.write("sending\n")
                sys.stdout.flush()
        sys.stdout.write(f"{producer.stats.acked * len(frame)} {time.monotonic() - began_s}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
