"""Asking the broker for messages that are there, beside a bare ROUTER echo of the same bytes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from benchmarks.conftest import Record
from benchmarks.measure import Figure, median, percentile
from benchmarks.path import ProductPath
from benchmarks.roles import Role

REPLY_BYTES = 400
BATCH = 100
FRAME_BYTES = 4096
PULSES = 64


def echo_role() -> None:
    """Echo: a ROUTER that answers every request with a few bytes, in a process of its own."""
    from benchmarks.roles import answer, rounds

    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    answer(port=router.bind_to_random_port("tcp://127.0.0.1"))

    def serve() -> None:
        reply = bytes(REPLY_BYTES)
        while True:
            identity, _header, _payload = router.recv_multipart()
            router.send_multipart([identity, reply, b""])

    threading.Thread(target=serve, daemon=True).start()
    for _ in rounds():
        answer()


def ask_echo(port: int, n: int) -> dict[str, float]:
    """Ask the echo n times, one after the other."""
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    taken_ms = []
    for _ in range(n):
        started_ns = time.perf_counter_ns()
        dealer.send_multipart([bytes(200), b""])
        dealer.recv_multipart()
        taken_ms.append((time.perf_counter_ns() - started_ns) / 1e6)
    dealer.close(0)
    return {"p50_ms": percentile(taken_ms, 50), "sum_s": sum(taken_ms) / 1e3}


@pytest.mark.figures("getnext-1", "getnext-batch")
def test_get_next(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """One client; n = 1 call by call, and n = 100 with prefetch; metadata only."""
    n, n_batch = (5000, 200_000) if full else (20, 1000)
    path = ProductPath(folder)
    ones: list[dict[str, float]] = []
    batches: list[dict[str, float]] = []
    echoes: list[dict[str, float]] = []
    try:
        with Role("test_getnext", "echo") as echo:
            port = echo.hear()["port"]
            path.ask_producer(do="trains", stream="stock", size=64, pulses=1000, n=n_batch)

            def run() -> None:
                count = len(ones)
                ones.append(path.ask_worker(do="get_next", stream="stock", group=f"one-{count}", batch=1, n=n))
                facts = {"stream": "stock", "group": f"many-{count}", "batch": BATCH, "n": n_batch}
                batches.append(path.ask_worker(do="get_next", **facts))

            benchmark.pedantic(run, setup=lambda: echoes.append(ask_echo(port, n)), rounds=rounds + 1)
    finally:
        path.close()
    ones, batches, echoes = ones[1:] or ones, batches[1:] or batches, echoes[1:] or echoes
    params = {"rounds": len(ones), "clients": 1, "baseline": "bare ROUTER echo, one process, one client"}
    rates = [(n / a["sum_s"]) / (n / b["sum_s"]) for a, b in zip(ones, echoes, strict=True)]
    record(
        Figure(
            "getnext-1",
            median([a["p50_ms"] for a in ones]),
            "ms p50",
            median([b["p50_ms"] for b in echoes]),
            median([a["p50_ms"] / b["p50_ms"] for a, b in zip(ones, echoes, strict=True)]),
            {**params, "calls": n, "p99_ms": median([a["p99_ms"] for a in ones]), "rate_ratio": median(rates)},
        )
    )
    record(
        Figure(
            "getnext-batch",
            median([n_batch / a["sum_s"] for a in batches]),
            "messages/s",
            median([n / b["sum_s"] for b in echoes]),
            median([(n_batch / a["sum_s"]) / (n / b["sum_s"]) for a, b in zip(batches, echoes, strict=True)]),
            {**params, "n": BATCH, "messages": n_batch},
        )
    )


@pytest.mark.figures("getnext-loaded")
def test_get_next_while_a_detector_sends(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """One client, call by call, on a stream that is there, while another one comes in; beside no load."""
    n, rate_hz, frames = (2000, 13_500, 13_500 * 6) if full else (5, 1000, 1000)
    frames -= frames % PULSES
    path = ProductPath(folder)
    idle: list[dict[str, float]] = []
    loaded: list[dict[str, float]] = []
    try:
        path.ask_producer(do="trains", stream="stock", size=64, pulses=1000, n=max(1000, n // 1000 * 1000))

        def run() -> None:
            load = {"do": "trains", "size": FRAME_BYTES, "pulses": PULSES, "n": frames, "rate_hz": rate_hz}
            count = len(loaded)
            facts = {"do": "get_next", "stream": "stock", "group": f"loaded-{count}", "batch": 1, "n": n}
            loaded.append(path.ask_under_load({**load, "stream": f"load-{count}"}, **facts))

        def alone() -> None:
            facts = {"do": "get_next", "stream": "stock", "group": f"idle-{len(idle)}", "batch": 1, "n": n}
            idle.append(path.ask_worker(**facts))

        benchmark.pedantic(run, setup=alone, rounds=rounds + 1)
    finally:
        path.close()
    idle, loaded = idle[1:] or idle, loaded[1:] or loaded
    record(
        Figure(
            "getnext-loaded",
            median([a["p50_ms"] for a in loaded]),
            "ms p50",
            median([a["p50_ms"] for a in idle]),
            median([a["p50_ms"] / b["p50_ms"] for a, b in zip(loaded, idle, strict=True)]),
            {
                "rounds": len(loaded), "clients": 1, "calls": n, "baseline": "the same without load",
                "p99_ms": median([a["p99_ms"] for a in loaded]), "baseline_p99_ms": median([a["p99_ms"] for a in idle]),
                "load": f"trains of {PULSES} frames of {FRAME_BYTES} B, {rate_hz} frames/s, one producer, one receiver",
            },
        )
    )  # fmt: skip


if __name__ == "__main__":
    echo_role()
