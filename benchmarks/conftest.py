"""Collects the figures of a run, prints them as a table, writes `results.json`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.measure import Figure, bench_folder, machine

Record = Callable[[Figure], None]
RESULTS = Path(__file__).parent / "results.json"
_figures: list[Figure] = []


def pytest_configure(config: pytest.Config) -> None:
    """Declare our marker."""
    config.addinivalue_line("markers", "figures(*ids): figures that the benchmark gives")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the benchmarks that ASAPO_BENCH_ONLY names, by the beginnings of their figures' ids."""
    wanted = [name for name in os.environ.get("ASAPO_BENCH_ONLY", "").split(",") if name]
    if not wanted:
        return
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        ids = [str(id_) for mark in item.iter_markers("figures") for id_ in mark.args]
        (kept if any(id_.startswith(name) for id_ in ids for name in wanted) else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether figures are measured; otherwise each benchmark runs once, small, as a plain test."""
    return bool(request.config.getoption("benchmark_enable", default=False))


@pytest.fixture
def rounds(full: bool) -> int:
    """Return the number of counted rounds; one more before them is thrown away."""
    return int(os.environ.get("ASAPO_BENCH_ROUNDS", "5")) if full else 1


@pytest.fixture
def record(full: bool) -> Record:
    """Take note of a figure; of a plain test's run nothing is kept."""

    def keep(figure: Figure) -> None:
        if full:
            _figures.append(figure)
            _write(figure)  # at once: a run that is cut off keeps what it measured

    return keep


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder for the run's files."""
    with bench_folder() as path:
        yield path


def _write(figure: Figure) -> None:
    """Put a figure into `results.json`, in the place of an older one of the same id."""
    known = {entry["id"]: entry for entry in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    entry = dataclasses.asdict(figure)
    known[figure.id] = {**entry, "params": {**entry["params"], "machine": machine()}}
    RESULTS.write_text(json.dumps([known[name] for name in sorted(known)], indent=1) + "\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not _figures:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'id':<18} {'value':>10} {'unit':<12} {'baseline':>10} {'ratio':>7}")
    for figure in _figures:
        baseline = "" if figure.baseline is None else f"{figure.baseline:.4g}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        write(f"{figure.id:<18} {figure.value:>10.4g} {figure.unit:<12} {baseline:>10} {ratio:>7}")
    write(f"written to {RESULTS.name}")
