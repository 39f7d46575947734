"""Many clients at once: whether the core's rate, its fairness between groups, and its memory hold."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Record
from benchmarks.measure import Figure, median, peak_bytes, percentile
from benchmarks.path import ProductPath
from benchmarks.roles import Role

PROCESSES = 4
GROUPS = 10
BATCH = 10


def one_round(crowd: list[Role], stream: str, number: int, clients: int, seconds: float) -> dict[str, float]:
    """Let that many clients read for a while; return rate, fairness between groups and times of the requests."""
    for role in crowd:
        role.tell(
            stream=stream, round=number, clients=clients // len(crowd), groups=GROUPS, seconds=seconds, batch=BATCH
        )
    for role in crowd:
        assert role.hear()["connected"]
    for role in crowd:
        role.tell(go=True)
    answers = [role.hear() for role in crowd]
    taken = sum((Counter(found["taken"]) for found in answers), Counter[str]())
    taken_ms = [ms for found in answers for ms in found["taken_ms"]]
    rates = [sum(found["taken"].values()) / found["seconds"] for found in answers]
    p50, p99 = percentile(taken_ms, 50), percentile(taken_ms, 99)
    return {
        "rate": sum(rates), "p50_ms": p50, "p99_ms": p99, "p99_by_p50": p99 / p50,
        "slowest_by_fastest": min(taken.values()) / max(taken.values()),
        "idlest": min(found["idlest"] for found in answers),
    }  # fmt: skip


@pytest.mark.figures("clients-1000")
def test_a_thousand_clients(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """1000 consumers in 10 groups, metadata only, 10 messages a request, all acknowledged; beside 100 of them."""
    many, few, seconds, n = (1000, 100, 5.0, 400_000) if full else (40, 20, 0.1, 20_000)
    found: list[dict[str, float]] = []
    fewer: list[dict[str, float]] = []
    numbers: Iterator[int] = itertools.count()
    path = ProductPath(folder)
    try:
        with ExitStack() as stack:
            crowd = [stack.enter_context(Role("crowd", path.services.native)) for _ in range(PROCESSES)]
            path.ask_producer(do="trains", stream="stock", size=64, pulses=1000, n=n)
            benchmark.pedantic(
                lambda: found.append(one_round(crowd, "stock", next(numbers), many, seconds)),
                setup=lambda: fewer.append(one_round(crowd, "stock", next(numbers), few, seconds)),
                rounds=rounds + 1,
            )
        core_bytes = peak_bytes(path.pids()["core"])
    finally:
        path.close()
    found, fewer = found[1:] or found, fewer[1:] or fewer
    record(
        Figure(
            "clients-1000",
            median([f["rate"] for f in found]),
            "messages/s",
            median([f["rate"] for f in fewer]),
            median([a["rate"] / b["rate"] for a, b in zip(found, fewer, strict=True)]),
            {
                "clients": many, "groups": GROUPS, "processes": PROCESSES, "batch": BATCH, "rounds": len(found),
                "seconds": seconds, "messages": n, "baseline": f"the same with {few} clients",
                "core_peak_mb": round(core_bytes / 1e6),
                **{key: median([f[key] for f in found]) for key in found[0] if key != "rate"},
                "baseline_p50_ms": median([f["p50_ms"] for f in fewer]),
            },
        )
    )  # fmt: skip
