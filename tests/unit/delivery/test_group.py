from __future__ import annotations

import pytest

from asapo.delivery.answers import NeedRows, answer_by_id, answer_last, unknown_stream
from asapo.delivery.group import Group
from asapo.delivery.leases import KEPT_SESSIONS, GroupState
from asapo.delivery.letters import DeadLetter
from asapo.delivery.needs import Again, Answer, Granted, NeedBacklog, NeedUnseen
from asapo.delivery.rows import RowTuple
from asapo.delivery.stream import StreamDelivery
from asapo.errors import Gap, GroupMismatch, NothingYet, PartialDataset, StreamFinished, WrongInput
from asapo.models import Row, StreamRef

A, B = b"a" * 16, b"b" * 16


def rows(*ids: int, seq: int = 1, substream: int = 0, size: int = 0) -> list[RowTuple]:
    return [tuple(Row(one, seq + i, substream, size, 1, 0, 10, 0, 1, "{}", 0, 0, 0, 0)) for i, one in enumerate(ids)]


def stream(*ids: int) -> StreamDelivery:
    delivery = StreamDelivery()
    delivery.add(rows(*ids))
    return delivery


def ids_of(answer: Answer) -> list[int]:
    assert isinstance(answer, Granted), answer
    assert [row[0] for row in answer.rows] == answer.ids
    return answer.ids


def test_sessions_share_the_messages_of_a_group() -> None:
    group = stream(1, 2, 3, 4).open_group("g")
    assert ids_of(group.next_rows(A, 2, 0.0)) == [1, 2]
    assert ids_of(group.next_rows(B, 9, 0.0)) == [3, 4]
    assert isinstance(group.next_rows(A, 1, 0.0), NothingYet)


def test_an_expired_message_is_given_again_and_its_attempts_are_counted() -> None:
    group = stream(1, 2, 3).open_group("g", lease_s=10)
    group.next_rows(A, 2, 0.0)
    assert group.cursor.next_event_s() == 10.0
    assert group.cursor.expire(9.9) == []
    assert group.cursor.expire(10.0) == [1, 2]
    granted = group.next_rows(B, 9, 11.0)
    assert ids_of(granted) == [1, 2, 3]
    assert isinstance(granted, Granted)
    assert granted.attempts == {1: 2, 2: 2}


def test_a_renewed_lease_does_not_expire() -> None:
    group = stream(1).open_group("g", lease_s=10)
    group.next_rows(A, 1, 0.0)
    group.cursor.renew(A, 8.0)
    assert group.cursor.expire(17.9) == []
    assert group.cursor.expire(18.0) == [1]


def test_a_stale_ack_is_lost_when_somebody_else_was_given_the_message() -> None:
    group = stream(1, 2, 3).open_group("g", lease_s=10)
    group.next_rows(A, 3, 0.0)
    group.cursor.expire(10.0)
    assert ids_of(group.next_rows(B, 1, 10.0)) == [1]
    assert group.cursor.ack(A, [(1, 3)]) == [1]
    assert group.cursor.held(B) == [1]
    assert group.cursor.n_waiting == 0
    assert group.cursor.ack(B, [(1, 1)]) == []
    assert group.cursor.floor == 3


def test_the_first_ack_wins_also_when_the_other_is_done_before() -> None:
    group = stream(1).open_group("g", lease_s=10)
    group.next_rows(A, 1, 0.0)
    group.cursor.expire(10.0)
    group.next_rows(B, 1, 10.0)
    assert group.cursor.ack(B, [(1, 1)]) == []
    assert group.cursor.ack(A, [(1, 1)]) == [1]
    assert group.cursor.ack(A, [(1, 1)]) == []


def test_a_cumulative_ack_covers_only_what_the_session_was_given() -> None:
    group = stream(1, 2, 3, 4).open_group("g")
    group.next_rows(A, 1, 0.0)
    group.next_rows(B, 2, 0.0)
    group.next_rows(A, 1, 0.0)
    assert group.cursor.ack(A, [(1, 4)]) == []
    assert group.cursor.held(B) == [2, 3]
    assert group.cursor.floor == 1
    assert group.cursor.ack(A, [(2, 2)]) == [2]


