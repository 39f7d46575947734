"""Indexing alone: rows a second into SQLite, beside a bare executemany of the same rows into one table."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from asapo.index import IndexDirectory, UnitRecord
from asapo.models import StreamRef
from benchmarks.conftest import Record
from benchmarks.measure import Figure, median

ROWS_PER_COMMIT = 512
UNIT = 64
META = '{"train_id": 1234567, "pulse_id": 17, "energy_kev": 9.3, "detector": "agipd", "run": 42, "sample": "lysozyme"}'


def ours(folder: Path, n: int) -> float:
    """Commit n rows in units of a train; return rows a second."""
    directory = IndexDirectory(folder)
    index = directory.open("bench")
    ref = StreamRef("bench", "det", "s")
    segment = index.register_segment(str(folder / "x.seg"), "r1", 1, "t", "b", ref)
    columns: dict[str, Any] = {
        "offsets": list(range(0, UNIT * 4096, 4096)), "sizes": [4096] * UNIT, "checksums": list(range(UNIT)),
        "metas": [META] * UNIT, "t_acq_ns": list(range(UNIT)), "t_ingest_ns": 1, "segment": segment,
    }  # fmt: skip
    started_s = time.perf_counter()
    for first in range(1, n + 1, ROWS_PER_COMMIT):
        units = [
            UnitRecord(ref=ref, ids=range(i, i + UNIT), **columns) for i in range(first, first + ROWS_PER_COMMIT, UNIT)
        ]
        index.commit(units)
    rate = n / (time.perf_counter() - started_s)
    directory.close()
    return rate


def bare(folder: Path, n: int, per_commit: int = ROWS_PER_COMMIT) -> float:
    """Insert the same rows by executemany into one table with the same keys; return rows a second."""
    connection = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    numbers = ", ".join(f"c{i} INTEGER" for i in range(12))
    connection.execute(f"CREATE TABLE m (key INTEGER PRIMARY KEY, stream INTEGER, id INTEGER, {numbers}, meta TEXT)")
    connection.execute("CREATE UNIQUE INDEX u ON m (stream, id)")
    statement = f"INSERT INTO m VALUES ({', '.join('?' * 16)})"
    started_s = time.perf_counter()
    for first in range(1, n + 1, per_commit):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            statement,
            [
                (i, 1, i, 0, 0, 1, i, 4096, i, 1, i, 1, 0, 0, 0, META)
                for i in range(first, min(n + 1, first + per_commit))
            ],
        )
        connection.execute("COMMIT")
    rate = n / (time.perf_counter() - started_s)
    connection.close()
    return rate


@pytest.mark.figures("index-insert")
def test_index_insert(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """Commits of 512 rows in units of 64, as trains give them."""
    n = ROWS_PER_COMMIT * (400 if full else 2)
    us: list[float] = []
    them: list[float] = []

    def place() -> Path:
        path = folder / f"round-{len(us)}-{len(them)}"
        path.mkdir()
        return path

    benchmark.pedantic(
        lambda: us.append(ours(place(), n)), setup=lambda: them.append(bare(place(), n)), rounds=rounds + 1
    )
    us, them = us[1:] or us, them[1:] or them
    params = {"rows": n, "rows_per_commit": ROWS_PER_COMMIT, "unit": UNIT, "meta_bytes": len(META), "rounds": len(us)}
    ratio = median([a / b for a, b in zip(us, them, strict=True)])
    record(Figure("index-insert", median(us), "rows/s", median(them), ratio, params))
