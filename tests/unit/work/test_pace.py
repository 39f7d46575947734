"""How many messages are fetched ahead of user code."""

import pytest

from asapo_work.pace import AHEAD_S, MAX_AHEAD, QUICK_S, Pace


def test_it_begins_with_one() -> None:
    assert Pace().n == 1


def test_fast_user_code_gets_more_step_by_step_up_to_the_bound() -> None:
    pace = Pace()
    seen = []
    for _ in range(10):
        pace.used(pace.n, 1e-6)
        seen.append(pace.n)
    assert seen[0] == 4
    assert seen == sorted(seen)
    assert seen[-1] == MAX_AHEAD


def test_slow_user_code_gets_one_at_a_time() -> None:
    pace = Pace()
    pace.used(1, 0.0)
    pace.used(4, 40.0)
    assert pace.n == 1


def test_steady_user_code_gets_the_work_of_the_time_ahead() -> None:
    pace = Pace()
    for _ in range(10):
        pace.used(pace.n, pace.n * 0.01)
    assert pace.n == AHEAD_S / 0.01


@pytest.mark.parametrize(
    ("took_s", "full", "requests"), [(QUICK_S / 2, True, 2), (QUICK_S / 2, False, 1), (QUICK_S * 2, True, 1)]
)
def test_two_requests_are_for_quick_user_code_that_is_behind(took_s: float, full: bool, requests: int) -> None:
    pace = Pace()
    assert pace.requests == 1
    pace.used(10, QUICK_S / 2, full=True)
    pace.used(10, took_s, full=full)
    assert pace.requests == requests
