"""Each invariant on a small story told by hand: held as told, violated when one thing in it is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest

from asapo.testing.checker.book import Book
from asapo.testing.checker.content import Content
from asapo.testing.checker.evidence import (
    SURVIVES_POWER_LOSS,
    Event,
    Evidence,
    Kill,
    Probe,
    Reading,
    Resource,
    Seen,
    ServerLedger,
    Way,
)
from asapo.testing.checker.invariants import check
from asapo.testing.checker.report import Invariant, Report, Verdict, merged

I1, I2, I3, I4, I5, I6, I7, I8, I9 = Invariant
CONTENT = Content(7, "s", sizes=((10, 1),))
S = 1_000_000_000


def book(*ids: int, level: str = "written") -> Book:
    """Return the book of frames that were sent at their id in seconds and acknowledged right then."""
    made = Book(CONTENT)
    for one in ids:
        made.invoke(one, CONTENT.digest(one), 10, one * S)
        made.settle(one, "ACK", level, one * S)
    return made


def seen(message_id: int, t_s: float = 0, **more: Any) -> Seen:
    """Return a frame as it should be read."""
    return Seen(message_id, 10, CONTENT.digest(message_id), message_id, int((t_s or 20 + message_id) * S), **more)


def reading(way: Way, messages: Iterable[int | Seen], **more: Any) -> Reading:
    """Return a complete final reading."""
    frames = tuple(one if isinstance(one, Seen) else seen(one) for one in messages)
    return Reading(way, "x", frames, **{"complete": True, "final": True, "group": "g", **more})


IDS = (1, 2, 4)
ORDERED = reading(Way.ORDERED, IDS)
OFFLINE = reading(Way.OFFLINE, IDS)
GOOD = Evidence(
    book(*IDS),
    (ORDERED, OFFLINE, reading(Way.BY_ID, IDS, complete=False), reading(Way.LAST, [2, 4, 4])),
    ledger=ServerLedger(3, 30, 4, taken=3, refused=0),
    probes=(Probe("receiver", 2.0, 0.4),),
    resources=(Resource("descriptors", 10, 11, tolerance=1),),
)


def changed(base: Evidence = GOOD, **fields: Any) -> Report:
    """Check a story in which these things are different."""
    return check(dataclasses.replace(base, **fields))


def with_readings(*readings: Reading) -> Report:
    """Check the story as other readers saw it."""
    return changed(readings=readings)


def only(report: Report, *expected: Invariant) -> list[str]:
    """Return the violations as text; they must be of these invariants and of no others."""
    assert report.violated == set(expected), list(map(str, report.violations))
    return list(map(str, report.violations))


def test_the_good_story_holds_in_all_nine() -> None:
    check(GOOD).require(*Invariant)


def test_a_missing_acknowledged_frame_is_a_loss_named_with_its_id() -> None:
    (text,) = only(with_readings(reading(Way.ORDERED, [1, 4])), I1)
    assert "s id 2" in text
    assert "ordered reader x" in text


def test_an_acknowledged_frame_that_gives_an_error_is_lost_too() -> None:
    damaged = reading(Way.ORDERED, [1, 4], errors=(Event(2, S, "damaged_file"),))
    assert "damaged_file" in only(with_readings(damaged), I1)[0]


def test_a_reader_that_did_not_come_to_the_end_proves_no_loss() -> None:
    report = with_readings(reading(Way.ORDERED, [1], complete=False))
    assert I1 not in report.checked
    assert I1 not in report.violated


def test_written_frames_may_be_lost_with_the_power_and_synced_ones_not() -> None:
    some = reading(Way.ORDERED, [1])
    story: dict[str, Any] = {"readings": (some,), "survivors": SURVIVES_POWER_LOSS, "ledger": None}
    only(changed(**story))
    only(changed(**story, book=book(*IDS, level="synced")), I1)


def test_what_nobody_sent_is_an_invention() -> None:
    invented = Seen(3, 10, "0" * 64, 3, S)
    (text,) = only(with_readings(reading(Way.ORDERED, [1, 2, invented, 4])), I2)
    assert "s id 3" in text


def test_a_refused_frame_may_be_there_once_and_not_twice() -> None:
    refused = book(*IDS)
    refused.invoke(5, CONTENT.digest(5), 10, 5 * S)
    refused.settle(5, "FAIL", "storage_error", 5 * S)
    once = (reading(Way.ORDERED, [*IDS, 5]), reading(Way.OFFLINE, [*IDS, 5]))
    twice = (once[0], reading(Way.OFFLINE, [*IDS, 5, 5]))
    ledger = ServerLedger(4, 40, 5, taken=4, refused=1)
    only(changed(book=refused, readings=once, ledger=ledger))
    only(changed(book=refused, readings=twice, ledger=ledger), I2)


def test_ids_that_fall_are_out_of_order_but_what_comes_again_is_not() -> None:
    only(with_readings(reading(Way.ORDERED, [1, 4, seen(2, 30)])), I3)
    again = (seen(1), seen(2), seen(1, 30, attempt=2), seen(4, 31))
    only(with_readings(reading(Way.ORDERED, again)))


def test_a_late_message_must_be_expected() -> None:
    late = reading(Way.ORDERED, [1, 4, seen(2, 30, late=True)])
    only(with_readings(late), I3)
    only(changed(readings=(late,), late_is_fine=True))


def test_a_hole_that_is_filled_later_is_out_of_order() -> None:
    told = Reading(Way.BY_ID, "x", holes=(Event(2, int(1.5 * S)),))
    assert "a hole" in only(with_readings(ORDERED, told), I3)[0]


def test_a_hole_told_of_an_acknowledged_frame_is_a_loss() -> None:
    told = Reading(Way.BY_ID, "x", holes=(Event(4, 60 * S),))
    only(with_readings(ORDERED, told), I1)


def test_a_last_id_that_falls_is_out_of_order() -> None:
    only(with_readings(ORDERED, reading(Way.LAST, [4, 2, 4])), I3)


def test_twice_in_a_group_needs_a_higher_count() -> None:
    twice = reading(Way.ORDERED, [1, 2, seen(2, 30), 4])
    only(with_readings(twice), I4)
    only(with_readings(reading(Way.ORDERED, [1, 2, seen(2, 30, attempt=2), 4])))


def test_what_was_confirmed_may_not_come_again_unless_the_core_died_right_after() -> None:
    first = reading(Way.WORKER, [1, seen(2, 10), 4], confirmed=(Event(2, 11 * S),))
    second = reading(Way.WORKER, [seen(2, 30, attempt=2)])
    only(with_readings(first, second), I4)
    only(changed(readings=(first, second), kills=(Kill("core", 11 * S + S // 4),)))
    only(changed(readings=(first, second), kills=(Kill("core", 20 * S),)), I4)
    only(changed(readings=(first, second), kills=(Kill("receiver", 11 * S + S // 4),)), I4)


def test_what_was_confirmed_anew_is_done_even_when_a_core_forgot_the_first_confirmation() -> None:
    kills = (Kill("core", 11 * S + S // 4),)
    times = [seen(2, 10), seen(2, 15), seen(2, 30, attempt=2)]
    twice = reading(Way.WORKER, [1, *times[:2], 4], confirmed=(Event(2, 11 * S), Event(2, 16 * S)))
    only(changed(readings=(twice,), kills=kills))
    again = dataclasses.replace(twice, seen=(*twice.seen, times[2]))
    only(changed(readings=(again,), kills=kills), I4)


def test_a_new_core_may_count_deliveries_anew() -> None:
    twice = reading(Way.ORDERED, [1, seen(2, 22), seen(2, 30), seen(4, 31)])
    only(changed(readings=(twice,), kills=(Kill("core", 25 * S),)))
    only(changed(readings=(twice,), kills=(Kill("core", 35 * S),)), I4)


@pytest.mark.parametrize(
    "wrong",
    [Seen(2, 10, CONTENT.digest(1), 2, 22 * S), Seen(2, 9, CONTENT.digest(2), 2, 22 * S),
     Seen(2, 10, CONTENT.digest(2), 1, 22 * S)],
    ids=["bytes", "size", "metadata"],
)  # fmt: skip
def test_wrong_content_is_torn(wrong: Seen) -> None:
    only(with_readings(reading(Way.ORDERED, [1, wrong, 4])), I5)


def test_the_first_acknowledged_content_stays() -> None:
    conflict = book(*IDS)
    conflict.invoke(2, CONTENT.digest(2, 1), 10, 9 * S)
    conflict.settle(2, "FAIL", "duplicate_id", 9 * S)
    only(changed(book=conflict, ledger=ServerLedger(3, 30, 4, taken=3, refused=1)))
    replaced = reading(Way.ORDERED, [1, Seen(2, 10, CONTENT.digest(2, 1), 2, 22 * S), 4])
    only(changed(book=conflict, readings=(replaced,), ledger=None), I5)
    conflict.settle(2, "ACK", "written", 9 * S)
    only(changed(book=conflict), I5)


@pytest.mark.parametrize(
    "counted",
    [ServerLedger(2, 30, 4), ServerLedger(3, 31, 4), ServerLedger(3, 30, 5), ServerLedger(3, 30, 4, taken=2)],
    ids=["messages", "bytes", "highest id", "taken"],
)
def test_a_wrong_count_is_found(counted: ServerLedger) -> None:
    report = changed(ledger=counted)
    assert I6 in report.violated
    assert report.violated <= {I6, I7}


def test_refusals_must_be_counted() -> None:
    refused = book(*IDS)
    refused.invoke(5, CONTENT.digest(5), 10, 5 * S)
    refused.settle(5, "FAIL", "disk_full", 5 * S)
    only(changed(book=refused), I6)


def test_frames_of_unknown_outcome_may_be_there_or_not() -> None:
    unknown = book(*IDS)
    unknown.invoke(5, CONTENT.digest(5), 10, 5 * S)
    only(changed(book=unknown))
    there = reading(Way.ORDERED, [*IDS, 5])
    only(changed(book=unknown, readings=(there,), ledger=ServerLedger(4, 40, 5)))
    only(changed(book=unknown, readings=(there,), ledger=ServerLedger(3, 30, 4)), I6)
    only(changed(book=unknown, readings=(), ledger=ServerLedger(4, 40, 5)))
    only(changed(book=unknown, readings=(), ledger=ServerLedger(5, 40, 5)), I6)


def test_views_that_differ_do_not_agree() -> None:
    unknown = book(*IDS)
    unknown.invoke(5, CONTENT.digest(5), 10, 5 * S)
    more = reading(Way.ORDERED, [*IDS, 5])
    texts = only(changed(book=unknown, readings=(more, OFFLINE), ledger=ServerLedger(4, 40, 5)), I7)
    assert "s id 5" in texts[0]
    assert "offline" in texts[0]
    only(with_readings(ORDERED, OFFLINE, reading(Way.LAST, [2])), I7)


def test_readings_from_before_the_last_fault_need_not_agree() -> None:
    early = reading(Way.ORDERED, IDS, final=False)
    assert I7 not in with_readings(early, OFFLINE).checked


def test_what_does_not_come_back_in_time_is_not_alive() -> None:
    only(changed(probes=(Probe("receiver", 2.0, 2.1),)), I8)
    assert "never" in only(changed(probes=(Probe("receiver", 2.0, None),)), I8)[0]


def test_what_grows_is_a_leak() -> None:
    only(changed(resources=(Resource("descriptors", 10, 12, tolerance=1),)), I9)


def test_nothing_known_is_nothing_proved() -> None:
    report = check(Evidence(Book(CONTENT), notes={"I8": "the power stayed on"}))
    assert report.checked == set()
    assert {one.verdict for one in report.findings} == {Verdict.NOT_CHECKABLE}
    assert report.findings[7].reason == "the power stayed on"
    with pytest.raises(AssertionError, match="nothing was checked"):
        report.require()
    with pytest.raises(AssertionError, match="I1 not checked"):
        report.require(I1)


def test_reports_on_several_streams_become_one() -> None:
    bad = with_readings(reading(Way.ORDERED, [1, 4]), reading(Way.OFFLINE, [1, 4]))
    whole = merged([check(GOOD), bad, check(Evidence(Book(CONTENT)))])
    assert whole.violated == bad.violated
    assert whole.checked == set(Invariant)
    with pytest.raises(AssertionError, match="I1 no acknowledged loss: s id 2"):
        whole.require()
