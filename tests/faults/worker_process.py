"""A worker as a program of its own, to be killed while it holds messages: takes some, acknowledges none, waits.

Arguments: url, stream, group, number of messages, lease in seconds. It prints the ids that it holds.
"""

from __future__ import annotations

import sys

from asapo import Consumer


def main() -> int:
    """Take messages, say which, and hold them until stdin ends."""
    url, stream, group, count, lease_s = sys.argv[1:]
    with Consumer(url, beamtime="bt", source="det") as consumer:
        held = consumer.get_next(group, n=int(count), stream=stream, timeout_s=45.0, lease_s=float(lease_s))
        sys.stdout.write(f"{' '.join(str(message.id) for message in held)}\n")
        sys.stdout.flush()
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
