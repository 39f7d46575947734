"""Dead letters, suspects, and groups that are told to go on elsewhere."""

from __future__ import annotations

import pytest

from asapo.delivery.admin import NeedEntries, drop, facts, place_of, revive
from asapo.delivery.group import Group
from asapo.delivery.letters import (
    REASON_CHARS,
    TRACEBACK_CHARS,
    TRACEBACKS,
    DeadLetter,
    DeadLetters,
    Explained,
    Failure,
    merge,
)
from asapo.delivery.needs import Answer, Granted, NeedBacklog
from asapo.delivery.redelivery import PATIENCE_S
from asapo.delivery.rows import RowTuple
from asapo.delivery.stream import StreamDelivery
from asapo.errors import NothingYet, WrongInput
from asapo.models import Row

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
WHY = Failure("it is broken", "Traceback: ...", 77)


def rows(*ids: int, seq: int = 1) -> list[RowTuple]:
    return [tuple(Row(one, seq + i, 0, 0, 1, 0, 10, 0, 1, "{}", 0, 0, 0, 0)) for i, one in enumerate(ids)]


def stream(*ids: int) -> StreamDelivery:
    delivery = StreamDelivery()
    delivery.add(rows(*ids))
    delivery.window.set_watermark(max(ids) + 1)
    return delivery


def ids_of(answer: Answer) -> list[int]:
    assert isinstance(answer, Granted), answer
    return answer.ids


def killed(group: Group, *ids: int, times: int = 1) -> None:
    """Let a message of these use up its attempts."""
    for _ in range(times):
        group.next_rows(A, len(ids), 0.0, worker="w1")
        group.cursor.nack(A, ids, 0.0, 0.0, WHY)


# -- dead letters


def test_a_dead_letter_says_why_who_and_when() -> None:
    group = stream(3, 4).open_group("g", max_attempts=2)
    killed(group, 3, times=2)
    assert group.cursor.dead.take_changes() == {3: DeadLetter(3, 3, 2, "it is broken", "Traceback: ...", "w1", 77)}


def test_a_lease_that_ran_out_and_a_lost_worker_are_reasons_too() -> None:
    group = stream(1, 2).open_group("g", max_attempts=1, lease_s=5)
    group.next_rows(A, 1, 0.0, worker="w1")
    group.next_rows(B, 1, 0.0, worker="w2")
    group.cursor.expire(5.0, 10)
    group.cursor.drop_session(B, 5.0, 11)
    assert [(one.reason.rpartition(" ")[2], one.worker, one.failed_ns) for one in _letters(group)] == [
        ("out", "w1", 10), ("out", "w2", 10),
    ]  # fmt: skip
    group.next_rows(C, 1, 6.0)
    lost = stream(1).open_group("g", max_attempts=1)
    lost.next_rows(B, 1, 0.0, worker="w2")
    lost.cursor.drop_session(B, 5.0, 11)
    assert _letters(lost) == [DeadLetter(1, 1, 1, "its worker died or was cut off", "", "w2", 11)]


def _letters(group: Group) -> list[DeadLetter]:
    return [one for one in group.cursor.dead.changes.values() if isinstance(one, DeadLetter)]


def test_what_is_kept_of_a_reason_is_bounded() -> None:
    letters = DeadLetters({})
    letters.add(1, 1, 1, Failure("r" * 9999, "t" * 99999 + "end"), "w")
    change = letters.changes[1]
    assert isinstance(change, DeadLetter)
    assert (len(change.reason), len(change.traceback)) == (REASON_CHARS, TRACEBACK_CHARS)
    assert change.traceback.endswith("end")
    many = DeadLetters({one: one for one in range(1, TRACEBACKS + 1)})
    many.add(5000, 5000, 1, WHY, "w")
    assert many.changes[5000] == DeadLetter(5000, 5000, 1, "it is broken", "", "w", 77)


def test_a_worker_explains_later_what_it_handed_back_and_nothing_else() -> None:
    group = stream(1, 2).open_group("g", max_attempts=1)
    group.next_rows(A, 1, 0.0, worker="w1")
    group.cursor.nack(A, [1], 0.0, 0.0)
    assert not group.cursor.dead.explain([2], "w1", "no letter", "")
    assert group.cursor.dead.explain([1], "w2", "not mine", "")
    assert _letters(group)[0].reason == "handed back by its worker"
    assert group.cursor.dead.explain([1], "w1", "ValueError: 3", "Traceback")
    assert (_letters(group)[0].reason, _letters(group)[0].traceback) == ("ValueError: 3", "Traceback")
    group.cursor.dead.explain([1], "w1", "something else", "later")
    assert _letters(group)[0].traceback == "Traceback"


