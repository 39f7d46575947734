"""What a check has found: a verdict for each invariant, with every violation by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

SHOWN: Final = 5
"""Violations of one invariant that a summary spells out."""


class Invariant(StrEnum):
    """The nine promises, by the names that reports use."""

    I1 = "no acknowledged loss"
    I2 = "no invention"
    I3 = "order"
    I4 = "exactly once"
    I5 = "no torn read"
    I6 = "ledger"
    I7 = "all views agree"
    I8 = "liveness"
    I9 = "no leak"


class Verdict(StrEnum):
    """What is known of an invariant."""

    HELD = "held"
    VIOLATED = "violated"
    NOT_CHECKABLE = "not checkable"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that should not have been seen."""

    invariant: Invariant
    stream: str
    id: int
    """Message id; 0 when it is about no single message."""
    expected: str
    seen: str
    where: str
    """Who saw it."""

    def __str__(self) -> str:
        about = f"{self.stream} id {self.id}" if self.id else self.stream
        return (
            f"{self.invariant.name} {self.invariant}: {about}: {self.where}: expected {self.expected}, saw {self.seen}"
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one invariant."""

    invariant: Invariant
    verdict: Verdict
    reason: str
    """What was looked at, or why it could not be."""
    violations: tuple[Violation, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = [{**asdict(one), "invariant": one.invariant.name} for one in self.violations]
        return {
            "invariant": self.invariant.name, "name": self.invariant.value, "verdict": self.verdict.value,
            "reason": self.reason, "violations": plain,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """The findings on one or more streams."""

    findings: tuple[Finding, ...]

    @property
    def violations(self) -> list[Violation]:
        """Everything that is wrong."""
        return [one for finding in self.findings for one in finding.violations]

    @property
    def violated(self) -> set[Invariant]:
        """Names of what is broken."""
        return {one.invariant for one in self.violations}

    @property
    def checked(self) -> set[Invariant]:
        """What could be checked."""
        return {finding.invariant for finding in self.findings if finding.verdict is not Verdict.NOT_CHECKABLE}

    def require(self, *invariants: Invariant) -> None:
        """Raise AssertionError with all that is wrong, or when one of these (or any at all) could not be checked."""
        missing = set(invariants) - self.checked
        if self.violations or missing or not self.checked:
            unchecked = [f"{one.invariant.name} not checked: {one.reason}" for one in self.findings
                         if one.invariant in missing]  # fmt: skip
            raise AssertionError("\n".join([*summary(self.violations), *unchecked]) or "nothing was checked")


def summary(violations: Iterable[Violation], shown: int = SHOWN) -> list[str]:
    """Return the first violations of each invariant as lines, and how many more there are."""
    counts: Counter[Invariant] = Counter()
    lines = []
    for one in violations:
        counts[one.invariant] += 1
        if counts[one.invariant] <= shown:
            lines.append(str(one))
    more = [f"{name.name}: {count - shown} more" for name, count in counts.items() if count > shown]
    return lines + more


def merged(reports: Sequence[Report]) -> Report:
    """Return one report on several streams: violated beats held beats not checkable."""
    found = []
    for name in Invariant:
        same = [finding for report in reports for finding in report.findings if finding.invariant is name]
        violations = tuple(one for finding in same for one in finding.violations)
        held = next((one for one in same if one.verdict is Verdict.HELD), None)
        first = next((one for one in same if one.verdict is Verdict.VIOLATED), held or same[0])
        found.append(Finding(name, first.verdict, first.reason, violations))
    return Report(tuple(found))
