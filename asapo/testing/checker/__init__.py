"""The checker: proves on what was sent and what was read that nothing is lost, doubled, changed or out of order.

A pure core (`check` on an `Evidence`); programs that gather the evidence on real services, in `run`; and the proof that
the core finds what it is there to find, in `simulation` and `mutants`. `cli` is `asapo selfcheck`.
"""

from asapo.testing.checker.book import Book, BookWriter, read_book
from asapo.testing.checker.content import Content, sizes_up_to
from asapo.testing.checker.evidence import Evidence, Kill, Probe, Reading, Resource, Seen, ServerLedger, Way
from asapo.testing.checker.invariants import check
from asapo.testing.checker.report import Finding, Invariant, Report, Verdict, Violation

__all__ = [
    "Book",
    "BookWriter",
    "Content",
    "Evidence",
    "Finding",
    "Invariant",
    "Kill",
    "Probe",
    "Reading",
    "Report",
    "Resource",
    "Seen",
    "ServerLedger",
    "Verdict",
    "Violation",
    "Way",
    "check",
    "read_book",
    "sizes_up_to",
]
