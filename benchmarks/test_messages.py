"""Small messages: trains with metadata of their own, and single messages, one `send` each."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from asapo.testing.launch import LocalServices
from benchmarks.conftest import Record
from benchmarks.measure import CpuMeter, Figure, median, warm_ahead
from benchmarks.path import BaselinePath, ProductPath
from benchmarks.product import BEAMTIME, SOURCE
from benchmarks.roles import Role

FRAME_BYTES = 4096
PULSES = 64
XFEL_HZ = 27_000
"""Pulses a second of the European XFEL."""


def run_trains(path: ProductPath, n: int, **facts: Any) -> dict[str, Any]:
    """One round of trains, delivered to one worker; return rate and CPU by process."""
    with warm_ahead(FRAME_BYTES * n):
        answers, cpu = path.round("trains", size=FRAME_BYTES, pulses=PULSES, n=n, **facts)
    assert answers["failed"] == 0
    seconds = answers["ended_s"] - answers["started_s"]
    return {"rate": n / seconds, "seconds": seconds, "cpu": cpu, "cores": {k: v / seconds for k, v in cpu.items()}}


@pytest.mark.figures("trains-4kB")
def test_trains(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """Trains of 64 frames of 4 kB, indexed and delivered to one worker, as fast as it goes: 30 s a round."""
    n = PULSES * (30_000 if full else 10)
    path = ProductPath(folder)
    baseline = BaselinePath(folder)
    found: list[dict[str, Any]] = []
    bare: list[float] = []
    try:
        # The baseline moves the same bytes in units of a train, without any notion of a message.
        benchmark.pedantic(
            lambda: found.append(run_trains(path, n)),
            setup=lambda: bare.append(
                baseline.run(FRAME_BYTES * PULSES, n // PULSES // 10 or 1).gb_per_s * 1e9 / FRAME_BYTES
            ),
            rounds=rounds + 1,
        )
    finally:
        path.close()
        baseline.close()
    found, bare = found[1:] or found, bare[1:] or bare
    record(
        Figure(
            "trains-4kB",
            median([f["rate"] for f in found]),
            "frames/s",
            median(bare),
            median([f["rate"] / b for f, b in zip(found, bare, strict=True)]),
            {
                "frame_bytes": FRAME_BYTES, "pulses": PULSES, "frames": n, "rounds": len(found), "level": "written",
                "seconds": [round(f["seconds"], 1) for f in found],
                "rates": [round(f["rate"]) for f in found],
                "cores": {k: median([f["cores"][k] for f in found]) for k in found[0]["cores"]},
                "processes": "producer, receiver, core, worker",
            },
        )
    )  # fmt: skip


@pytest.mark.figures("trains-27k")
def test_trains_at_the_rate_of_the_european_xfel(
    benchmark: Any, folder: Path, record: Record, full: bool, rounds: int
) -> None:
    """27 000 frames a second with two declared keys: what producer and receiver need of a core together."""
    n = PULSES * (XFEL_HZ * 10 // PULSES if full else 10)
    path = ProductPath(folder, declared_keys=("train_id", "energy_kev"))
    found: list[dict[str, Any]] = []
    try:
        benchmark.pedantic(lambda: found.append(run_trains(path, n, rate_hz=XFEL_HZ)), rounds=rounds + 1)
    finally:
        path.close()
    found = found[1:] or found
    record(
        Figure(
            "trains-27k",
            median([f["cores"]["producer"] + f["cores"]["receiver"] for f in found]),
            "cores",
            None,
            None,
            {
                "frame_bytes": FRAME_BYTES, "pulses": PULSES, "frames": n, "rate_hz": XFEL_HZ, "rounds": len(found),
                "declared_keys": 2, "rates": [round(f["rate"]) for f in found],
                "cores": {k: median([f["cores"][k] for f in found]) for k in found[0]["cores"]},
            },
        )
    )  # fmt: skip


@pytest.mark.figures("single-4kB")
def test_single_messages(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """One `send` for each 4 kB message: stored, indexed, acknowledged; packed by the SDK, and not packed."""
    n = 60_000 if full else 100
    packed: list[dict[str, float]] = []
    alone: list[dict[str, float]] = []
    with LocalServices(folder / "product") as services, Role("product", "producer", services.native) as producer:
        count = iter(range(1_000_000))

        def run(pack: bool) -> dict[str, float]:
            meter = CpuMeter({"producer": producer.pid, "receiver": services.pid("r1")})
            stream = f"s{next(count)}"
            with warm_ahead(FRAME_BYTES * n):
                meter.start()
                sent = producer.ask(do="frames", stream=stream, size=FRAME_BYTES, n=n, pack=pack)
                cpu = meter.stop()
            # Its snapshot may be on its way into the folder: what is left then goes with the services.
            shutil.rmtree(services.data_dir / "beamline" / BEAMTIME / SOURCE / stream, ignore_errors=True)
            rate = n / (sent["acked_s"] - sent["started_s"])
            return {"rate": rate, **{f"{k}_us": v / n * 1e6 for k, v in cpu.items()}}

        benchmark.pedantic(lambda: packed.append(run(True)), setup=lambda: alone.append(run(False)), rounds=rounds + 1)
    packed, alone = packed[1:] or packed, alone[1:] or alone
    record(
        Figure(
            "single-4kB",
            median([p["rate"] for p in packed]),
            "messages/s",
            median([a["rate"] for a in alone]),
            median([p["rate"] / a["rate"] for p, a in zip(packed, alone, strict=True)]),
            {
                "frame_bytes": FRAME_BYTES, "frames": n, "rounds": len(packed), "level": "written",
                "baseline": "the same without packing: one wire unit for each message",
                "packed": {k: median([p[k] for p in packed]) for k in packed[0]},
                "not_packed": {k: median([a[k] for a in alone]) for k in alone[0]},
            },
        )
    )  # fmt: skip
