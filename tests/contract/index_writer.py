"""Run as a process by the tests: commits units of four messages to an index and says so after each."""

from __future__ import annotations

import sys

from asapo.index import SqliteIndex, UnitRecord
from asapo.models import StreamRef

SIZE = 4


def main(path: str, first: int, step: int, n_units: int) -> None:
    """Commit `n_units` units; ids begin at `first` and are `step` apart."""
    index = SqliteIndex(path, "bt", busy_timeout_s=30)
    print("ready", flush=True)
    sys.stdin.readline()
    next_id = first
    for _ in range(n_units):
        ids = range(next_id, next_id + SIZE * step, step)
        next_id = ids.stop
        unit = UnitRecord(
            ref=StreamRef("bt", "det", "run1"),
            ids=ids,
            offsets=[0] * SIZE,
            sizes=[1] * SIZE,
            checksums=[7] * SIZE,
            metas=["{}"] * SIZE,
            t_acq_ns=[0] * SIZE,
            t_ingest_ns=0,
        )
        (outcome,) = index.commit([unit])
        print(outcome.first_seq, *ids, flush=True)
    index.close()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
