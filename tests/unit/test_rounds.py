"""Two rates compared in turn."""

import itertools

import pytest

from tests.faults.rounds import ratio_of


def test_three_rounds_are_enough_when_the_subject_keeps_up() -> None:
    order = list[str]()

    def subject() -> float:
        order.append("subject")
        return 95.0

    def baseline() -> float:
        order.append("baseline")
        return 100.0

    assert ratio_of(subject, baseline, at_least=0.9) == pytest.approx(0.95)
    assert order == ["baseline", "subject", "subject", "baseline", "baseline", "subject"]


def test_noise_in_some_rounds_asks_for_more_of_them() -> None:
    rates = iter([50.0, 100.0, 60.0, 99.0, 98.0, 1.0])
    assert ratio_of(lambda: next(rates), lambda: 100.0, at_least=0.9) == 0.98
    assert next(rates) == 1.0, "measured until the median told, and no longer"


def test_a_subject_that_is_always_slower_is_found_out() -> None:
    count = itertools.count()

    def subject() -> float:
        next(count)
        return 80.0

    assert ratio_of(subject, lambda: 100.0, at_least=0.9, most=5) == 0.8
    assert next(count) == 5
