"""Folders without services: opening a run of a million messages, and making an index anew from its journals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asapo.index import SqliteIndex
from asapo.index.rebuild import BATCH_MESSAGES, rebuild
from asapo.index.snapshot_write import write_snapshot
from asapo.models import StreamRef
from asapo.storage.recorded import find_recorded, journals_in
from benchmarks.conftest import Record
from benchmarks.measure import Figure, median
from benchmarks.test_index import META, bare
from tests.recording import BEAMTIME, Recording

SEGMENTS = 200
UNIT = 100
PAYLOAD = bytes(64)
REF = StreamRef(BEAMTIME, "det", "s")
OPEN = """
import json, sys, time
import asapo, numpy, asapo_work.offline
started_s = time.perf_counter()
consumer = asapo.open(sys.argv[1], source="det")
message = consumer.get_next("g", stream="s")
first = bytes(message.raw)
print(json.dumps([time.perf_counter() - started_s, message.id, len(first), consumer.report.streams]))
"""


def recorded(root: Path, n: int, *, segments: int = SEGMENTS) -> Recording:
    """Record a finished stream of n messages as trains of 100 small pulses give it."""
    recording = Recording(root)
    for first in range(1, n + 1, UNIT):
        if first > 1 and (first - 1) % (n // segments) == 0:
            recording.store.close_stream(REF)
        recording.put(range(first, first + UNIT), payloads=[PAYLOAD] * UNIT, metas=[META] * UNIT)
    recording.finish(n)
    recording.close()
    return recording


def forget(folder: Path) -> None:
    """Have the page cache forget the files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_s(folder: Path) -> float:
    """Return how long a new process, its modules loaded, takes from `asapo.open` to the bytes of the first message."""
    argv = [sys.executable, "-c", OPEN, str(folder)]
    seconds, message_id, nbytes, streams = json.loads(subprocess.check_output(argv, text=True))
    assert (message_id, nbytes, streams) == (1, len(PAYLOAD), {"det/s": "snapshot"})
    return float(seconds)


def read_s(folder: Path) -> float:
    """Return how long reading the bytes of all journals takes: what every way that begins with them needs."""
    started_s = time.perf_counter()
    for path in journals_in(folder / "det" / "s").values():
        path.read_bytes()
    return time.perf_counter() - started_s


@pytest.mark.figures("open-1e6")
def test_open(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """Open a run of 1e6 messages in 200 segments and read its first frame: warm, and with a cold page cache."""
    n = 1_000_000 if full else 20_000
    recording = recorded(folder, n)
    stream = recording.folder / "det" / "s"
    started_s = time.perf_counter()
    path = write_snapshot(stream, recording.directory.path(BEAMTIME), REF, list(journals_in(stream).values()))
    write_s = time.perf_counter() - started_s
    cold: list[float] = []
    warm: list[float] = []
    reads: list[float] = []

    def before() -> None:
        forget(recording.folder)
        cold.append(open_s(recording.folder))
        read_s(recording.folder)
        reads.append(read_s(recording.folder))

    benchmark.pedantic(lambda: warm.append(open_s(recording.folder)), setup=before, rounds=rounds + 1)
    warm, reads, cold = warm[1:] or warm, reads[1:] or reads, cold[1:] or cold
    params = {
        "messages": n, "segments": SEGMENTS, "cold_s": median(cold), "snapshot_mb": path.stat().st_size / 1e6,
        "write_snapshot_s": median([write_s]), "baseline": "read of all journal bytes, warm", "rounds": len(warm),
    }  # fmt: skip
    ratio = median([a / b for a, b in zip(warm, reads, strict=True)])
    record(Figure("open-1e6", median(warm), "s", median(reads), ratio, params))


@pytest.mark.figures("reindex-rate")
def test_reindex(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """Messages a second from journals into a new index, beside bare inserts of as many rows in equal transactions."""
    n = 300_000 if full else 6_000
    recording = recorded(folder / "data", n, segments=20)
    nbytes = sum(path.stat().st_size for path in journals_in(recording.folder / "det" / "s").values())
    us: list[float] = []
    them: list[float] = []

    def place() -> Path:
        path = folder / "round"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def ours() -> None:
        index = SqliteIndex(place() / "index.sqlite", BEAMTIME)
        started_s = time.perf_counter()
        report = rebuild(index, find_recorded([recording.folder]))
        us.append(n / (time.perf_counter() - started_s))
        index.close()
        assert (report.messages, report.damages) == (n, [])

    benchmark.pedantic(ours, setup=lambda: them.append(bare(place(), n, BATCH_MESSAGES)), rounds=rounds + 1)
    us, them = us[1:] or us, them[1:] or them
    params = {
        "messages": n, "unit": UNIT, "journal_mb": nbytes / 1e6, "meta_bytes": len(META), "rounds": len(us),
        "journal_mb_per_s": median([rate * nbytes / n / 1e6 for rate in us]),
    }  # fmt: skip
    ratio = median([a / b for a, b in zip(us, them, strict=True)])
    record(Figure("reindex-rate", median(us), "messages/s", median(them), ratio, params))
