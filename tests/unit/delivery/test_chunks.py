"""Chunks: always whole, always to one session, at places that do not depend on who asks when."""

import pytest

from asapo.delivery.admin import revive
from asapo.delivery.group import Group
from asapo.delivery.needs import Again, Granted
from asapo.delivery.rows import RowTuple
from asapo.delivery.stream import StreamDelivery
from asapo.errors import GroupMismatch, NothingYet, StreamFinished, WrongInput
from asapo.models import Row
from asapo.wire.limits import MAX_ROWS

A, B = b"a", b"b"


def row(message_id: int, seq: int) -> RowTuple:
    return tuple(Row(message_id, seq, 0, 0, 1, 0, 10, 0, 1, "{}", 0, 0, 0, 0))


def stream(*ids: int) -> StreamDelivery:
    delivery = StreamDelivery()
    delivery.add([row(one, seq) for seq, one in enumerate(ids, 1)])
    return delivery


def chunk(group: Group, session: bytes = A, now_s: float = 0.0) -> list[int]:
    answer = group.next_rows(session, 99, now_s)
    if isinstance(answer, Granted):
        assert [one[0] for one in answer.rows] == answer.ids
        return answer.ids
    assert isinstance(answer, NothingYet | StreamFinished | Again), answer
    return []


def test_chunks_are_full_and_disjoint_whatever_sessions_ask_for() -> None:
    delivery = stream(*range(1, 11))
    group = delivery.open_group("g", aligned=4)
    assert (chunk(group, A), chunk(group, B)) == ([1, 2, 3, 4], [5, 6, 7, 8])
    assert chunk(group, A) == []
    delivery.add([row(one, one) for one in (11, 12, 13)])
    assert chunk(group, B) == [9, 10, 11, 12]


def test_the_last_chunk_of_a_finished_stream_is_short() -> None:
    delivery = stream(1, 2, 3, 4, 5)
    group = delivery.open_group("g", aligned=4)
    assert chunk(group) == [1, 2, 3, 4]
    assert chunk(group) == []
    delivery.window.finish(5)
    assert chunk(group) == [5]
    assert group.cursor.ack(A, [(1, 5)]) == []
    assert isinstance(group.next_rows(A, 1, 0.0), StreamFinished)


def test_ids_may_have_gaps_and_a_filter_counts_what_it_lets_pass() -> None:
    delivery = stream(2, 4, 6, 9, 12, 14)
    delivery.window.set_watermark(15)
    group = delivery.open_group("g", aligned=2, where="x", matches=lambda one: one[0] % 3 != 0)
    assert chunk(group) == [2, 4]
    assert chunk(group) == []
    assert group.cursor.passed == 3


def test_a_chunk_is_done_when_all_of_it_is_acknowledged() -> None:
    group = stream(*range(1, 9)).open_group("g", aligned=4)
    chunk(group)
    chunk(group)
    assert group.cursor.ack(A, [(1, 1), (3, 6)]) == []
    assert group.snapshot().floor == 0
    assert group.cursor.ack(A, [(2, 2)]) == []
    assert group.snapshot().floor == 4
    assert group.cursor.ack(A, [(7, 8)]) == []
    assert group.snapshot().floor == 8


def test_a_chunk_comes_again_as_a_whole_when_its_session_is_lost_although_part_was_acknowledged() -> None:
    group = stream(*range(1, 9)).open_group("g", aligned=4)
    chunk(group, A)
    group.cursor.ack(A, [(1, 3)])
    group.cursor.drop_session(A)
    again = group.next_rows(B, 1, 0.0)
    assert isinstance(again, Granted)
    assert again.ids == [1, 2, 3, 4]
    assert again.attempts == dict.fromkeys([1, 2, 3, 4], 2)


def test_any_message_of_a_chunk_hands_the_whole_of_it_back() -> None:
    group = stream(*range(1, 9)).open_group("g", aligned=4)
    chunk(group, A)
    assert group.cursor.give_back(A, [3, 4]) == []
    assert chunk(group, B) == [1, 2, 3, 4]
    assert group.cursor.nack(B, [2], 5.0, 10.0) == []
    assert chunk(group, A, 11.0) == [5, 6, 7, 8]
    assert chunk(group, B, 15.0) == [1, 2, 3, 4]
    assert group.cursor.nack(A, [2], 0.0, 15.0) == [2], "held by the other session"


def test_the_acknowledgement_of_a_chunk_that_was_given_to_another_names_all_of_its_messages() -> None:
    group = stream(*range(1, 5)).open_group("g", aligned=4, lease_s=5.0)
    chunk(group, A)
    group.cursor.expire(6.0)
    assert chunk(group, B, 6.0) == [1, 2, 3, 4]
    assert group.cursor.ack(A, [(1, 4)]) == [1, 2, 3, 4]


