"""The nine invariants as pure functions: from the producer's book and what was observed to named violations.

`check` runs them all. Each function returns its verdict with what it looked at, so that a report says what was *not*
checked, too.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from asapo.testing.checker.book import Invocation
from asapo.testing.checker.delivery import check_once, check_order
from asapo.testing.checker.evidence import Evidence, Reading, Way
from asapo.testing.checker.report import Finding, Invariant, Report
from asapo.testing.checker.verdict import Blame, decide

GROUPED: Final = frozenset({Way.ORDERED, Way.WORKER})


@dataclass(frozen=True, slots=True)
class View:
    """What is there, as one reader or all workers of a group together found it."""

    name: str
    ids: frozenset[int]
    broken: Mapping[int, str]
    """Ids that are there and cannot be read, with the error's code."""
    claims: frozenset[int] | None
    """Ids it can speak of; None for all."""

    def lacks(self, ids: Iterable[int]) -> list[int]:
        """Return those of `ids` that this view should have and does not."""
        return sorted(one for one in ids if (self.claims is None or one in self.claims) and one not in self.ids)


def views(readings: Iterable[Reading], *, final: bool) -> list[View]:
    """Return the complete views; with `final` only those that began after the last fault."""
    groups: dict[str, list[Reading]] = defaultdict(list)
    found = []
    for reading in readings:
        if final and not reading.final:
            continue
        if reading.way in GROUPED:
            groups[reading.group].append(reading)
        elif reading.way is Way.OFFLINE and reading.complete:
            found.append(_view(str(reading), [reading], None))
        elif reading.way is Way.BY_ID:
            found.append(_view(str(reading), [reading], reading.asked))
    for group, members in groups.items():
        if any(one.complete for one in members):
            name = str(members[0]) if len(members) == 1 else f"{len(members)} workers of group {group}"
            found.append(_view(name, members, None))
    return found


def _view(name: str, readings: list[Reading], claims: frozenset[int] | None) -> View:
    ids = frozenset(one.id for reading in readings for one in reading.seen)
    errors = {one.id: one.detail for reading in readings for one in reading.errors}
    return View(name, ids, {one: errors[one] for one in errors.keys() - ids}, claims)


def no_acknowledged_loss(given: Evidence) -> Finding:
    """I1: whatever was acknowledged at a level that survives the faults can be read in every way."""
    acked = given.book.acked(given.survivors)
    blame = Blame(Invariant.I1, given.book.content.stream)
    found = views([_answers_after_ack(one, acked) for one in given.readings], final=False)
    for view in found:
        for message_id in view.lacks(acked):
            error = view.broken.get(message_id)
            seen = f"the error {error}" if error else "nothing"
            blame.add(message_id, f"the frame acknowledged as {acked[message_id].detail}", seen, view.name)
    if not acked:
        return blame.cannot(f"no frame was acknowledged at a level of {', '.join(sorted(given.survivors))}")
    if not found:
        return blame.cannot("no reader came to the end of the stream")
    return blame.verdict(f"{len(acked)} acknowledged frames looked for in {len(found)} ways")


def _answers_after_ack(reading: Reading, acked: Mapping[int, Invocation]) -> Reading:
    """Leave out what a reader by id was told before the frame was acknowledged, or while services were away."""
    if reading.way is not Way.BY_ID:
        return reading
    holes = tuple(one for one in reading.holes if one.id in acked and one.t_ns > acked[one.id].settled_ns)
    return dataclasses.replace(reading, holes=holes, errors=reading.errors if reading.final else ())


def no_invention(given: Evidence) -> Finding:
    """I2: only what was sent can be read; what was refused or never answered at most once."""
    blame = Blame(Invariant.I2, given.book.content.stream)
    outcomes = given.book.outcomes()
    n_seen = 0
    for reading in given.readings:
        first: set[int] = set()
        for one in reading.seen:
            n_seen += 1
            if one.id not in outcomes:
                blame.add(one.id, "nothing: nobody sent this id", str(one), str(reading))
            elif reading.way is Way.OFFLINE and one.id in first and outcomes[one.id] != "ACK":
                blame.add(one.id, f"a frame with outcome {outcomes[one.id]} at most once", "it twice", str(reading))
            first.add(one.id)
    return blame.verdict(f"{n_seen} frames that were read are in the journal") if n_seen else blame.cannot(NO_READER)


NO_READER: Final = "nothing was read"


def no_torn_read(given: Evidence) -> Finding:
    """I5: never wrong bytes without an error; the first content of an id stays."""
    blame = Blame(Invariant.I5, given.book.content.stream)
    n_seen = 0
    for message_id, tries in given.book.sent.items():
        acked = list({one.sha256: one for one in tries if one.outcome == "ACK"}.values())
        if len(acked) > 1:
            blame.add(message_id, "other content refused as duplicate_id", "both contents acknowledged", "the producer")
    for reading in given.readings:
        for one in reading.seen:
            n_seen += 1
            allowed = given.book.allowed(one.id)
            if not allowed:
                continue  # invented: I2 says so
            right = any((one.sha256, one.size) == (sent.sha256, sent.size) for sent in allowed)
            if not right or one.named != one.id:
                sent = allowed[0]
                expected = f"{sent.size} bytes {sent.sha256[:12]} naming {one.id}"
                blame.add(one.id, expected, str(one), str(reading))
    return blame.verdict(f"{n_seen} frames compared by SHA-256") if n_seen else blame.cannot(NO_READER)


