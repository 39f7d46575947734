"""The checker on services in memory: the sound ones pass under a thousand schedules, each broken one is named."""

from collections import Counter

import pytest

from asapo.testing.checker.invariants import check
from asapo.testing.checker.model import Model
from asapo.testing.checker.mutants import MUTANTS, RARE, DropOne, Mutant
from asapo.testing.checker.report import Invariant
from asapo.testing.checker.simulation import INGEST_ONLY, simulate, simulations

SEEDS = range(1000)
TEN = (
    "ack before write", "drop one frame in 10^4", "swap two ids", "duplicate on retry", "truncate last 512 B",
    "flip one bit", "skip directory fsync", "forget the group pointer at restart", "overwrite on id conflict",
    "deliver the previous frame's buffer",
)  # fmt: skip
ROUNDS = 40
LEAST = {"index before journal": 5, "replay without sync": 2}
"""Runs out of `ROUNDS` that must catch a mutant which shows in rare coincidences; half of them for the others."""


@pytest.mark.parametrize("first", range(0, len(SEEDS), 250))
def test_the_sound_services_pass_every_schedule(first: int) -> None:
    assert dict(simulations(SEEDS[first : first + 250])) == {}


def test_every_invariant_is_checked_on_the_model_and_faults_do_happen() -> None:
    evidence = [simulate(seed) for seed in range(40)]
    for one in evidence:
        check(one).require(*Invariant)
    kills = Counter(kill.component for one in evidence for kill in one.kills)
    assert min(kills["receiver"], kills["core"]) > len(evidence) / 2
    assert kills["power"] > 0
    assert any(reading.errors or reading.holes for one in evidence for reading in one.readings)
    assert any(seen.attempt > 1 for one in evidence for reading in one.readings for seen in reading.seen)


def test_a_schedule_is_the_same_every_time() -> None:
    assert simulate(3) == simulate(3)
    assert simulate(3) != simulate(4)


def test_the_ten_are_there_and_every_invariant_has_a_mutant_of_its_own() -> None:
    assert tuple(mutant.name for mutant in MUTANTS)[: len(TEN)] == TEN
    assert {mutant.caught_by for mutant in MUTANTS} == set(Invariant)
    assert all(issubclass(mutant.model, Model) for mutant in MUTANTS)


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if one.model is not DropOne], ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_by_its_invariant_and_by_no_unrelated_one(mutant: Mutant) -> None:
    caught = 0
    for seed in range(ROUNDS):
        violated = check(simulate(seed, mutant.model, power=mutant.power, without=mutant.without)).violated
        if violated:
            caught += 1
            assert mutant.caught_by in violated, (seed, violated)
            assert violated <= {mutant.caught_by} | mutant.also, (seed, violated)
    assert caught >= LEAST.get(mutant.name, ROUNDS / 2)


def test_one_frame_dropped_in_ten_thousand_is_found_and_named() -> None:
    evidence = simulate(1, DropOne, messages=RARE + 500, sizes=((0, 1), (9, 9)), power=False, without=INGEST_ONLY)
    report = check(evidence)
    assert report.violated == {Invariant.I1, Invariant.I6}
    lost = {one.id for one in report.violations if one.invariant is Invariant.I1}
    assert len(lost) == 1
    assert lost <= evidence.book.sent.keys()