def test_nack_waits_and_give_back_does_not_count() -> None:
    group = stream(1, 2).open_group("g")
    group.next_rows(A, 2, 0.0)
    assert group.cursor.nack(A, [1, 9], 5.0, 0.0) == [9]
    assert group.cursor.give_back(A) == []
    granted = group.next_rows(B, 9, 1.0)
    assert ids_of(granted) == [2]
    assert isinstance(granted, Granted)
    assert granted.attempts == {}
    assert group.cursor.next_event_s() == 5.0
    again = group.next_rows(B, 9, 5.0)
    assert isinstance(again, Granted)
    assert again.attempts == {1: 2}


def test_a_message_nacked_and_given_to_the_same_session_has_a_lease_of_its_own() -> None:
    group = stream(1, 2).open_group("g", lease_s=10)
    group.next_rows(A, 2, 0.0)
    group.cursor.nack(A, [1], 0.0, 5.0)
    group.next_rows(A, 1, 5.0)
    assert group.cursor.expire(10.0) == [2]
    assert group.cursor.expire(15.0) == [1]


def test_a_message_over_its_attempts_is_dead_and_does_not_hold_the_floor() -> None:
    group = stream(1, 2).open_group("g", max_attempts=2)
    for _ in range(2):
        group.next_rows(A, 1, 0.0)
        group.cursor.nack(A, [1], 0.0, 0.0)
    assert group.cursor.dead.keys == {1: 1}
    assert ids_of(group.next_rows(A, 9, 0.0)) == [2]
    group.cursor.ack(A, [(2, 2)])
    assert group.snapshot().floor == 2
    assert group.cursor.dead.take_changes()[1] == DeadLetter(1, 1, 2, "handed back by its worker", "", "", 0)
    assert not group.cursor.dead.take_changes()


def test_a_late_message_is_flagged_and_holds_the_floor() -> None:
    delivery = stream(1, 2, 5)
    delivery.window.set_watermark(6)
    group = delivery.open_group("g")
    group.cursor.ack(A, [(one, one) for one in ids_of(group.next_rows(A, 9, 0.0))])
    assert group.cursor.floor == 5
    delivery.add(rows(3, seq=4))
    assert group.cursor.floor == 2
    granted = group.next_rows(A, 9, 0.0)
    assert isinstance(granted, Granted)
    assert (granted.ids, granted.late, group.cursor.late) == ([3], [3], 1)
    group.cursor.ack(A, [(3, 3)])
    assert group.cursor.floor == 5


def test_a_late_message_passes_the_filter_or_is_passed_over() -> None:
    delivery = stream(1, 2, 9)
    delivery.window.set_watermark(10)
    group = delivery.open_group("g", where="odd", matches=lambda row: row[0] % 2 == 1)
    group.cursor.ack(A, [(one, one) for one in ids_of(group.next_rows(A, 9, 0.0))])
    delivery.add([*rows(4, seq=4), *rows(5, seq=5)])
    granted = group.next_rows(A, 9, 0.0)
    assert isinstance(granted, Granted)
    assert (granted.ids, granted.late, group.cursor.passed) == ([5], [5], 2)


def test_a_filter_passes_over_what_does_not_match_and_counts_it() -> None:
    group = stream(*range(1, 11)).open_group("g", where="odd", matches=lambda row: row[0] % 2 == 1)
    assert ids_of(group.next_rows(A, 3, 0.0)) == [1, 3, 5]
    assert ids_of(group.next_rows(A, 3, 0.0)) == [7, 9]
    assert group.cursor.passed == 5
    group.cursor.ack(A, [(1, 9)])
    assert group.snapshot().floor == 10


def test_a_filter_that_finds_nothing_lets_others_have_their_turn() -> None:
    delivery = stream(*range(1, 10_001))
    group = delivery.open_group("g", where="last", matches=lambda row: row[0] == 10_000)
    turns = 0
    while isinstance(answer := group.next_rows(A, 1, 0.0), Again):
        turns += 1
    assert ids_of(answer) == [10_000]
    assert turns == 2