def ledger(given: Evidence) -> Finding:
    """I6: sent = stored + refused + lost-reported, by the services' counters and by the journal."""
    blame = Blame(Invariant.I6, given.book.content.stream)
    counted = given.ledger
    if counted is None:
        return blame.cannot("the services were not asked for their counters")
    book = given.book
    sure = book.acked(given.survivors)
    doubtful = {one: book.allowed(one)[0].size for one in book.sent if one not in sure}
    final = views(given.readings, final=True)
    present = set().union(*(view.ids for view in final if view.claims is None)) if final else set()
    whole = any(view.claims is None for view in final)
    sizes = {message_id: one.size for message_id, one in sure.items()}
    if whole:  # what became of the doubtful ones has been seen
        sizes |= {one: size for one, size in doubtful.items() if one in present}
        doubtful = {}
    _between(blame, "messages", counted.n_messages, len(sizes), len(sizes) + len(doubtful))
    _between(blame, "bytes", counted.n_bytes, sum(sizes.values()), sum(sizes.values()) + sum(doubtful.values()))
    if sizes and not doubtful and counted.id_max != max(sizes):
        blame.add(0, f"highest id {max(sizes)}", str(counted.id_max), "the index")
    _receivers(given, blame, len(sizes))
    return blame.verdict(f"{counted.n_messages} messages and {counted.n_bytes} bytes in the index are as sent")


def _between(blame: Blame, what: str, found: int, low: int, high: int) -> None:
    if not low <= found <= high:
        expected = f"{low}" if low == high else f"{low} to {high}"
        blame.add(0, f"{expected} {what}: acknowledged, and those of unknown outcome that are there", str(found),
                  "the index")  # fmt: skip


def _receivers(given: Evidence, blame: Blame, stored: int) -> None:
    assert given.ledger is not None
    refused = sum(one.outcome == "FAIL" for tries in given.book.sent.values() for one in tries)
    if given.ledger.taken is not None and given.ledger.taken < stored:
        blame.add(0, f"at least {stored} messages taken", str(given.ledger.taken), "the receivers' counters")
    if given.ledger.refused is not None and given.ledger.refused < refused:
        blame.add(0, f"at least {refused} messages refused", str(given.ledger.refused), "the receivers' counters")


def views_agree(given: Evidence) -> Finding:
    """I7: online reading, offline reading, reading by id, the last id and the index name the same messages."""
    blame = Blame(Invariant.I7, given.book.content.stream)
    found = views(given.readings, final=True)
    whole = [view for view in found if view.claims is None]
    if len(found) < 2 or not whole:
        return blame.cannot("fewer than two readers read everything after the last fault")
    first = whole[0]
    for view in found:
        if view is first:
            continue
        known = first.ids if view.claims is None else first.ids & view.claims
        for message_id in sorted(known ^ view.ids):
            has, lacks = (first, view) if message_id in known else (view, first)
            blame.add(message_id, f"the message that {has.name} has", "nothing", lacks.name)
    for reading in given.readings:
        if reading.way is Way.LAST and reading.final and reading.seen and first.ids:
            last = reading.seen[-1].id
            if last != max(first.ids):
                blame.add(last, f"{max(first.ids)} as the highest id", str(last), str(reading))
    if given.ledger is not None and given.ledger.n_messages != len(first.ids):
        blame.add(0, f"{len(first.ids)} messages, as {first.name}", str(given.ledger.n_messages), "the index")
    return blame.verdict(f"{len(found)} ways to read agree on {len(first.ids)} messages")


def liveness(given: Evidence) -> Finding:
    """I8: within the stated time after healing, ingest and reads go on without a human."""
    blame = Blame(Invariant.I8, given.book.content.stream)
    for probe in given.probes:
        if probe.took_s is None or probe.took_s > probe.allowed_s:
            took = "never" if probe.took_s is None else f"after {probe.took_s:.2f} s"
            blame.add(0, f"{probe.what} within {probe.allowed_s:g} s", took, "the test")
    if not given.probes:
        return blame.cannot("nothing was killed, so nothing had to come back")
    slowest = max((probe.took_s for probe in given.probes if probe.took_s is not None), default=0.0)
    return blame.verdict(f"{len(given.probes)} steps came to their end in time, the slowest after {slowest:.2f} s")


def no_leak(given: Evidence) -> Finding:
    """I9: after the faults descriptors, threads, temporary files and groups are back to where they were."""
    blame = Blame(Invariant.I9, given.book.content.stream)
    for one in given.resources:
        if one.after > one.before + one.tolerance:
            blame.add(0, f"{one.what} at most {one.before + one.tolerance}", str(one.after), "the test")
    if not given.resources:
        return blame.cannot("the services' descriptors and threads cannot be counted from here")
    return blame.verdict(f"{len(given.resources)} numbers are back where they were")


CHECKS: Final[dict[Invariant, Callable[[Evidence], Finding]]] = {
    Invariant.I1: no_acknowledged_loss,
    Invariant.I2: no_invention,
    Invariant.I3: check_order,
    Invariant.I4: check_once,
    Invariant.I5: no_torn_read,
    Invariant.I6: ledger,
    Invariant.I7: views_agree,
    Invariant.I8: liveness,
    Invariant.I9: no_leak,
}


def check(given: Evidence) -> Report:
    """Check all invariants on what is known of one stream."""
    return Report(tuple(decide(given, name, function) for name, function in CHECKS.items()))
