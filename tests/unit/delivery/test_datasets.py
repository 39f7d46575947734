"""Datasets of which parts are missing: when they are given, in which place, and that it happens once."""

from collections.abc import Iterable
from math import inf
from typing import Any

import pytest

from asapo.delivery.datasets import MAX_GIVEN_RANGES, Aside, DatasetRule, Incomplete
from asapo.delivery.group import Group
from asapo.delivery.leases import GroupState
from asapo.delivery.needs import Granted, NeedBacklog
from asapo.delivery.rows import Parts, RowTuple
from asapo.delivery.stream import StreamDelivery
from asapo.errors import GroupMismatch, NothingYet, StreamFinished, WrongInput
from asapo.models import Row

A, B = b"a", b"b"


def part(message_id: int, seq: int, substream: int, size: int = 3) -> RowTuple:
    return tuple(Row(message_id, seq, substream, size, 1, 0, 10, 0, 1, "{}", 0, 0, 0, 0))


class World:
    """A stream of datasets of three parts, told of by (id, substream) pairs."""

    def __init__(self, **terms: Any) -> None:
        self.delivery = StreamDelivery()
        self.seq = 0
        self.terms = terms
        self.group: Group = self.delivery.open_group("g", **terms)

    def come(self, *parts: tuple[int, int], now_s: float = 0.0, size: int = 3) -> None:
        rows = []
        for message_id, substream in parts:
            self.seq += 1
            rows.append(part(message_id, self.seq, substream, size))
        self.delivery.add(rows, now_s)

    def given(self, now_s: float = 0.0, n: int = 10, session: bytes = A) -> list[tuple[int, int]]:
        """Ask once and acknowledge; return (id, number of parts) of each dataset."""
        answer = self.group.next_rows(session, n, now_s)
        if not isinstance(answer, Granted):
            assert isinstance(answer, NothingYet | StreamFinished), answer
            return []
        assert self.group.cursor.ack(session, [(one, one) for one in answer.ids]) == []
        return [(one, sum(row[0] == one for row in answer.rows)) for one in answer.ids]


def whole(*ids: int) -> Iterable[tuple[int, int]]:
    return [(one, substream) for one in ids for substream in (1, 2, 3)]


def test_without_a_rule_an_incomplete_dataset_is_passed_when_it_is_settled() -> None:
    world = World()
    world.come((1, 1), *whole(2))
    assert world.given() == []
    world.delivery.window.set_watermark(3)
    assert world.given() == [(2, 3)]
    world.come((1, 2), (1, 3))
    answer = world.group.next_rows(A, 1, 0.0)
    assert isinstance(answer, Granted)
    assert answer.late == [1]


def test_min_parts_gives_a_dataset_as_soon_as_it_has_so_many_and_goes_on_behind_it() -> None:
    world = World(min_parts=2)
    world.come((1, 1), *whole(2, 3))
    assert world.given() == []
    world.come((1, 3))
    assert world.given() == [(1, 2), (2, 3), (3, 3)]
    world.come((4, 2), (4, 1), (5, 1))
    assert world.given() == [(4, 2)]
    assert world.given() == []


def test_with_min_parts_a_settled_dataset_that_has_fewer_is_a_gap_and_comes_late_when_it_has_enough() -> None:
    world = World(min_parts=2)
    world.come((1, 1), *whole(2))
    world.delivery.window.set_watermark(3)
    assert world.given() == [(2, 3)]
    world.come((1, 2))
    answer = world.group.next_rows(A, 1, 0.0)
    assert isinstance(answer, Granted)
    assert (answer.ids, answer.late, len(answer.rows), answer.incomplete) == ([1], [1], 2, 1)


def test_a_dataset_is_given_when_its_time_is_over_counted_from_its_first_part() -> None:
    world = World(dataset_timeout_s=5.0)
    world.come((1, 1), now_s=100.0)
    world.come((1, 2), *whole(2), now_s=103.0)
    assert world.given(now_s=104.9) == []
    assert world.group.next_event_s() == 105.0
    assert world.given(now_s=105.0) == [(1, 2), (2, 3)]
    assert world.group.next_event_s() == inf