def test_the_filter_and_the_order_of_a_group_are_fixed() -> None:
    delivery = stream(1)
    delivery.open_group("g")
    with pytest.raises(GroupMismatch) as caught:
        delivery.open_group("g", ordered=False)
    assert caught.value.group == "g"
    state = GroupState(True, "a", 0, (), (), (), 0, 0, 0)
    with pytest.raises(GroupMismatch):
        delivery.open_group("h", state=state)
    with pytest.raises(WrongInput):
        delivery.open_group("i", where="a")


def test_finished_needs_that_nobody_else_holds_or_waits_for_a_message() -> None:
    delivery = stream(1, 2)
    group = delivery.open_group("g", lease_s=10)
    delivery.window.finish(2, "scan2")
    group.next_rows(A, 1, 0.0)
    group.next_rows(B, 1, 0.0)
    assert isinstance(group.next_rows(A, 1, 0.0), NothingYet)
    group.cursor.ack(B, [(2, 2)])
    answer = group.next_rows(A, 1, 0.0)
    assert isinstance(answer, StreamFinished)
    assert (answer.id_max, answer.next_stream) == (2, "scan2")
    group.cursor.nack(A, [1], 60.0, 0.0)
    assert isinstance(group.next_rows(B, 1, 0.0), NothingYet)


def test_a_group_below_the_window_reads_its_backlog_first() -> None:
    delivery = stream(*range(1, 21))
    delivery.window.prune(limit_rows=5, limit_bytes=10**9)
    group = delivery.open_group("g")
    need = group.next_rows(A, 4, 0.0)
    assert need == NeedBacklog(True, 1, 16)
    group.add_backlog(rows(*range(1, 11)), from_key=1, covered_below=11)
    granted = group.next_rows(A, 4, 0.0)
    assert ids_of(granted) == [1, 2, 3, 4]
    assert isinstance(granted, Granted)
    assert granted.need == NeedBacklog(True, 11, 16)
    group.add_backlog(rows(*range(11, 16), seq=11), from_key=11, covered_below=16)
    group.add_backlog(rows(*range(1, 11)), from_key=1, covered_below=11)
    assert ids_of(group.next_rows(A, 50, 0.0)) == list(range(5, 21))


def test_a_message_that_comes_below_the_window_while_its_backlog_is_read_is_given_once() -> None:
    delivery = stream(*range(1, 11), *range(12, 21))
    delivery.window.set_watermark(21)
    delivery.window.prune(limit_rows=0, limit_bytes=10**9)
    group = delivery.open_group("g")
    assert group.next_rows(A, 4, 0.0) == NeedBacklog(True, 1, 21)
    delivery.add(rows(11, seq=20))
    loaded = rows(*range(1, 11)) + rows(*range(12, 21), seq=11) + rows(11, seq=20)
    group.add_backlog(loaded, from_key=1, covered_below=21)
    granted = group.next_rows(A, 50, 0.0)
    assert sorted(ids_of(granted)) == list(range(1, 21))
    assert isinstance(granted, Granted)
    assert granted.late == [11]


def test_a_message_that_the_backlog_shows_before_the_tail_is_given_once() -> None:
    delivery = stream(1, 2, 4)
    delivery.window.set_watermark(5)
    delivery.window.prune(limit_rows=0, limit_bytes=10**9)
    group = delivery.open_group("g")
    group.add_backlog(rows(1, 2, 4) + rows(3, seq=4), from_key=1, covered_below=5)
    given = ids_of(group.next_rows(A, 50, 0.0))
    group.cursor.ack(A, [(1, 4)])
    delivery.add(rows(3, seq=4))
    given += ids_of(group.next_rows(A, 50, 0.0))
    assert sorted(given) == [1, 2, 3, 4]
    assert isinstance(group.next_rows(A, 50, 0.0), NothingYet)


def test_a_restored_group_goes_on_behind_what_is_done() -> None:
    delivery = stream(*range(1, 9))
    group = delivery.open_group("g")
    group.next_rows(A, 6, 0.0)
    group.cursor.ack(A, [(1, 2), (4, 4)])
    assert group.cursor.dirty
    state = delivery.snapshot()["g"]
    assert (state.floor, state.done) == (2, ((4, 4),))
    assert delivery.snapshot() == {}
    later = stream(*range(1, 9)).open_group("g", state=state)
    assert later.cursor.ack(A, [(5, 5)]) == []
    assert ids_of(later.next_rows(B, 9, 0.0)) == [3, 6, 7, 8]
    assert later.cursor.ack(A, [(3, 3)]) == [3]


