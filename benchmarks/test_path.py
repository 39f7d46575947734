"""The path: producer → stored, indexed, acknowledged → a worker reads every byte. Beside the bare baseline."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Record
from benchmarks.measure import GB, Figure, median
from benchmarks.path import BaselinePath, ProductPath, Round, unit_costs

SIZES = {"4kB": 4096, "64kB": 65_536, "1.2MB": 1_200_000, "2MB": 2_000_000, "8MB": 8_000_000, "25MB": 25_000_000}
ROUND_BYTES = 0.8 * GB
MOST_FRAMES = 40_000
UNIT_COST_LIMIT = 1.3
"""The baseline is good when it needs at most this much more CPU than its steps, measured alone in the same run."""


def frames_of(size: int, full: bool) -> int:
    """Return how many frames make a round."""
    return max(16, min(MOST_FRAMES, int(ROUND_BYTES // size))) if full else 16


def alternate(
    benchmark: Any, ours: Any, theirs: Any, size: int, n: int, rounds: int
) -> tuple[list[Round], list[Round]]:
    """Run both designs in turn, the first round of each thrown away."""
    us: list[Round] = []
    them: list[Round] = []
    benchmark.pedantic(
        lambda: us.append(ours.run(size, n)), setup=lambda: them.append(theirs.run(size, n)), rounds=rounds + 1
    )
    return us[1:] or us, them[1:] or them


def figure(name: str, us: list[Round], them: list[Round], **params: Any) -> Figure:
    """Return the figure of a path, its throughput ratio, and its CPU ratio among the parameters."""
    ratios = [a.gb_per_s / b.gb_per_s for a, b in zip(us, them, strict=True)]
    cpu_ratios = [a.cpu_sum / b.cpu_sum for a, b in zip(us, them, strict=True)]
    by_process = {
        who: median([r.cpu_s_per_gb[who] for r in us]) for who in us[0].cpu_s_per_gb
    }  # fmt: skip
    return Figure(
        name,
        median([r.gb_per_s for r in us]),
        "GB/s",
        median([r.gb_per_s for r in them]),
        median(ratios),
        {
            **params,
            "rounds": len(us),
            "cpu_s_per_gb": by_process,
            "cpu_s_per_gb_sum": median([r.cpu_sum for r in us]),
            "cpu_s_per_gb_baseline": median([r.cpu_sum for r in them]),
            "cpu_ratio": median(cpu_ratios),
            "gb_per_s_rounds": [round(r.gb_per_s, 3) for r in us],
            "gb_per_s_baseline_rounds": [round(r.gb_per_s, 3) for r in them],
            "processes": "producer, receiver, core, worker",
            "level": "written",
        },
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.figures(f"path-{name}"), id=name) for name in SIZES]
)
def test_path(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int, name: str) -> None:
    """Frames of one size, one message each, one producer, one receiver, one worker on the same host."""
    size = SIZES[name]
    n = frames_of(size, full)
    baseline, product = BaselinePath(folder), ProductPath(folder)
    try:
        us, them = alternate(benchmark, product, baseline, size, n, rounds)
        units = unit_costs(folder, size, n) if full else {}
    finally:
        product.close()
        baseline.close()
    if full and size >= 1_000_000:
        found, needed = statistics.median([r.cpu_sum for r in them]), sum(units.values())
        assert found <= UNIT_COST_LIMIT * needed, (
            f"the baseline is bad: {found:.2f} CPU-s/GB, its steps need {needed:.2f}"
        )
    record(figure(f"path-{name}", us, them, frame_bytes=size, frames=n, unit_costs_cpu_s_per_gb=units))


@pytest.mark.figures("path-remote-2MB")
def test_path_to_a_remote_worker(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """The worker may not map the files and fetches every payload from the data server."""
    size = SIZES["2MB"]
    n = frames_of(size, full)
    baseline, product = BaselinePath(folder), ProductPath(folder, access="fetch")
    try:
        us, them = alternate(benchmark, product, baseline, size, n, rounds)
    finally:
        product.close()
        baseline.close()
    record(figure("path-remote-2MB", us, them, frame_bytes=size, frames=n))