def test_changes_that_wait_are_merged_in_their_order() -> None:
    letter = DeadLetter(1, 1, 2, "r", "", "w", 0)
    why = Explained("w", "s", "t")
    assert merge({1: letter}, {1: why}) == {1: letter._replace(reason="s", traceback="t")}
    assert merge({1: None}, {1: why}) == {1: None}
    assert merge({}, {1: why}) == {1: why}
    assert merge({1: letter}, {1: None}) == {1: None}


def test_a_requeued_message_is_given_again_with_its_attempts_counted_anew() -> None:
    group = stream(1, 2, 3).open_group("g", max_attempts=2)
    killed(group, 1, times=2)
    assert revive(group, [1, 2], everything=False) == 1
    granted = group.next_rows(A, 9, 0.0)
    assert ids_of(granted) == [1, 2, 3]
    assert isinstance(granted, Granted)
    assert granted.attempts == {}
    assert group.snapshot().floor == 0
    group.cursor.nack(A, [1], 0.0, 0.0)
    assert ids_of(group.next_rows(A, 1, 0.0)) == [1], "the second attempt of two"
    group.cursor.ack(A, [(1, 3)])
    assert group.snapshot().floor == 3
    assert group.cursor.dead.take_changes() == {1: None}


def test_a_dropped_dead_letter_stays_done() -> None:
    group = stream(1, 2).open_group("g", max_attempts=1)
    killed(group, 1)
    assert drop(group, [], everything=True) == 1
    assert drop(group, [], everything=True) == 0
    assert ids_of(group.next_rows(A, 9, 0.0)) == [2]


def test_what_the_window_has_lost_is_loaded_first_and_may_be_gone() -> None:
    delivery = stream(1, 2, 3)
    group = delivery.open_group("g", max_attempts=1)
    killed(group, 1, 2)
    delivery.window.prune(limit_rows=0, limit_bytes=0)
    assert revive(group, [], everything=True) == NeedEntries((1, 2))
    group.add_entries((1, 2), rows(2, seq=2))
    assert revive(group, [], everything=True) == 2
    assert ids_of(group.next_rows(A, 1, 0.0)) == [2]
    assert not group.fetched


def test_a_dead_letter_above_the_position_is_read_in_its_turn_once() -> None:
    delivery = stream(1, 2, 3)
    group = delivery.open_group("g", max_attempts=1)
    granted = group.next_rows(A, 3, 0.0)
    assert ids_of(granted) == [1, 2, 3]
    group.cursor.nack(A, [3], 0.0, 0.0)
    later = delivery.__class__()
    later.add(rows(1, 2, 3))
    restored = later.open_group("g", max_attempts=1, state=group.snapshot(), dead=group.cursor.dead.keys)
    assert revive(restored, [3], everything=False) == 1
    assert ids_of(restored.next_rows(A, 9, 0.0)) == [1, 2, 3]
    assert not isinstance(restored.next_rows(B, 9, 0.0), Granted)


def test_dead_letters_outlive_the_core() -> None:
    group = stream(1, 2).open_group("g", max_attempts=1)
    killed(group, 1)
    restored = stream(1, 2).open_group("g", state=group.snapshot(), dead=group.cursor.dead.keys)
    assert ids_of(restored.next_rows(A, 9, 0.0)) == [2]
    assert revive(restored, [], everything=True) == 1
    assert ids_of(restored.next_rows(A, 9, 0.0)) == [1]


# -- suspects


def test_messages_of_a_lost_worker_come_again_one_at_a_time() -> None:
    group = stream(1, 2, 3, 4).open_group("g", max_attempts=3)
    group.next_rows(A, 3, 0.0)
    group.cursor.drop_session(A, 0.0)
    assert ids_of(group.next_rows(B, 9, 0.0)) == [1, 4], "one suspect, first of all"
    assert isinstance(group.next_rows(B, 9, 0.0), NothingYet)
    assert ids_of(group.next_rows(C, 9, 0.0)) == [2]
    group.cursor.ack(B, [(1, 1)])
    assert ids_of(group.next_rows(B, 9, 0.0)) == [3]
    assert isinstance(group.next_rows(B, 9, 0.0), NothingYet)