def test_a_restored_unordered_group_skips_acknowledged_ids() -> None:
    delivery = stream(5, 4, 3, 2, 1)
    group = delivery.open_group("g", ordered=False)
    assert ids_of(group.next_rows(A, 4, 0.0)) == [5, 4, 3, 2]
    group.cursor.ack(A, [(4, 5)])
    state = group.snapshot()
    assert (state.floor, state.done) == (2, ())
    later = stream(5, 4, 3, 2, 1).open_group("g", ordered=False, state=state)
    assert later.cursor.ack(A, [(3, 3)]) == []
    assert later.snapshot().acked_ids == ((3, 3),)
    assert ids_of(later.next_rows(B, 9, 0.0)) == [2, 1]


def test_what_came_below_the_floor_while_no_core_was_there_is_asked_for() -> None:
    delivery = stream(1, 2, 5)
    delivery.window.set_watermark(6)
    group = delivery.open_group("g")
    group.next_rows(A, 9, 0.0)
    group.cursor.ack(A, [(1, 5)])
    state = group.snapshot()
    restarted = StreamDelivery(low=6, head_seq=4)
    later = restarted.open_group("g", state=state)
    assert later.next_rows(A, 1, 0.0) == NeedUnseen(3, 4, 6)
    later.add_unseen(rows(3, seq=4), covered_seq=4)
    granted = later.next_rows(A, 1, 0.0)
    assert isinstance(granted, Granted)
    assert granted.late == granted.ids == [3]


def test_an_ack_of_what_the_core_before_gave_counts_though_somebody_handed_it_back_meanwhile() -> None:
    """B's request was under way when the core died: the next core served it again, and B had given up waiting."""
    stored = GroupState(True, "", 1, (), (), (), seen_seq=5, passed=0, late=0)
    group = stream(1, 2, 3, 4, 5).open_group("g", state=stored)
    assert ids_of(group.next_rows(B, 4, 0.0)) == [2, 3, 4, 5]
    assert group.cursor.give_back(B, [2, 3, 5]) == []
    assert group.cursor.ack(A, [(2, 4)]) == [4], "B still holds 4"
    assert ids_of(group.next_rows(A, 9, 0.0)) == [5]
    assert group.cursor.held(B) == [4]


def test_an_ack_to_the_next_core_stays_when_the_message_came_after_the_last_state() -> None:
    """The core before had seen up to seq 3 when it last wrote; message 4 came, was given to A, and then it died."""
    stored = GroupState(True, "", 3, ((5, 5),), (), (), seen_seq=3, passed=0, late=0)
    delivery = StreamDelivery()
    delivery.add(rows(1, 2, 3, 4, 5))
    group = delivery.open_group("g", state=stored)
    assert group.cursor.ack(A, [(4, 4)]) == []
    assert group.next_rows(A, 9, 0.0) == NeedUnseen(3, 5, 6)
    group.add_unseen(rows(4, 5, seq=4), covered_seq=5)
    assert ids_of(group.next_rows(A, 9, 0.0)) == [5], "5 counted as a gap when the state was written"
    assert isinstance(group.next_rows(A, 9, 0.0), NothingYet)


def test_datasets_are_given_with_all_their_parts_and_count_as_one() -> None:
    delivery = StreamDelivery()
    delivery.add(rows(1, 2, substream=1, size=2) + rows(1, 2, seq=3, substream=2, size=2))
    granted = delivery.open_group("g").next_rows(A, 1, 0.0)
    assert isinstance(granted, Granted)
    assert granted.ids == [1]
    assert [row[2] for row in granted.rows] == [1, 2]


def test_a_lost_session_gives_back_in_every_group() -> None:
    delivery = stream(1, 2)
    for name in "gh":
        delivery.open_group(name).next_rows(A, 2, 0.0)
    delivery.renew(A, 1.0)
    assert delivery.drop_session(A) == {"g": [1, 2], "h": [1, 2]}
    assert delivery.drop_session(A) == {}
    assert delivery.expire(1e9) == {}


