"""What every index promises of all this together, and of deletion."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from asapo.errors import (
    IndexUnavailable,
    StreamBusy,
    UnknownStream,
)
from asapo.index.interface import MetadataIndex, SessionMark
from asapo.models import MAX_ID, Origin, Row
from tests.contract.index_units import (
    ONE,
    TIMEOUT_S,
    Clock,
    IndexFixtures,
    ids_of,
    in_file,
    number,
    ref,
    unit,
)


class WholeContract(IndexFixtures):
    """Together, what is missing, and deletion."""

    # -- together

    def test_threads_commit_and_a_follower_misses_nothing(self, index: MetadataIndex) -> None:
        n_threads, n_units, size = 3, 40, 5
        total = n_threads * n_units * size
        index.open_session(ref(), ONE, 0, False, "r")
        no = number(index)

        def produce(k: int) -> None:
            for u in range(n_units):
                index.commit([unit([(u * size + j) * n_threads + k + 1 for j in range(size)])])

        threads = [threading.Thread(target=produce, args=(k,)) for k in range(n_threads)]
        for thread in threads:
            thread.start()
        seen: list[int] = []
        try:
            while len(seen) < total:
                rows = index.rows_after_seq(no, len(seen), 17)
                assert [row[1] for row in rows] == list(range(len(seen) + 1, len(seen) + 1 + len(rows)))
                seen += ids_of(rows)
                if not rows and not any(thread.is_alive() for thread in threads):
                    assert index.rows_after_seq(no, len(seen), 1), "the producers ended early"
        finally:
            for thread in threads:
                thread.join()
        assert sorted(seen) == list(range(1, total + 1))

    # -- what is missing

    def test_absent_ids_are_ranges_up_to_the_highest_id(self, index: MetadataIndex) -> None:
        index.commit([unit([3, 4, 9, 12]), unit([5], substream=1, dataset_size=2), unit([1], ref("other"))])
        no = number(index)
        assert [tuple(one) for one in index.absent_ids(no, 1, 10)] == [(1, 2), (6, 8), (10, 11)]
        assert [tuple(one) for one in index.absent_ids(no, 1, 2)] == [(1, 2), (6, 8)]
        assert [tuple(one) for one in index.absent_ids(no, 7, 10)] == [(7, 8), (10, 11)]
        assert list(index.absent_ids(no, 12, 10)) == list(index.absent_ids(no, 13, 10)) == []
        assert list(index.absent_ids(99, 1, 10)) == []
        index.commit([unit([MAX_ID], ref("far"))])
        assert [tuple(one) for one in index.absent_ids(number(index, ref("far")), 1, 1)] == [(1, MAX_ID - 1)]

    def test_incomplete_datasets_are_told_with_what_they_have(self, index: MetadataIndex) -> None:
        for part, ids in ((1, [1, 2, 4]), (2, [2, 3, 4]), (3, [2, 4])):
            index.commit([unit(ids, substream=part, dataset_size=3, sizes=[2] * len(ids))])
        index.commit([unit([5, 6])])
        no = number(index)
        assert [tuple(one) for one in index.incomplete(no, 1, 10)] == [(1, 1, 3), (3, 1, 3)]
        assert [tuple(one) for one in index.incomplete(no, 1, 1)] == [(1, 1, 3)]
        assert [tuple(one) for one in index.incomplete(no, 2, 10)] == [(3, 1, 3)]
        index.commit([unit([3], substream=1, dataset_size=3), unit([3], substream=3, dataset_size=3)])
        assert [tuple(one) for one in index.incomplete(no, 2, 10)] == []

    def test_a_closed_index_says_so(self, make: Callable[[], MetadataIndex]) -> None:
        index = make()
        index.commit([unit([1])])
        index.close()
        index.close()
        calls: list[Callable[[], Any]] = [
            lambda: index.commit([unit([2])]),
            lambda: index.rows_after_seq(1, 0, 1),
            lambda: index.heads([1]),
            lambda: index.stream_info(ref()),
        ]
        for call in calls:
            with pytest.raises(IndexUnavailable) as caught:
                call()
            assert caught.value.retriable

    def test_outcomes_line_up_with_units_of_many_streams(self, index: MetadataIndex) -> None:
        refs = itertools.cycle([ref("a"), ref("b"), ref("c")])
        units = [unit([k + 1], next(refs)) for k in range(9)]
        assert [o.first_seq for o in index.commit(units)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]

    # -- deletion

    def test_a_deleted_stream_is_gone_and_its_name_begins_anew(self, index: MetadataIndex) -> None:
        index.commit([unit([1, 2, 3]), unit([5], ref("other")), unit([7], ref(source="mon"))])
        index.set_stream_meta(ref(), '{"a": 1}')
        index.finish_stream(ref(), 3, "")
        before = number(index)
        deletion = index.delete_stream(ref())
        assert (deletion.ref, deletion.moved) == (ref(), False)
        assert index.stream_no(ref()) is None
        assert index.heads([before]) == {}
        assert [info.ref for info in index.streams()] == [ref("other"), ref(source="mon")]
        with pytest.raises(UnknownStream):
            index.stream_info(ref())
        index.finish_deletion(deletion.no, lambda _: None)
        index.clean_deleted()
        assert index.rows_after_seq(before, 0, 10) == []
        (outcome,) = index.commit([unit([2], metas=['{"new": 1}'])])
        assert outcome[:4] == (1, 1, (), ())
        assert number(index) not in (before, number(index, ref("other")), number(index, ref(source="mon")))
        info = index.stream_info(ref())
        assert (info.n_messages, info.id_max, info.head_seq, info.finished, info.meta) == (1, 2, 1, False, {})
        assert [row[9] for row in index.rows_after_seq(number(index), 0, 10)] == ['{"new": 1}']
        assert ids_of(index.rows_after_seq(number(index, ref("other")), 0, 10)) == [5]

    def test_what_does_not_exist_cannot_be_deleted(self, index: MetadataIndex) -> None:
        with pytest.raises(UnknownStream):
            index.delete_stream(ref())
        index.commit([unit([1], origins=[Origin("raw", "run9", 4)])])
        with pytest.raises(UnknownStream):
            index.delete_stream(ref("run9", "raw"))
        index.delete_stream(ref())
        with pytest.raises(UnknownStream):
            index.delete_stream(ref())

    def test_a_stream_that_somebody_writes_to_is_deleted_only_by_force(
        self, index: MetadataIndex, clock: Clock
    ) -> None:
        index.commit([unit([1], session=SessionMark(ONE, 1, "r1"))])
        with pytest.raises(StreamBusy, match="finish") as caught:
            index.delete_stream(ref())
        assert caught.value.sessions == 1
        assert number(index)
        index.delete_stream(ref(), force=True)

        def pass_time() -> None:
            clock.now_s += TIMEOUT_S + 1

        ends: list[Callable[[], None]] = [
            lambda: index.close_session(ONE), lambda: index.finish_stream(ref(), 1, ""), pass_time,
        ]  # fmt: skip
        for end in ends:
            index.commit([unit([1], session=SessionMark(ONE, 1, "r1"))])
            with pytest.raises(StreamBusy):
                index.delete_stream(ref())
            end()
            index.delete_stream(ref())

    def test_a_stream_can_be_deleted_by_its_number_only(self, index: MetadataIndex) -> None:
        index.commit([unit([1])])
        older = number(index)
        index.delete_stream(ref(), number=older)
        index.commit([unit([1])])
        with pytest.raises(UnknownStream):
            index.delete_stream(ref(), number=older)
        index.delete_stream(ref(), number=number(index))

    def test_what_lies_in_a_segment_of_before_a_deletion_is_not_taken(self, index: MetadataIndex) -> None:
        begun = index.last_deletion()
        index.commit([unit([1], begun=begun), unit([1], ref("other"), begun=begun)])
        deletion = index.delete_stream(ref())
        assert index.last_deletion() == index.last_deletion(ref()) == deletion.no > begun
        assert index.last_deletion(ref("never")) == 0
        outcomes = index.commit([unit([2], begun=begun), unit([2], ref("other"), begun=begun)])
        assert [(one.void, one.first_seq) for one in outcomes] == [(True, 0), (False, 2)]
        assert index.stream_no(ref()) is None
        outcomes = index.commit([unit([2], begun=deletion.no), unit([3])])
        assert [(one.void, one.first_seq) for one in outcomes] == [(False, 1), (False, 2)]

    def test_files_of_a_deleted_stream_are_moved_once_and_their_names_are_free(self, index: MetadataIndex) -> None:
        path = "/t/bt/det/run1/r1-1-000001.seg"
        number_ = index.register_segment(path, "r1", 1, "u", "b", ref())
        memory = index.register_segment("memory:r1-1", "r1", 1, "u", "b", ref())
        other = index.register_segment("/t/bt/det/other/r1-1-000002.seg", "r1", 1, "u", "b", ref("other"))
        index.commit([unit([1], segment=number_), in_file(2, "a.cbf")])
        deletion = index.delete_stream(ref(), folders=["/u/bt/det/run1"])
        assert deletion.folders == ("/t/bt/det/run1", "/u/bt/det/run1")
        assert index.deletions() == [deletion]
        moved: list[Any] = []
        with pytest.raises(ZeroDivisionError):
            index.finish_deletion(deletion.no, lambda _: moved.append(1 // 0))
        assert not index.deletions()[0].moved
        for _ in range(2):
            index.finish_deletion(deletion.no, moved.append)
        assert moved == [deletion]
        assert index.deletions() == [replace(deletion, moved=True)]
        assert index.deletions(deletion.no) == []
        assert index.known_segments([path]) == set()
        assert sorted(index.segments([number_, memory, other])) == [memory, other]
        (outcome,) = index.commit([in_file(2, "a.cbf")])
        assert outcome.first_seq == 1
        assert outcome.segment > other

    def test_a_segment_that_holds_nothing_can_be_withdrawn(self, index: MetadataIndex) -> None:
        number_ = index.register_segment("/t/bt/det/run1/r1-1-000001.seg", "r1", 1, "u", "b", ref())
        assert index.open_segments("r1")
        index.withdraw_segment(number_)
        assert index.open_segments("r1") == []

    def test_the_origin_of_a_message_keeps_its_name_when_it_is_deleted(self, index: MetadataIndex) -> None:
        index.commit([unit([4], ref("run9", "raw"))])
        index.commit([unit([1], origins=[Origin("raw", "run9", 4)])])
        origin = Row._make(index.rows_after_seq(number(index), 0, 1)[0]).origin
        index.delete_stream(ref("run9", "raw"))
        index.commit([unit([4], ref("run9", "raw"))])
        assert index.stream_refs([origin]) == {origin: ref("run9", "raw")}
        assert number(index, ref("run9", "raw")) != origin