def test_a_message_that_kills_its_workers_costs_its_neighbours_one_attempt_each() -> None:
    group = stream(*range(1, 41)).open_group("g", max_attempts=3)
    done: set[int] = set()
    deliveries = dict.fromkeys(range(1, 41), 0)
    for number in range(1000):
        session = b"%16d" % number
        while isinstance(granted := group.next_rows(session, 10, float(number)), Granted):
            for one in granted.ids:
                deliveries[one] += 1
                assert deliveries[one] == granted.attempts.get(one, 1)
            if 17 in granted.ids:
                group.cursor.drop_session(session, float(number))
                break
            group.cursor.ack(session, [(one, one) for one in granted.ids])
            done.update(granted.ids)
        else:
            break
    assert group.cursor.dead.keys == {17: 17}
    assert done == set(range(1, 41)) - {17}
    assert deliveries[17] == 3
    assert max(count for one, count in deliveries.items() if one != 17) == 2


def test_a_session_that_keeps_a_suspect_is_not_kept_waiting_for_ever() -> None:
    group = stream(1, 2).open_group("g", max_attempts=3)
    group.next_rows(A, 2, 0.0)
    group.cursor.drop_session(A, 1.0)
    assert ids_of(group.next_rows(B, 9, 1.0)) == [1]
    assert not isinstance(group.next_rows(B, 9, 0.9 + PATIENCE_S), Granted)
    assert ids_of(group.next_rows(B, 9, 1.0 + PATIENCE_S)) == [2]


def test_a_suspect_that_was_handed_back_unstarted_is_a_suspect_still() -> None:
    group = stream(1, 2, 3).open_group("g", max_attempts=3)
    group.next_rows(A, 3, 0.0)
    group.cursor.drop_session(A, 100.0)
    assert ids_of(group.next_rows(B, 9, 100.0)) == [1]
    assert ids_of(group.next_rows(C, 9, 100.0)) == [2]
    assert group.cursor.give_back(C, [2]) == []
    assert isinstance(group.next_rows(B, 9, 100.0), NothingYet)
    assert ids_of(group.next_rows(C, 9, 100.0)) == [2]
    assert ids_of(group.next_rows(B, 9, 100.0 + PATIENCE_S)) == [3]


def test_without_a_bound_nobody_is_suspected() -> None:
    group = stream(1, 2).open_group("g")
    group.next_rows(A, 2, 0.0)
    group.cursor.drop_session(A, 1.0)
    assert ids_of(group.next_rows(B, 9, 1.0)) == [1, 2]


def test_what_was_handed_back_for_one_among_several_is_given_alone() -> None:
    group = stream(1, 2, 3).open_group("g", max_attempts=3)
    group.next_rows(A, 3, 0.0)
    assert group.cursor.nack(A, [1, 2, 9], 0.0, 0.0, unsure=True) == [9]
    assert ids_of(group.next_rows(A, 9, 0.0)) == [1]
    assert ids_of(group.next_rows(B, 9, 0.0)) == [2]
    assert group.cursor.n_suspects == 2


# -- seek


@pytest.mark.parametrize("ordered", [True, False])
def test_a_group_that_seeks_gives_everything_from_there_again(ordered: bool) -> None:
    group = stream(1, 2, 3, 4).open_group("g", ordered=ordered, max_attempts=2)
    killed(group, 1, times=1)
    assert ids_of(group.next_rows(A, 9, 0.0)) == [1, 2, 3, 4]
    group.cursor.ack(A, [(3, 3)])
    assert group.seek(2) == 3
    assert group.cursor.ack(A, [(1, 4)]) == [1, 2, 4], "late acknowledgements are refused"
    assert group.snapshot().floor == 1
    granted = group.next_rows(B, 9, 0.0)
    assert ids_of(granted) == [2, 3, 4]
    assert isinstance(granted, Granted)
    assert granted.attempts == {}
    assert group.cursor.ack(B, [(2, 4)]) == []
    assert not isinstance(group.next_rows(B, 9, 0.0), Granted), "1 counts as done"


