"""Faults are counted exactly, and time does not drift."""

from collections import Counter

import pytest

from asapo.errors import WrongInput
from asapo_produce.detectors.faults import Faults, Kind, Run, Share, parse_share
from asapo_produce.detectors.pacing import Pacer
from tests.unit.detectors.fakes import FakeClock


def fates(faults: Faults, n: int, block: int = 1) -> Counter[str]:
    found: Counter[str] = Counter()
    for run in faults.runs(n, block):
        found[run.kind] += run.n
    return found


def ids_of(faults: Faults, n: int, kind: Kind) -> list[int]:
    return [i for run in faults.runs(n, 1) if run.kind is kind for i in range(run.first, run.first + run.n)]


def test_shares_are_exact_in_every_full_group() -> None:
    faults = Faults(skip=Share(1, 100), repeat=Share(2, 50), conflict=Share(1, 250), seed=7)
    skipped = ids_of(faults, 1000, Kind.SKIP)
    assert [(i - 1) // 100 for i in skipped] == list(range(10))
    found = fates(faults, 1000)
    assert found[Kind.SEND] + found[Kind.SKIP] == 1000
    # What is skipped cannot be repeated.
    assert 40 - found[Kind.SKIP] <= found[Kind.REPEAT] <= 40
    assert fates(Faults(repeat=Share(2, 50), seed=7), 1000)[Kind.REPEAT] == 40
    assert fates(Faults(conflict=Share(1, 250), seed=7), 1000)[Kind.CONFLICT] == 4


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    first = Faults(skip=Share(3, 40), reorder=8, seed=1)
    assert list(first.runs(400, 4)) == list(Faults(skip=Share(3, 40), reorder=8, seed=1).runs(400, 4))
    assert list(first.runs(400, 4)) != list(Faults(skip=Share(3, 40), reorder=8, seed=2).runs(400, 4))


def test_reordering_keeps_every_id_within_its_group() -> None:
    order = ids_of(Faults(reorder=10, seed=3), 95, Kind.SEND)
    assert order != sorted(order)
    assert sorted(order) == list(range(1, 96))
    assert all((i - 1) // 10 == place // 10 for place, i in enumerate(order))


def test_without_faults_ids_come_in_whole_blocks_and_a_rest() -> None:
    assert list(Faults().runs(10, 4)) == [
        Run(Kind.SEND, 1, 4, 0),
        Run(Kind.SEND, 5, 4, 4),
        Run(Kind.SEND, 9, 2, 8),
    ]


def test_runs_with_faults_never_cross_a_block() -> None:
    for run in Faults(skip=Share(1, 7), repeat=Share(1, 9), seed=5).runs(300, 6):
        assert (run.first - 1) // 6 == (run.first + run.n - 2) // 6


@pytest.mark.parametrize("text", ["x", "", "-1/3", "1/0", "3/2", "1.5"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(WrongInput, match="share"):
        parse_share(text)


def test_a_late_wake_up_does_not_shift_later_moments() -> None:
    clock = FakeClock()

    def oversleep(for_s: float) -> None:
        clock.sleep(for_s + 0.004)

    pacer = Pacer(clock=clock, sleep=oversleep)
    for tick in range(1001):
        pacer.wait_until(tick / 100)
    assert clock.now_s == pytest.approx(100 + 10.004)
    assert pacer.behind_s == 0


def test_what_was_missed_is_caught_up_without_waiting() -> None:
    clock = FakeClock()
    pacer = Pacer(clock=clock, sleep=clock.sleep)
    pacer.wait_until(0)
    clock.now_s += 1
    for tick in range(1, 11):
        pacer.wait_until(tick / 10)
    assert not clock.slept_s
    assert pacer.behind_s == pytest.approx(0.9)
    pacer.wait_until(1.1)
    assert clock.slept_s == [pytest.approx(0.1)]
