"""The checker on real services: those that are broken are named by it, those that are killed pass it."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from asapo.testing.checker import Content, Invariant, Report, check
from asapo.testing.checker.content import SMALL_SIZES, Weights
from asapo.testing.checker.local import run_under_kills
from asapo.testing.checker.mutants import MUTANTS as MODEL_MUTANTS
from asapo.testing.checker.run import Run
from asapo.testing.launch import LocalServices
from tests.e2e.programs import ROOT
from tests.faults.mutants import MUTANTS, VARIABLE

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

PATIENCE_S = 45.0
RESTART_S = 2.0
I1, I2, I3, I4, I5, I6, I7, I8, I9 = Invariant


@dataclass(frozen=True)
class Broken:
    """A broken service as a process, and how it shows."""

    name: str
    caught_by: Invariant
    also: frozenset[Invariant] = frozenset()
    service: str = "r1"
    messages: int = 300
    sizes: Weights = SMALL_SIZES
    killed: str = ""
    """Service that is killed once, and started again as a sound one if it is the broken one."""
    killed_after: int = 100
    """Acknowledged frames."""
    workers: int = 2
    send: dict[str, Any] = field(default_factory=dict)


BROKEN = [
    Broken("ack before write", I1, frozenset({I3, I6}), killed="r1", send={"rate_hz": 200}),
    Broken(
        "drop one frame in 10^4",
        I1,
        frozenset({I6}),
        messages=10_200,
        sizes=((50, 1),),
        workers=0,
        send={"under_way": 2000},
    ),
    Broken("swap two ids", I5, sizes=((500, 1),)),
    # The second of two may come late, behind where an ordered reader is.
    Broken("duplicate on retry", I4, frozenset({I3, I6, I7})),
    Broken("truncate last 512 B", I1, frozenset({I7})),
    Broken("flip one bit", I5),
    Broken(
        "forget the group pointer at restart",
        I4,
        service="broker",
        killed="broker",
        killed_after=400,
        messages=500,
        send={"rate_hz": 200},
    ),
    Broken("overwrite on id conflict", I5, frozenset({I6, I7}), send={"conflict_every": 20}),
    Broken("deliver the previous frame's buffer", I5, sizes=((5000, 1),)),
    Broken("deliver out of order", I3, service="broker"),
]


def checked(run: Run, services: LocalServices) -> Report:
    """Let the programs come to their end, read everything anew, and check."""
    run.finish()
    return check(run.evidence(tiers=[services.data_dir / "beamline"]))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_service_is_named_by_the_invariant_that_it_breaks(tmp_path: Path, broken: Broken) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    stand_in = ("tests.faults.mutants", {VARIABLE: broken.name, "PYTHONPATH": paths})
    content = Content(1, "s", broken.sizes)
    with (
        LocalServices(tmp_path / "data", stand_ins={broken.service: stand_in}, log_level="error") as services,
        Run(services.native, tmp_path / "run", content, messages=broken.messages, patience_s=PATIENCE_S,
            workers=broken.workers, **broken.send) as run,
    ):  # fmt: skip
        run.start()
        if broken.killed:
            run.wait_acked(broken.killed_after)
            run.note_kill("core" if broken.killed == "broker" else "receiver")
            services.kill(broken.killed)
            if broken.killed == "r1":
                services.cure("r1")
            services.restart(broken.killed)
        report = checked(run, services)
    assert broken.caught_by in report.violated, list(map(str, report.violations[:10]))
    assert report.violated <= {broken.caught_by} | broken.also, list(map(str, report.violations[:10]))


def test_the_broken_services_are_those_of_the_model() -> None:
    named = {mutant.name: mutant.caught_by for mutant in MODEL_MUTANTS}
    assert {one.name for one in BROKEN} == set(MUTANTS)
    assert {one.name: one.caught_by for one in BROKEN} == {name: named[name] for name in MUTANTS}


# -- sound services --------------------------------------------------------------------------------------------------


def _survive(tmp_path: Path, rounds: int, *, seed: int, messages: int, victims: list[str]) -> None:
    """Kill services in turn at random moments while frames of all sizes come; then check everything."""
    segment_bytes = 2**20
    sizes = (*((size, 10 * weight) for size, weight in SMALL_SIZES), (segment_bytes + 1, 1))
    with (
        LocalServices(tmp_path / "data", receivers=2, segment_bytes=segment_bytes) as services,
        Run(services.native, tmp_path / "run", Content(seed, "kills", sizes), messages=messages, rate_hz=130,
            patience_s=PATIENCE_S, conflict_every=40) as run,
    ):  # fmt: skip
        run.start()
        in_time = run_under_kills(run, services, victims, rounds, seed=seed)
        report = check(run.evidence(tiers=[services.data_dir / "beamline"]))
    report.require(*Invariant)
    assert in_time == rounds, "some kills came after the last frame: nothing was under way"
    back_s = [probe.took_s for probe in run.probes if "death" in probe.what and probe.took_s is not None]
    assert statistics.median(back_s) < RESTART_S, back_s


def test_sound_services_that_are_killed_keep_all_nine(tmp_path: Path) -> None:
    _survive(tmp_path, 3, seed=1, messages=900, victims=["r1", "broker", "r2"])


def _survive_programs(tmp_path: Path, rounds: int, *, messages: int) -> None:
    """Kill a worker and the producer in turn and start them again; the services have no excuse."""
    with (
        LocalServices(tmp_path / "data", receivers=2, session_timeout_s=4.0) as services,
        Run(services.native, tmp_path / "run", Content(3, "programs", SMALL_SIZES), messages=messages, rate_hz=150,
            patience_s=PATIENCE_S, lease_s=3.0) as run,
    ):  # fmt: skip
        run.start()
        worker = "w1"
        for _ in range(rounds):
            run.wait_acked(50)
            run.kill(worker)
            worker = run.restart_reader(worker)
            run.wait_acked(50)
            assert run.sending
            run.kill("producer")
            run.start_producer()
        run.finish()
        evidence = run.evidence(tiers=[services.data_dir / "beamline"])
    check(evidence).require(I1, I2, I3, I4, I5, I6, I7, I8)
    assert len(evidence.book.acked({"written"})) == messages
    assert [kill.component for kill in evidence.kills] == ["worker", "producer"] * rounds


def test_killed_workers_and_producers_are_no_fault_of_the_services(tmp_path: Path) -> None:
    _survive_programs(tmp_path, 1, messages=500)


def test_services_that_are_gone_are_a_verdict_and_no_crash(tmp_path: Path) -> None:
    with (
        LocalServices(tmp_path / "data") as services,
        Run(services.native, tmp_path / "run", Content(4, "gone", ((100, 1),)), messages=100_000, rate_hz=100,
            patience_s=PATIENCE_S) as run,
    ):  # fmt: skip
        run.start()
        run.wait_acked(5)
        run.patience_s = 1.0
        services.kill("broker")
        services.kill("r1")
        run.note_kill("power")
        run.finish()
        report = check(run.evidence())
    assert I8 in report.violated
    assert report.violated <= {I1, I8}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sound_services_keep_all_nine_over_200_kills(tmp_path: Path, soak_share: float) -> None:
    rounds = max(3, round(200 * soak_share))
    _survive(tmp_path, rounds, seed=2, messages=500 + 250 * rounds, victims=["r1", "r2", "broker", "r1"])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_workers_and_producers_killed_many_times_are_no_fault_of_the_services(
    tmp_path: Path, soak_share: float
) -> None:
    rounds = max(2, round(40 * soak_share))
    _survive_programs(tmp_path, rounds, messages=500 + 250 * rounds)
