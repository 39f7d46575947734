"""Queries over a million messages with two declared keys, beside SQL by hand on the same rows in bare sqlite3."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pytest

from asapo.index import IndexDirectory, SqliteIndex, UnitRecord
from asapo.models import StreamRef
from asapo.query import parse
from benchmarks.conftest import Record
from benchmarks.measure import Figure, bench_folder, median, percentile

KEYS: Final = ("score", "lit")
SCORE, LIT = (f"json_extract(meta, '$.{key}')" for key in KEYS)
UNIT: Final = 512
FIRST: Final = 100
REPEATS: Final = 5
REF: Final = StreamRef("bench", "det", "s")
ABOVE: Final = {"": 0.9, "-rare": 0.99684}
"""What both keys are asked to exceed: 10 % of the messages each and 1 % both; 0.3 % each and 0.001 % both."""
ORDERS: Final = {"id": ("", ("id", "+id")), "key": ("ORDER BY score DESC", (f"{SCORE} DESC, id",))}
"""What we are asked, and the ways to ask bare sqlite3 for the same: `+id` keeps it from going through all ids."""


@dataclass(frozen=True, slots=True)
class Filled:
    """The same messages in our index and in a bare table."""

    index: SqliteIndex
    stream_no: int
    bare: sqlite3.Connection
    rows: int


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest) -> Iterator[Filled]:
    n = 1_000_000 if request.config.getoption("benchmark_enable", default=False) else 4 * UNIT
    with bench_folder() as folder:
        directory = IndexDirectory(folder, declared_keys=KEYS)
        bare = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
        index = directory.open(REF.beamtime)
        _fill(index, bare, n)
        stream_no = index.stream_no(REF)
        assert stream_no is not None
        yield Filled(index, stream_no, bare, n)
        bare.close()
        directory.close()


def _fill(index: SqliteIndex, bare: sqlite3.Connection, n: int) -> None:
    chance = random.Random(1)  # noqa: S311
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("CREATE TABLE m (id INTEGER PRIMARY KEY, meta TEXT)")
    bare.execute("BEGIN")
    for first in range(1, n + 1, UNIT):
        ids = range(first, min(first + UNIT, n + 1))
        metas = [
            json.dumps({"score": chance.random(), "lit": chance.random(), "train_id": i // 64, "pulse_id": i % 64,
                        "detector": "agipd", "sample": {"name": "lysozyme"}})
            for i in ids
        ]  # fmt: skip
        count = len(metas)
        columns: dict[str, Any] = {
            "offsets": range(0, count * 4096, 4096), "sizes": [4096] * count, "checksums": range(count),
            "metas": metas, "t_acq_ns": range(count), "t_ingest_ns": 1, "segment": 1,
        }  # fmt: skip
        index.commit([UnitRecord(ref=REF, ids=ids, **columns)])
        bare.executemany("INSERT INTO m VALUES (?, ?)", zip(ids, metas, strict=True))
    for name, expression in zip(KEYS, (SCORE, LIT), strict=True):
        bare.execute(f"CREATE INDEX {name} ON m ({expression})")
    bare.execute("COMMIT")


def timed(ask: Callable[[], list[Any]], repeats: int) -> tuple[list[float], list[int]]:
    """Return the milliseconds of each answer, and the ids of the last one."""
    times_ms: list[float] = []
    found: list[Any] = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        found = ask()
        times_ms.append((time.perf_counter() - started_s) * 1000)
    return times_ms, [row[0] for row in found]


def by_hand(connection: sqlite3.Connection, statement: str, above: float) -> list[Any]:
    """Return the rows that a statement finds."""
    return connection.execute(statement, (above, above)).fetchall()


@pytest.mark.timeout(1800)
@pytest.mark.figures("query-1e6")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ABOVE)
def test_query(benchmark: Any, filled: Filled, record: Record, rounds: int, kind: str, order: str) -> None:
    """The first 100 messages for which both keys exceed a value, ordered by id and by one of the keys."""
    measure(benchmark, filled, record, rounds, f"query-1e6{kind}-{order}", kind, order)


@pytest.mark.timeout(1800)
@pytest.mark.figures("query-1e6-finished")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ABOVE)
def test_query_of_a_finished_stream(
    benchmark: Any, filled: Filled, record: Record, rounds: int, kind: str, order: str
) -> None:
    """The same once the stream is finished and the receiver has sorted it by its declared keys."""
    filled.index.finish_stream(REF, filled.rows, "")
    filled.index.sort_finished(REF)
    measure(benchmark, filled, record, rounds, f"query-1e6-finished{kind}-{order}", kind, order)


def measure(benchmark: Any, filled: Filled, record: Record, rounds: int, name: str, kind: str, order: str) -> None:
    """Ask in rounds, ours and by hand in turn, and record the figure."""
    above, (ours, theirs) = ABOVE[kind], ORDERS[order]
    query = parse(f"score > {above} AND lit > {above} {ours}")
    statements = [
        f"SELECT id, meta FROM m WHERE {SCORE} > ? AND {LIT} > ? ORDER BY {by} LIMIT {FIRST}" for by in theirs
    ]
    us: list[float] = []
    p50s: list[tuple[float, float]] = []

    def one_round() -> None:
        bare = [timed(partial(by_hand, filled.bare, statement, above), 3) for statement in statements]
        times_ms, ids = timed(partial(filled.index.query, filled.stream_no, query, row_limit=FIRST), REPEATS)
        assert all(ids == others for _, others in bare)
        us.extend(times_ms)
        p50s.append((percentile(times_ms, 50), min(percentile(times, 50) for times, _ in bare)))

    benchmark.pedantic(one_round, rounds=rounds + 1)
    us, p50s = us[REPEATS:] or us, p50s[1:] or p50s
    params = {"rows": filled.rows, "above": above, "first": FIRST, "p99_ms": round(percentile(us, 99), 2),
              "rounds": len(p50s), "asked": str(query)}  # fmt: skip
    ratio = median([mine / other for mine, other in p50s])
    record(Figure(name, median(us), "ms", median([other for _, other in p50s]), ratio, params))
