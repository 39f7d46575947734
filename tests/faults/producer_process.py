"""A producer as a program of its own: writes down what it sends and what was acknowledged, and can be killed any time.

Started again with the same arguments it sends everything again that its journal does not know as acknowledged.
Arguments: url, journal, stream, seed, number of messages. It says `sending` once the first message is out.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

from asapo import Producer
from tests.e2e.ledger import PATIENCE_S, Ledger, sparse_ids


def main() -> int:
    """Send all messages of the stream, then finish it."""
    url, journal, stream, seed, count = sys.argv[1:]
    ledger = Ledger(stream, seed=int(seed))
    before = Path(journal).read_text().splitlines() if Path(journal).exists() else []
    acked = {int(line[2:]) for line in before if line.startswith("A ")}
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def settled(handle: Any) -> None:
        if handle.exception(0) is None:
            os.write(file, b"A %d\n" % handle.id)

    with Producer(url, beamtime="bt", source="det", queue_bytes=4_000_000, retry_s=600.0) as producer:
        for number, message_id in enumerate(itertools.islice(sparse_ids(int(seed)), int(count))):
            if message_id in acked:
                continue
            os.write(file, b"I %d\n" % message_id)
            producer.send(
                ledger.payload(message_id), id=message_id, stream=stream, meta={"n": message_id}, callback=settled
            )
            if number % 20 == 0:
                sys.stdout.write(f"sending {message_id}\n")
                sys.stdout.flush()
        producer.finish_stream(stream, timeout_s=PATIENCE_S)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
