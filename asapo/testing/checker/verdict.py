"""How an invariant's function comes to its finding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from asapo.testing.checker.evidence import Evidence
from asapo.testing.checker.report import Finding, Invariant, Verdict, Violation


class Blame:
    """Collects the violations of one invariant on one stream."""

    def __init__(self, invariant: Invariant, stream: str) -> None:
        self.invariant = invariant
        self.stream = stream
        self.violations: list[Violation] = []

    def violation(self, message_id: int, expected: str, seen: str, where: str) -> Violation:
        """Return a violation of this invariant."""
        return Violation(self.invariant, self.stream, message_id, expected, seen, where)

    def add(self, message_id: int, expected: str, seen: str, where: str) -> None:
        """Note a violation; `message_id` 0 stands for none."""
        self.violations.append(self.violation(message_id, expected, seen, where))

    def verdict(self, held: str) -> Finding:
        """Return violated with all violations, or held because of what was looked at."""
        if self.violations:
            return Finding(self.invariant, Verdict.VIOLATED, f"{len(self.violations)} violations",
                           tuple(self.violations))  # fmt: skip
        return Finding(self.invariant, Verdict.HELD, held)

    def cannot(self, reason: str) -> Finding:
        """Return not checkable; what was found wrong all the same counts."""
        if self.violations:
            return self.verdict("")
        return Finding(self.invariant, Verdict.NOT_CHECKABLE, reason)


def decide(given: Evidence, invariant: Invariant, function: Callable[[Evidence], Finding]) -> Finding:
    """Return the finding of a function, with the reason that whoever observed knows better why it could not be."""
    found = function(given)
    note = given.notes.get(invariant.name)
    return dataclasses.replace(found, reason=note) if note and found.verdict is Verdict.NOT_CHECKABLE else found