def test_the_time_counts_although_the_watermark_has_passed_the_dataset() -> None:
    world = World(dataset_timeout_s=5.0)
    world.come((1, 1), *whole(2), now_s=100.0)
    world.delivery.window.set_watermark(3)
    assert world.given(now_s=104.0) == []
    assert world.given(now_s=105.0) == [(1, 1), (2, 3)]


def test_at_the_end_of_a_stream_no_dataset_is_waited_for() -> None:
    world = World(dataset_timeout_s=5.0)
    world.come(*whole(1), (2, 1), now_s=100.0)
    world.delivery.window.set_watermark(3)
    world.delivery.window.finish(2)
    assert world.given(now_s=100.0) == [(1, 3), (2, 1)]
    assert isinstance(world.group.next_rows(A, 1, 100.0), StreamFinished)


def test_a_hole_below_an_incomplete_dataset_is_waited_for() -> None:
    world = World(min_parts=1)
    world.come((2, 1))
    assert world.given() == []
    world.come((1, 3))
    assert world.given() == [(1, 1), (2, 1)]


def test_a_dataset_is_given_once_and_later_parts_are_counted() -> None:
    world = World(min_parts=1)
    world.come((1, 1), (2, 1))
    assert world.given() == [(1, 1), (2, 1)]
    world.come((1, 2), (2, 2), (1, 3))
    assert world.given() == []
    assert world.delivery.late_parts == 3
    assert world.group.snapshot().late_parts == 3


def test_parts_that_come_before_the_dataset_is_given_are_not_late() -> None:
    world = World(min_parts=2)
    world.come((1, 1), (1, 2), (1, 3))
    assert world.given() == [(1, 3)]
    assert world.delivery.late_parts == 0


def test_what_was_given_incomplete_is_not_given_again_by_a_new_core_and_what_is_not_acknowledged_is() -> None:
    world = World(min_parts=1)
    world.come((1, 1), (2, 1), (3, 1))
    answer = world.group.next_rows(A, 3, 0.0)
    assert isinstance(answer, Granted)
    world.group.cursor.ack(A, [(1, 1), (3, 3)])
    state = world.group.snapshot()
    assert state.given_incomplete == ((1, 3),)
    after = StreamDelivery(head_seq=3)
    after.window.load([part(1, 1, 1), part(2, 2, 1), part(3, 3, 1)])
    after.window.id_max = 3
    world.delivery, world.group = after, after.open_group("g", min_parts=1, state=state)
    world.come((1, 2), (1, 3), (3, 2), (3, 3))
    assert world.given() == [(2, 1)]
    assert world.given() == []
    assert world.delivery.late_parts == 4


def test_a_redelivered_incomplete_dataset_is_what_it_was() -> None:
    world = World(min_parts=2)
    world.come((1, 1), (1, 2))
    answer = world.group.next_rows(A, 1, 0.0)
    assert isinstance(answer, Granted)
    world.come((1, 3))
    world.group.cursor.nack(A, [1], 0.0, 0.0)
    again = world.group.next_rows(B, 1, 0.0)
    assert isinstance(again, Granted)
    assert (again.rows, again.attempts) == (answer.rows, {1: 2})


def test_old_datasets_are_read_from_the_index_without_waiting_for_their_time() -> None:
    delivery = StreamDelivery(low=10, head_seq=4)
    delivery.window.set_watermark(10)
    group = delivery.open_group("g", dataset_timeout_s=1000.0)
    need = group.next_rows(A, 5, 0.0)
    assert isinstance(need, NeedBacklog)
    group.add_backlog([part(1, 1, 1), *(part(2, 1 + n, n) for n in (1, 2, 3))], from_key=1, covered_below=10)
    answer = group.next_rows(A, 5, 0.0)
    assert isinstance(answer, Granted)
    assert (answer.ids, answer.incomplete) == ([1, 2], 1)


def test_a_dataset_of_the_backlog_that_gets_complete_meanwhile_is_given_complete() -> None:
    delivery = StreamDelivery(low=10, head_seq=2)
    delivery.window.set_watermark(10)
    group = delivery.open_group("g", min_parts=2)
    assert isinstance(group.next_rows(A, 5, 0.0), NeedBacklog)
    group.add_backlog([part(1, 1, 1), part(1, 2, 2)], from_key=1, covered_below=10)
    delivery.add([part(1, 3, 3)], 0.0)
    assert delivery.window.orphans == {1}
    delivery.add_parts([part(1, 1, 1), part(1, 2, 2), part(1, 3, 3)], 0.0)
    answer = group.next_rows(A, 5, 0.0)
    assert isinstance(answer, Granted)
    assert (answer.ids, len(answer.rows), answer.incomplete) == ([1], 3, 0)


