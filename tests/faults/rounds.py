"""Comparing two rates on a machine that others use, too: a defect shows in every round, noise in some of them."""

import statistics
from collections.abc import Callable


def ratio_of(
    subject: Callable[[], float], baseline: Callable[[], float], *, at_least: float, rounds: int = 3, most: int = 9
) -> float:
    """Measure two rates in turn and return the median of `subject` to `baseline`.

    What slows a machine down for longer than a round slows both measurements of the round; what strikes one of them
    spoils one round, and the median does not see it. Every second round begins with the subject, so that a machine
    that becomes slower or faster all the while favours neither.

    Parameters
    ----------
    subject, baseline
        Measure once; both return a rate in the same unit, above 0.
    at_least
        What the caller will ask of the ratio: while the median is below, more rounds are measured.
    rounds, most
        So many rounds to begin with, and so many at most.
    """
    ratios: list[float] = []
    while len(ratios) < rounds or (statistics.median(ratios) < at_least and len(ratios) < most):
        if len(ratios) % 2:
            above = subject()
            below = baseline()
        else:
            below = baseline()
            above = subject()
        ratios.append(above / below)
    return statistics.median(ratios)