def test_a_chunk_that_fails_too_often_is_given_up_as_a_whole() -> None:
    group = stream(1, 2, 3, 4).open_group("g", aligned=2, max_attempts=1)
    chunk(group)
    group.cursor.nack(A, [2], 0.0, 0.0)
    assert dict(group.cursor.dead.keys) == {1: 1, 2: 2}
    assert group.snapshot().floor == 2
    assert chunk(group) == [3, 4]


def test_messages_of_a_chunk_that_was_given_up_come_again_one_by_one() -> None:
    group = stream(1, 2, 3, 4).open_group("g", aligned=2, max_attempts=1)
    chunk(group)
    group.cursor.nack(A, [1], 0.0, 0.0)
    assert revive(group, (), everything=True) == 2
    assert [chunk(group), chunk(group), chunk(group)] == [[1], [2], [3, 4]]
    assert group.cursor.ack(A, [(1, 4)]) == []
    assert group.snapshot().floor == 4


def test_after_a_seek_chunks_begin_where_the_group_goes_on() -> None:
    group = stream(*range(1, 9)).open_group("g", aligned=4)
    chunk(group)
    assert group.seek(3) == 4
    assert [chunk(group, B), chunk(group, B)] == [[3, 4, 5, 6], []]
    assert group.cursor.ack(A, [(1, 4)]), "its lease ended with the seek"
    assert group.cursor.held(B) == [3]
    assert group.snapshot().floor == 2


def test_a_message_that_comes_late_is_a_chunk_by_itself() -> None:
    delivery = stream(1, 3, 4, 5, 6)
    delivery.window.set_watermark(7)
    group = delivery.open_group("g", aligned=2)
    assert chunk(group) == [1, 3]
    delivery.add([row(2, 6)])
    late = group.next_rows(B, 1, 0.0)
    assert isinstance(late, Granted)
    assert (late.ids, late.late) == ([2], [2])
    assert chunk(group) == [4, 5]


def test_a_new_core_forms_the_same_chunks() -> None:
    group = stream(*range(1, 14)).open_group("g", aligned=3)
    for _ in range(3):
        chunk(group)
    group.cursor.ack(A, [(4, 6), (7, 8)])
    assert chunk(group) == [10, 11, 12]
    assert chunk(group) == [], "13 was read for the next chunk"
    state = group.snapshot()
    assert (state.floor, state.done, state.aligned) == (0, ((4, 6),), 3)
    after = StreamDelivery(head_seq=13)
    after.window.load([row(one, one) for one in range(1, 14)])
    after.window.finish(13)
    after.window.set_watermark(14)
    group = after.open_group("g", aligned=3, state=state)
    assert [chunk(group) for _ in range(5)] == [[1, 2, 3], [7, 8, 9], [10, 11, 12], [13], []]


def test_the_length_is_fixed_and_bounded() -> None:
    delivery = stream(1)
    delivery.open_group("g", aligned=3)
    with pytest.raises(GroupMismatch, match="aligned 3, not .* aligned 4"):
        delivery.open_group("g", aligned=4)
    with pytest.raises(WrongInput, match="at most"):
        delivery.open_group("h", aligned=MAX_ROWS + 1)


def test_what_is_outstanding_counts_messages() -> None:
    group = stream(*range(1, 9)).open_group("g", aligned=4)
    chunk(group)
    chunk(group)
    group.cursor.give_back(A, [5])
    assert (group.cursor.n_outstanding, group.cursor.n_waiting) == (4, 4)


def test_a_dataset_that_gets_complete_while_its_chunk_fills_is_given_complete() -> None:
    def part(seq: int, message_id: int, substream: int) -> RowTuple:
        return tuple(Row(message_id, seq, substream, 2, 1, 0, 10, 0, 1, "{}", 0, 0, 0, 0))

    delivery = StreamDelivery()
    group = delivery.open_group("g", aligned=2, min_parts=1)
    delivery.add([part(1, 1, 1)])
    assert isinstance(group.next_rows(A, 2, 0.0), NothingYet)
    delivery.add([part(2, 1, 2), part(3, 2, 2)])
    answer = group.next_rows(A, 2, 0.0)
    assert isinstance(answer, Granted)
    assert (answer.ids, len(answer.rows), answer.incomplete) == ([1, 2], 3, 1)
    assert isinstance(group.next_rows(B, 2, 0.0), NothingYet), "nor is it given as late"
