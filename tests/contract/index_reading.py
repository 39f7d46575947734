"""What every index promises of reading, sessions and segments."""

from __future__ import annotations

from typing import Any

import pytest

from asapo.errors import (
    StreamBusy,
    StreamFinished,
    UnknownStream,
    WrongInput,
)
from asapo.index.interface import MetadataIndex, SessionMark
from asapo.models import SegmentInfo
from asapo.query import (
    Query,
)
from tests.contract.index_units import (
    ONE,
    TIMEOUT_S,
    TWO,
    Clock,
    IndexFixtures,
    ids_of,
    number,
    ref,
    unit,
)


class ReadingContract(IndexFixtures):
    """Reading, the end of a stream, sessions and watermark, segments."""

    # -- reading

    def test_rows_page_by_arrival_and_by_id(self, index: MetadataIndex) -> None:
        index.commit([unit([10, 30, 50]), unit([20, 40])])
        no = number(index)
        assert ids_of(index.rows_after_seq(no, 1, 3)) == [30, 50, 20]
        assert index.rows_after_seq(no, 5, 3) == []
        assert index.rows_after_seq(no, 2**62, 3) == []
        assert ids_of(index.rows_from_id(no, 20, 50, 10)) == [20, 30, 40]
        assert ids_of(index.rows_from_id(no, 0, 2**63, 2)) == [10, 20]
        assert index.rows_from_id(no, 50, 50, 10) == []
        assert index.rows_from_id(no + 1, 0, 2**63, 2) == []

    def test_streams_do_not_see_each_others_rows(self, index: MetadataIndex) -> None:
        index.commit([unit([1, 2], ref("a")), unit([3], ref("b")), unit([4], ref("a"))])
        a, b = number(index, ref("a")), number(index, ref("b"))
        assert ids_of(index.rows_after_seq(a, 0, 10)) == [1, 2, 4]
        assert ids_of(index.rows_after_seq(b, 0, 10)) == [3]
        everything = Query()
        assert ids_of(index.query(a, everything)) == [1, 2, 4]
        assert ids_of(index.query(b, everything)) == [3]

    def test_one_message_is_found_by_id_and_substream(self, index: MetadataIndex) -> None:
        index.commit([unit([4], substream=k, dataset_size=2) for k in (2, 1)])
        no = number(index)
        assert [index.row(no, 4, k)[2] for k in (1, 2)] == [1, 2]  # type: ignore[index]
        assert index.row(no, 4)[2] == 1  # type: ignore[index]
        assert index.row(no, 4, 3) is None
        assert index.row(no, 5) is None
        assert index.row(no, 0) is None

    def test_the_last_message_is_the_highest_complete_id(self, index: MetadataIndex) -> None:
        index.commit([unit([5, 3])])
        no = number(index)
        assert index.last_row(no)[0] == 5  # type: ignore[index]
        index.commit([unit([8], substream=1, dataset_size=2), unit([9], substream=2, dataset_size=2)])
        assert index.last_row(no)[0] == 5  # type: ignore[index]
        index.commit([unit([8], substream=2, dataset_size=2)])
        assert index.last_row(no)[:3] == (8, 3, 1)  # type: ignore[index]
        assert index.last_row(no + 7) is None

    def test_stream_info_counts_messages_and_bytes(self, index: MetadataIndex) -> None:
        with pytest.raises(UnknownStream) as caught:
            index.stream_info(ref())
        assert (caught.value.source, caught.value.stream) == ("det", "run1")
        index.commit([unit([4, 9], sizes=[100, 1000])])
        index.commit([unit([4, 5], sizes=[100, 10])])
        info = index.stream_info(ref())
        assert (info.n_messages, info.n_bytes, info.id_max, info.head_seq) == (3, 1110, 9, 3)
        assert (info.closed_below, info.finished, info.meta) == (10, False, {})

    def test_streams_are_listed_in_pages(self, index: MetadataIndex) -> None:
        names = [("b", "2"), ("a", "x"), ("b", "1"), ("b", "ä"), ("b", "Z")]
        index.commit([unit([1], ref(stream, source)) for source, stream in names])
        everything = [(info.ref.source, info.ref.stream) for info in index.streams()]
        assert everything == sorted(names, key=lambda pair: (pair[0].encode(), pair[1].encode()))
        paged: list[Any] = []
        while page := index.streams(after=paged[-1].ref if paged else None, limit=2):
            paged += page
        assert [(info.ref.source, info.ref.stream) for info in paged] == everything
        assert [info.ref.stream for info in index.streams("b", after=ref("1", "b"))] == ["2", "Z", "ä"]
        assert index.sources() == ["a", "b"]

    def test_heads_of_many_streams_come_in_one_look(self, index: MetadataIndex) -> None:
        refs = [ref(f"s{k}") for k in range(5)]
        index.commit([unit([k + 1], to) for k, to in enumerate(refs)])
        numbers = [number(index, to) for to in refs]
        heads = index.heads([*numbers, 10**6])
        assert {no: head.id_max for no, head in heads.items()} == dict(zip(numbers, range(1, 6), strict=True))
        assert index.heads([]) == {}

    def test_stream_and_beamtime_have_metadata(self, index: MetadataIndex) -> None:
        assert index.beamtime_meta() == "{}"
        index.set_beamtime_meta('{"pi": "Röntgen"}')
        assert index.beamtime_meta() == '{"pi": "Röntgen"}'
        with pytest.raises(UnknownStream):
            index.stream_meta(ref())
        index.set_stream_meta(ref(), '{"sample": {"name": "lysozyme"}}')
        index.set_stream_meta(ref(), '{"sample":  2}')
        assert index.stream_meta(ref()) == '{"sample":  2}'
        assert index.stream_info(ref()).meta == {"sample": 2}
        for text in ("[]", "nonsense"):
            with pytest.raises(WrongInput):
                index.set_stream_meta(ref(), text)
            with pytest.raises(WrongInput):
                index.set_beamtime_meta(text)

    # -- the end of a stream

    def test_a_finished_stream_takes_resent_and_late_ids_but_none_beyond(self, index: MetadataIndex) -> None:
        index.commit([unit([1, 5])])
        index.finish_stream(ref(), 6, "run2")
        outcomes = index.commit([unit([3]), unit([5, 6, 7])])
        assert [o.head_seq for o in outcomes] == [3, 4]
        ((position, error),) = outcomes[1].errors
        assert position == 2
        assert isinstance(error, StreamFinished)
        assert (error.id_max, error.next_stream) == (6, "run2")
        head = index.heads([number(index)])[number(index)]
        assert head[:5] == (4, 6, True, 6, "run2")

    def test_finishing_is_idempotent_only_with_equal_values(self, index: MetadataIndex) -> None:
        index.finish_stream(ref(), 0, "")
        index.finish_stream(ref(), 0, "")
        for last_id, next_stream in ((1, ""), (0, "b")):
            with pytest.raises(WrongInput):
                index.finish_stream(ref(), last_id, next_stream)
        index.commit([unit([4], ref("b"))])
        with pytest.raises(WrongInput) as caught:
            index.finish_stream(ref("b"), 3, "")
        assert caught.value.id_max == 4
        assert index.stream_info(ref()).finished
        assert not index.stream_info(ref("b")).finished

    # -- sessions and watermark

    def test_without_sessions_everything_is_closed(self, index: MetadataIndex) -> None:
        assert index.watermark(1) == 0
        index.commit([unit([7])])
        assert index.watermark(number(index)) == 8

    def test_the_slowest_open_session_holds_the_watermark(self, index: MetadataIndex) -> None:
        index.commit([
            unit([10], session=SessionMark(ONE, 10, "r1")),
            unit([14], session=SessionMark(TWO, 12, "r2")),
        ])  # fmt: skip
        no = number(index)
        assert index.watermark(no) == 10
        index.beat(ONE, {ref(): 15})
        assert index.watermark(no) == 12
        index.close_session(TWO)
        assert index.watermark(no) == 15
        index.close_session(ONE)
        assert index.watermark(no) == 15  # id_max + 1

    def test_a_mark_of_a_session_never_falls(self, index: MetadataIndex) -> None:
        index.commit([unit([10], session=SessionMark(ONE, 10, "r1")), unit([2], session=SessionMark(ONE, 2, "r2"))])
        index.beat(ONE, {ref(): 3})
        assert index.watermark(number(index)) == 10

    def test_a_refused_message_still_carries_the_mark(self, index: MetadataIndex) -> None:
        index.commit([unit([1], session=SessionMark(ONE, 1, "r1"))])
        index.commit([unit([1], sizes=[9], session=SessionMark(ONE, 6, "r1"))])
        assert index.watermark(number(index)) == 6

    def test_a_lost_session_holds_nobody_back(self, index: MetadataIndex, clock: Clock) -> None:
        index.commit([unit([5], session=SessionMark(ONE, 2, "r1"))])
        no = number(index)
        clock.now_s += TIMEOUT_S - 0.001
        assert index.watermark(no) == 2
        index.beat(ONE, {})
        clock.now_s += TIMEOUT_S - 0.001
        assert index.watermark(no) == 2
        clock.now_s += 0.002
        assert index.watermark(no) == 6
        index.beat(ONE, {ref(): 3})
        assert index.watermark(no) == 3

    def test_a_session_that_only_beats_keeps_its_right_to_number(self, index: MetadataIndex, clock: Clock) -> None:
        index.open_session(ref(), ONE, 0, True, "r1")
        for _ in range(3):
            clock.now_s += TIMEOUT_S - 0.001
            index.beat(ONE, {})
            with pytest.raises(StreamBusy):
                index.open_session(ref(), TWO, 0, True, "r2")
        clock.now_s += TIMEOUT_S + 0.001
        index.open_session(ref(), TWO, 0, True, "r2")

    def test_a_closed_session_is_not_revived_by_a_beat(self, index: MetadataIndex) -> None:
        index.commit([unit([5], session=SessionMark(ONE, 2, "r1"))])
        index.close_session(ONE)
        index.beat(ONE, {ref(): 3})
        assert index.watermark(number(index)) == 6

    def test_sessions_hold_back_only_their_streams(self, index: MetadataIndex) -> None:
        index.commit([unit([5], session=SessionMark(ONE, 2, "r1")), unit([5], ref("b"))])
        assert index.watermark(number(index, ref("b"))) == 6
        assert index.stream_info(ref()).closed_below == 2

    def test_modules_of_a_dataset_hold_each_other_back(self, index: MetadataIndex) -> None:
        index.commit([
            unit([5], substream=1, dataset_size=2, session=SessionMark(ONE, 5, "r")),
            unit([3], substream=2, dataset_size=2, session=SessionMark(TWO, 3, "r")),
        ])  # fmt: skip
        assert index.watermark(number(index)) == 3

    def test_opening_tells_the_highest_id_and_creates_the_stream(self, index: MetadataIndex) -> None:
        opened = index.open_session(ref(), ONE, 0, True, "r1")
        assert (opened.id_max, opened.closed_below, opened.finished) == (0, 1, False)
        assert index.stream_info(ref()).n_messages == 0
        index.commit([unit(range(1, 8), session=SessionMark(ONE, 8, "r1"))])
        index.close_session(ONE)
        opened = index.open_session(ref(), TWO, 0, True, "r1")
        assert (opened.id_max, opened.closed_below) == (7, 8)
        index.finish_stream(ref(), 7, "n")
        opened = index.open_session(ref(), TWO, 0, True, "r2")
        assert (opened.finished, opened.last_id, opened.next_stream) == (True, 7, "n")

    def test_a_session_that_gives_ids_closes_nothing_by_opening(self, index: MetadataIndex) -> None:
        index.commit([unit([5])])
        assert index.open_session(ref(), ONE, 0, False, "r").closed_below == 0
        assert index.watermark(number(index)) == 0

    def test_only_one_live_session_numbers_a_stream(self, index: MetadataIndex, clock: Clock) -> None:
        index.open_session(ref(), ONE, 0, True, "r1")
        with pytest.raises(StreamBusy) as caught:
            index.open_session(ref(), TWO, 0, True, "r2")
        assert caught.value.receiver_id == "r1"
        index.open_session(ref(), ONE, 0, True, "r2")
        index.open_session(ref(), TWO, 0, False, "r2")
        index.open_session(ref("b"), TWO, 0, True, "r2")
        clock.now_s += TIMEOUT_S + 1
        assert index.open_session(ref(), TWO, 0, True, "r2").id_max == 0

    def test_modules_number_on_their_own(self, index: MetadataIndex) -> None:
        index.open_session(ref(), ONE, 1, True, "r")
        index.commit([unit(range(1, 5), substream=1, dataset_size=2)])
        assert index.open_session(ref(), TWO, 2, True, "r").id_max == 0
        assert index.open_session(ref(), ONE, 1, True, "r").id_max == 4

    # -- segments

    def test_segments_are_numbered_once_per_path(self, index: MetadataIndex) -> None:
        first = index.register_segment("/t/a.seg", "r1", 3, "tier", "boot", ref())
        second = index.register_segment("/t/b.seg", "r2", 1, "tier", "boot", ref())
        assert index.register_segment("/t/a.seg", "r1", 3, "tier", "boot", ref()) == first
        assert 0 < first < second
        assert index.segments([first, 99]) == {first: SegmentInfo("/t/a.seg", "r1", "boot", "tier")}

    def test_open_segments_of_a_receiver_are_listed_until_closed(self, index: MetadataIndex) -> None:
        numbers = [index.register_segment(f"/t/{k}.seg", "r1", k, "tier", "boot", ref()) for k in range(3)]
        index.register_segment("/t/x.seg", "r2", 1, "tier", "boot", ref())
        index.close_segment(numbers[1])
        assert [(s.no, s.path, s.epoch, s.ref) for s in index.open_segments("r1")] == [
            (numbers[0], "/t/0.seg", 0, ref()), (numbers[2], "/t/2.seg", 2, ref())
        ]  # fmt: skip
        assert index.open_segments("r3") == []
        paths = ["/t/1.seg", "/t/2.seg", "/t/x.seg"]
        assert index.known_segments([*paths, "/t/y.seg", "/t/ü'\".seg"]) == set(paths)
        assert index.known_segments([]) == set()