def test_a_session_that_fell_silent_and_is_back_is_done_with_what_nobody_else_was_given() -> None:
    group = stream(1, 2, 3).open_group("g")
    group.next_rows(A, 2, 0.0)
    group.cursor.drop_session(A)
    assert group.cursor.ack(A, [(1, 2)]) == []
    assert ids_of(group.next_rows(B, 9, 0.0)) == [3]


def test_a_session_that_is_back_hears_what_others_were_given_meanwhile() -> None:
    group = stream(1, 2, 3).open_group("g")
    group.next_rows(A, 2, 0.0)
    group.cursor.drop_session(A)
    assert ids_of(group.next_rows(B, 1, 0.0)) == [1]
    assert group.cursor.ack(A, [(1, 2)]) == [1]
    assert ids_of(group.next_rows(A, 9, 0.0)) == [3]
    assert group.cursor.ack(B, [(1, 1)]) == []
    assert group.cursor.ack(A, [(3, 3)]) == []
    assert group.cursor.floor == 3


def test_sessions_that_never_come_back_are_forgotten_at_last() -> None:
    group = stream(1).open_group("g")
    for number in range(KEPT_SESSIONS + 1):
        session = number.to_bytes(16, "big")
        assert ids_of(group.next_rows(session, 1, 0.0)) == [1]
        group.cursor.drop_session(session)
    assert group.cursor.ack((1).to_bytes(16, "big"), [(1, 1)]) == []
    assert isinstance(group.next_rows(B, 1, 0.0), NothingYet | StreamFinished)
    departed = group.cursor._departed  # noqa: SLF001 - what it keeps shows nowhere else
    assert departed.find((0).to_bytes(16, "big")) is None


def test_by_id_answers_the_message_or_why_not() -> None:
    delivery = stream(1, 2, 5)
    window = delivery.window
    window.set_watermark(5)
    assert answer_by_id(window, 5) == rows(5, seq=3)[0]
    assert isinstance(answer_by_id(window, 3), Gap)
    assert isinstance(answer_by_id(window, 9), NothingYet)
    window.finish(5)
    assert isinstance(answer_by_id(window, 9), StreamFinished)
    assert answer_last(window) == rows(5, seq=3)[0]
    window.prune(limit_rows=0, limit_bytes=0)
    assert answer_by_id(window, 2) == NeedRows((2,))
    assert answer_last(window) == NeedRows((5,))
    delivery.add(rows(8, seq=4, substream=1, size=3))
    partial = answer_by_id(window, 8)
    assert isinstance(partial, PartialDataset)
    assert (partial.have, partial.dataset_size) == (1, 3)


def test_an_empty_stream_has_no_last_message() -> None:
    delivery = StreamDelivery()
    assert isinstance(answer_last(delivery.window), NothingYet)
    delivery.window.finish(0)
    assert isinstance(answer_last(delivery.window), StreamFinished)
    assert isinstance(delivery.open_group("g").next_rows(A, 1, 0.0), StreamFinished)
    assert unknown_stream(StreamRef("bt", "det", "run1")).stream == "run1"


def test_a_long_session_of_single_messages_keeps_few_leases() -> None:
    delivery = stream(*range(1, 1001))
    group: Group = delivery.open_group("g")
    group.next_rows(A, 1, 0.0)
    for number in range(2, 1001):
        assert ids_of(group.next_rows(A, 1, 0.0)) == [number]
        group.cursor.ack(A, [(number, number)])
    assert len(group.cursor._sessions[A].leases) <= 70
    assert group.cursor.held(A) == [1]


def test_each_lease_of_a_session_runs_out_in_its_own_time_and_a_renewal_moves_all() -> None:
    group = stream(1, 2, 3).open_group("g", lease_s=10)
    group.next_rows(b"a", 1, 0.0, 10)
    group.next_rows(b"a", 1, 0.0, 4)
    group.next_rows(b"a", 1, 3.0, 10)
    assert group.cursor.expire(3.9) == []
    group.cursor.renew(b"a", 3.9)
    assert group.cursor.expire(7.8) == []
    assert group.cursor.expire(8.0) == [2]
    assert group.cursor.expire(13.8) == []
    assert sorted(group.cursor.expire(14.0)) == [1, 3]
