"""Order and once-only delivery to groups (I3, I4): the two invariants that depend on when things happened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from asapo.testing.checker.evidence import Evidence, Reading, Seen, Way
from asapo.testing.checker.report import Finding, Invariant
from asapo.testing.checker.verdict import Blame

CORE: Final = frozenset({"core", "power"})
"""Kills that end the delivery core."""
UNDER_WAY_NS: Final = 300_000_000
"""An answer that a core gave just before it was killed is written down by its reader within this."""


def check_order(given: Evidence) -> Finding:
    """I3: ids ascend for an ordered reader; a hole that was announced stays one; the last id never falls."""
    blame = Blame(Invariant.I3, given.book.content.stream)
    ordered = [reading for reading in given.readings if reading.way is Way.ORDERED]
    for reading in ordered:
        _ascending(given, reading, blame)
    for reading in given.readings:
        if reading.way is Way.LAST:
            _never_falls(reading, blame)
    _holes_stay(given.readings, blame)
    if not ordered:
        return blame.cannot("nobody read in order")
    return blame.verdict(f"{sum(len(reading.seen) for reading in ordered)} messages to {len(ordered)} ordered readers")


def _ascending(given: Evidence, reading: Reading, blame: Blame) -> None:
    highest, known = 0, set()
    for one in reading.seen:
        if one.late and not given.late_is_fine:
            blame.add(one.id, "ids before the reader passes them", f"it flagged late after {highest}", str(reading))
        # What comes again after a kill may come in any order; I4 looks at it.
        elif one.id not in known and one.id < highest and not one.late:
            blame.add(one.id, f"an id above {highest}", str(one.id), str(reading))
        known.add(one.id)
        highest = max(highest, one.id)


def _never_falls(reading: Reading, blame: Blame) -> None:
    highest = 0
    for one in reading.seen:
        if one.id < highest:
            blame.add(one.id, f"a last id of at least {highest}", str(one.id), str(reading))
        highest = max(highest, one.id)


def _holes_stay(readings: Iterable[Reading], blame: Blame) -> None:
    announced: dict[int, tuple[int, Reading]] = {}
    for reading in readings:
        for hole in reading.holes:
            if hole.id not in announced or hole.t_ns < announced[hole.id][0]:
                announced[hole.id] = (hole.t_ns, reading)
    for reading in readings:
        for one in reading.seen:
            if one.id in announced and one.t_ns > announced[one.id][0] and not one.late:
                blame.add(one.id, f"a hole, as {announced[one.id][1]} was told", str(one), str(reading))


@dataclass(frozen=True, slots=True)
class _Given:
    """One delivery to a group."""

    seen: Seen
    reader: Reading


def check_once(given: Evidence) -> Finding:
    """I4: each id once per group; again only with a higher count and only when its ack was not confirmed."""
    blame = Blame(Invariant.I4, given.book.content.stream)
    groups: dict[str, list[Reading]] = defaultdict(list)
    for reading in given.readings:
        if reading.way in (Way.ORDERED, Way.WORKER):
            groups[reading.group].append(reading)
    for members in groups.values():
        _group_once(given, members, blame)
    for reading in given.readings:
        if reading.way is Way.OFFLINE:
            _stored_once(given, reading, blame)
    if not groups:
        return blame.cannot("no group was read")
    total = sum(len(reading.seen) for members in groups.values() for reading in members)
    return blame.verdict(f"{total} deliveries to {len(groups)} groups")


def _stored_once(given: Evidence, reading: Reading, blame: Blame) -> None:
    known = set()
    acked = given.book.outcomes()
    for one in reading.seen:
        if one.id in known and acked.get(one.id) == "ACK":
            blame.add(one.id, "one live record", "a second one", str(reading))
        known.add(one.id)


def _group_once(given: Evidence, members: list[Reading], blame: Blame) -> None:
    deliveries: dict[int, list[_Given]] = defaultdict(list)
    for reading in members:
        for one in reading.seen:
            deliveries[one.id].append(_Given(one, reading))
    confirmed: dict[int, list[int]] = defaultdict(list)
    for reading in members:
        for event in reading.confirmed:
            confirmed[event.id].append(event.t_ns)
    for message_id, times in deliveries.items():
        times.sort(key=lambda one: one.seen.t_ns)
        for before, again in zip(times, times[1:], strict=False):
            _judge(given, message_id, before, again, confirmed.get(message_id, ()), blame)


def _judge(
    given: Evidence, message_id: int, before: _Given, again: _Given, confirmed_ns: Sequence[int], blame: Blame
) -> None:
    """Say whether a message may be given again."""
    kills = [kill.t_ns for kill in given.kills if kill.component in CORE and kill.t_ns <= again.seen.t_ns]
    newest_ns = max((t_ns for t_ns in confirmed_ns if t_ns < again.seen.t_ns), default=None)
    if newest_ns is not None:
        window_ns = given.forgotten_acks_s * 1e9
        if not any(-UNDER_WAY_NS <= t_ns - newest_ns <= window_ns for t_ns in kills):
            at = f"it again as attempt {again.seen.attempt}"
            blame.add(message_id, "no more deliveries: its acknowledgement was confirmed", at, str(again.reader))
            return
    # A core that was started anew counts attempts anew.
    counts_anew = any(t_ns >= before.seen.t_ns - UNDER_WAY_NS for t_ns in kills)
    if not counts_anew and again.seen.attempt <= before.seen.attempt:
        expected = f"a delivery count above {before.seen.attempt}"
        blame.add(message_id, expected, f"it again as attempt {again.seen.attempt}", str(again.reader))