def test_a_group_that_seeks_to_the_end_holds_nothing_and_waits_for_nothing() -> None:
    delivery = stream(1, 2, 3)
    group = delivery.open_group("g")
    group.next_rows(A, 2, 0.0)
    group.cursor.nack(A, [1], 5.0, 0.0)
    group.seek(place_of(group.window, ordered=True, to="end", message_id=0, seq=0, fraction=0.0))
    known = facts(group, 3.0)
    assert (known["held"], known["waiting"], known["position"], known["floor"]) == (0, 0, 4, 3)
    assert isinstance(group.next_rows(A, 9, 99.0), NothingYet)
    delivery.add(rows(4, seq=4))
    assert ids_of(group.next_rows(A, 9, 99.0)) == [4]


def test_dead_letters_before_the_place_stay_and_those_behind_are_given_again() -> None:
    group = stream(1, 2, 3).open_group("g", max_attempts=1)
    killed(group, 1, 2)
    group.seek(2)
    assert group.cursor.dead.keys == {1: 1}
    assert group.cursor.dead.take_changes()[2] is None
    assert ids_of(group.next_rows(A, 9, 0.0)) == [2, 3]


def test_a_seek_behind_the_window_reads_the_index_anew() -> None:
    delivery = stream(*range(1, 9))
    group = delivery.open_group("g")
    delivery.window.prune(limit_rows=0, limit_bytes=0)
    need = group.next_rows(A, 9, 0.0)
    assert need == NeedBacklog(True, 1, 9)
    group.add_backlog(rows(*range(1, 9)), from_key=1, covered_below=9)
    assert ids_of(group.next_rows(A, 4, 0.0)) == [1, 2, 3, 4]
    group.seek(3)
    assert group.next_rows(A, 9, 0.0) == NeedBacklog(True, 3, 9)
    group.add_backlog(rows(5, 6, 7, 8, seq=5), from_key=5, covered_below=9)
    assert group.next_rows(A, 9, 0.0) == NeedBacklog(True, 3, 9), "what the old place asked for is no answer"
    group.add_backlog(rows(*range(3, 9), seq=3), from_key=3, covered_below=9)
    assert ids_of(group.next_rows(A, 9, 0.0)) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("ordered", "target", "position"),
    [
        (True, {"to": "start"}, 1), (True, {"to": "end"}, 31), (False, {"to": "end"}, 4),
        (True, {"to": "fraction", "fraction": 0.5}, 16), (True, {"to": "fraction", "fraction": 1.0}, 31),
        (False, {"to": "fraction", "fraction": 0.0}, 1), (False, {"to": "fraction", "fraction": 0.4}, 2),
        (True, {"to": "id", "message_id": 20}, 20), (True, {"to": "id", "message_id": 31}, 31),
        (False, {"to": "id", "message_id": 20, "seq": 2}, 2),
    ],
)  # fmt: skip
def test_places_of_a_stream(ordered: bool, target: dict[str, object], position: int) -> None:
    window = stream(10, 20, 30).window
    known = {"message_id": 0, "seq": 0, "fraction": 0.0, **target}
    assert place_of(window, ordered=ordered, **known) == position  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ordered", "target"),
    [
        (True, {"to": "middle"}), (True, {"to": "id", "message_id": 32}), (True, {"to": "id"}),
        (True, {"to": "fraction", "fraction": 1.1}), (True, {"to": "fraction", "fraction": -0.1}),
        (False, {"to": "id", "message_id": 15}),
    ],
)  # fmt: skip
def test_no_place_of_a_stream(ordered: bool, target: dict[str, object]) -> None:
    window = stream(10, 20, 30).window
    known = {"message_id": 0, "seq": 0, "fraction": 0.0, **target}
    with pytest.raises(WrongInput):
        place_of(window, ordered=ordered, **known)  # type: ignore[arg-type]


# -- how far it is


def test_the_facts_of_a_group() -> None:
    group = stream(1, 2, 3, 4, 5).open_group("g", max_attempts=2)
    group.next_rows(A, 1, 10.0, worker="w1")
    group.next_rows(B, 2, 12.0, worker="w2")
    group.cursor.nack(B, [2], 60.0, 12.0)
    assert facts(group, 15.0) == {
        "ordered": True, "where": "", "position": 4, "floor": 0, "held": 2, "waiting": 1, "failed": 1,
        "dead_letters": 0, "oldest_s": 5.0, "passed": 0, "late": 0, "workers": ["w1", "w2"], "done": [],
    }  # fmt: skip
    group.cursor.ack(A, [(1, 1)])
    known = facts(group, 15.0)
    assert (known["oldest_s"], known["floor"], known["workers"]) == (3.0, 1, ["w2"])
