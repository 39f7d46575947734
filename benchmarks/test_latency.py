"""Latency: `send()` to user code at 100 Hz, nothing else going on."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Record
from benchmarks.measure import WARM_MORE_BYTES, Figure, median, percentile, warm_memory
from benchmarks.path import ProductPath

RATE_HZ = 100


def bare_socket_ms(size: int, n: int) -> float:
    """Return the median time of a frame through one socket into memory, paced alike: what no design can beat."""
    server = socket.create_server(("127.0.0.1", 0))
    left = socket.create_connection(server.getsockname())
    right, _ = server.accept()
    payload = bytes(size)
    taken_ms: list[float] = []
    sent_s: list[float] = []

    def receive() -> None:
        memory = bytearray(size)
        for i in range(n):
            right.recv_into(memory, size, socket.MSG_WAITALL)
            taken_ms.append((time.monotonic() - sent_s[i]) * 1e3)

    thread = threading.Thread(target=receive)
    thread.start()
    started_s = time.monotonic()
    for i in range(n):
        time.sleep(max(0.0, started_s + i / RATE_HZ - time.monotonic()))
        sent_s.append(time.monotonic())
        left.sendall(payload)
    thread.join()
    for end in (left, right, server):
        end.close()
    return percentile(taken_ms, 50)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("latency-2MB", 2_000_000, marks=pytest.mark.figures("latency-2MB")),
        pytest.param("latency-4kB", 4096, marks=pytest.mark.figures("latency-4kB")),
    ],
)
def test_latency(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int, name: str, size: int) -> None:
    """From the call of `send` to the message in the worker's loop."""
    n = 600 if full else 20
    path = ProductPath(folder)
    found: list[dict[str, Any]] = []
    bare: list[float] = []

    def run() -> None:
        found.append(path.round("paced", size=size, n=n, rate_hz=RATE_HZ, skip=n // 10)[0])

    def before() -> None:
        bare.append(bare_socket_ms(size, n // 4))
        # Not `warm_ahead`: what holds memory back is at work all the time, and here nothing else is to go on.
        warm_memory(path.services.data_dir, size * n + WARM_MORE_BYTES)

    try:
        benchmark.pedantic(run, setup=before, rounds=rounds + 1)
    finally:
        path.close()
    found, bare = found[1:] or found, bare[1:] or bare
    record(
        Figure(
            name,
            median([f["p50_ms"] for f in found]),
            "ms p50",
            median(bare),
            median([f["p50_ms"] / b for f, b in zip(found, bare, strict=True)]),
            {
                "frame_bytes": size, "frames": n, "rate_hz": RATE_HZ, "rounds": len(found), "level": "written",
                "baseline": "the same payload through one socket into memory, p50",
                "p99_ms": median([f["p99_ms"] for f in found]),
                "p99_ms_rounds": [round(f["p99_ms"], 2) for f in found],
                "max_ms": max(f["max_ms"] for f in found),
            },
        )
    )  # fmt: skip
