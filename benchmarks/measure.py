"""Measuring: CPU time of processes, warm guest memory, medians, and the record of one figure."""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MB = 1_000_000
GB = 1_000_000_000
CHUNK_BYTES = 8 * MB
AHEAD_BYTES = 64 * 1024 * 1024
"""Warm memory is let go of in steps of this."""
WARM_MORE_BYTES = 500 * MB
"""Warmed beside twice the bytes of a round: buffers, and pages that the system hands out in another order."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of `results.json`."""

    id: str
    value: float
    unit: str
    baseline: float | None
    """The same quantity, measured for the baseline in the same run."""
    ratio: float | None
    """value / baseline of the same round, median over the rounds."""
    params: dict[str, Any] = field(default_factory=dict)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that a live process has used so far, all threads."""
    return time.clock_gettime((~pid << 3) | 2)  # the kernel's per-process CPU clock of another process


def peak_bytes(pid: int) -> int:
    """Return the most memory that a live process has had resident."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class CpuMeter:
    """CPU seconds of named processes between `start` and `stop`."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._before: dict[str, float] = {}

    def start(self) -> None:
        """Begin."""
        self._before = {name: cpu_s(pid) for name, pid in self._pids.items()}

    def stop(self) -> dict[str, float]:
        """Return CPU seconds by name."""
        return {name: cpu_s(pid) - self._before[name] for name, pid in self._pids.items()}


def warm_memory(folder: Path, nbytes: int) -> None:
    """Write and delete `nbytes`, so that the virtual machine's memory is really there before anything is measured.

    First touch of guest memory runs at a tenth of the speed or less and would be charged to whoever comes first. A host
    may take freed memory back within seconds, so this is done right before each round of each design. Runs that measure
    nothing (plain tests) do without.
    """
    if not os.environ.get("ASAPO_BENCH_WARM"):
        return
    chunk = bytes(CHUNK_BYTES)
    path = folder / "warm"
    with open(path, "wb", buffering=0) as file:
        for _ in range(nbytes // CHUNK_BYTES):
            file.write(chunk)
    path.unlink()


@contextmanager
def warm_ahead(nbytes: int) -> Iterator[None]:
    """Keep warm memory for a run that needs up to `nbytes` of it over seconds: held back, and let go of as it is used.

    What `warm_memory` leaves free is taken back by the host long before such a run comes to use it.
    """
    if not os.environ.get("ASAPO_BENCH_WARM"):
        yield
        return
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory would not be let go of
    memory = mmap.mmap(-1, nbytes // AHEAD_BYTES * AHEAD_BYTES + 2 * AHEAD_BYTES, flags=private)
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at] = 1
    done = threading.Event()
    enough = free_bytes() + AHEAD_BYTES

    def let_go() -> None:
        for at in range(0, len(memory), AHEAD_BYTES):
            while free_bytes() > enough:
                if done.wait(0.005):
                    return
            memory.madvise(mmap.MADV_DONTNEED, at, AHEAD_BYTES)

    thread = threading.Thread(target=let_go)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        memory.close()


def free_bytes() -> int:
    """Return how much memory of this machine nobody uses."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemFree:"))
    return int(line.split()[1]) * 1024


@contextmanager
def bench_folder() -> Iterator[Path]:
    """Give a folder for the files of a benchmark: in `ASAPO_BENCH_DIR`, else in the temporary folder of the system."""
    folder = Path(tempfile.mkdtemp(prefix="asapo-bench-", dir=os.environ.get("ASAPO_BENCH_DIR")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, Any]:
    """Return what a reader of the figures must know of the machine."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    today = time.strftime("%Y-%m-%d")
    return {
        "date": today,
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def median(values: list[float]) -> float:
    """Return the median, rounded to four digits."""
    return float(f"{statistics.median(values):.4g}")


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of all values do not exceed."""
    ordered = sorted(values)
    at = min(len(ordered) - 1, max(0, int(len(ordered) * percent / 100 + 0.999999) - 1))
    return ordered[at]