def test_a_gap_of_the_core_before_that_gets_complete_while_it_waits_in_the_backlog_is_given() -> None:
    state = GroupState(True, "", 0, ((2, 2),), (), (), 4, 0, 0, min_parts=1)
    delivery = StreamDelivery(low=10, head_seq=4)
    delivery.window.set_watermark(10)
    group = delivery.open_group("g", min_parts=1, state=state)
    assert isinstance(group.next_rows(A, 5, 0.0), NeedBacklog)
    group.add_backlog([*(part(1, n, n) for n in (1, 2, 3)), part(2, 4, 1)], from_key=1, covered_below=10)
    delivery.add([part(2, 5, 2), part(2, 6, 3)], 0.0)
    delivery.add_parts([part(2, 4, 1), part(2, 5, 2), part(2, 6, 3)], 0.0)
    answer = group.next_rows(A, 5, 0.0)
    assert isinstance(answer, Granted)
    assert (answer.ids, answer.incomplete) == ([1, 2], 0)


def test_parts_of_an_incomplete_dataset_that_lies_far_back_are_given_with_it() -> None:
    delivery = StreamDelivery(low=10, head_seq=1)
    delivery.window.set_watermark(10)
    group = delivery.open_group("g", min_parts=2)
    delivery.add([part(4, 2, 2)], 0.0)
    delivery.add_parts([part(4, 1, 1), part(4, 2, 2)], 0.0)
    need = group.next_rows(A, 5, 0.0)
    assert isinstance(need, NeedBacklog)
    group.add_backlog([part(4, 1, 1)], from_key=1, covered_below=10)
    answer = group.next_rows(A, 5, 0.0)
    assert isinstance(answer, Granted)
    assert (answer.ids, len(answer.rows)) == ([4], 2)


def test_the_filter_looks_at_the_parts_that_are_there() -> None:
    world = World(min_parts=1, where="x", matches=lambda row: row[2] == 2)
    world.come((1, 1), (2, 2), (3, 3))
    assert world.given() == [(2, 1)]
    assert world.group.cursor.passed == 2


def test_terms_are_fixed_by_the_first_read() -> None:
    world = World(min_parts=2, dataset_timeout_s=1.0)
    with pytest.raises(GroupMismatch, match="min_parts 2, dataset_timeout_s 1.0, not .* min_parts 3") as caught:
        world.delivery.open_group("g", min_parts=3)
    assert caught.value.fields["expected"]["min_parts"] == 2
    with pytest.raises(WrongInput, match="need ordered=True"):
        world.delivery.open_group("other", ordered=False, min_parts=1)


def test_aside_keeps_the_highest_datasets_when_it_is_cut() -> None:
    aside = Aside(1)
    for number in range(1, 11):
        assert aside.add(part(number, number, 1), float(number)) is None
    aside.prune(4)
    assert aside.low == 7
    assert [one in aside for one in (6, 7)] == [False, True]
    assert (aside.since_s(7), aside.since_s(6)) == (7.0, -inf)
    assert (aside.first_from(1), aside.first_from(11)) == (7, None)
    assert aside.add(part(7, 20, 1), 30.0) is None, "the same part again is no second one"
    assert aside.add(part(7, 21, 2), 30.0) is None
    assert aside.add(part(7, 22, 3), 30.0) == Parts([part(7, 20, 1), part(7, 21, 2), part(7, 22, 3)])
    assert 7 not in aside


def test_what_was_given_incomplete_is_remembered_within_bounds() -> None:
    incomplete = Incomplete(DatasetRule(min_parts=1))
    n = MAX_GIVEN_RANGES + 10
    for number in range(1, n + 1):
        incomplete.note_given([Parts([part(2 * number, number, 1)])])
    assert len(incomplete.given) == MAX_GIVEN_RANGES
    assert (20 in incomplete.given, 22 in incomplete.given, 2 * n in incomplete.given) == (False, True, True)
