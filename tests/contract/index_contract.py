"""What every metadata index must do; a new back end subclasses `IndexContract` and is done when it passes."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asapo.errors import (
    DuplicateFile,
    DuplicateId,
    IndexUnavailable,
    StreamBusy,
    StreamFinished,
    UnknownStream,
    WrongInput,
)
from asapo.index.interface import MetadataIndex, OwnFile, SessionMark, StreamHead, UnitRecord
from asapo.models import MAX_ID, PLAIN, Format, Origin, Row, SegmentInfo, StreamRef
from asapo.query import (
    And,
    Boolean,
    Builtin,
    Comparison,
    MetaKey,
    Not,
    Number,
    Or,
    Order,
    Query,
    Record,
    Text,
    parse,
    select,
)
from tests.contract import query_corpus

TIMEOUT_S = 10.0
ONE, TWO = b"1" * 16, b"2" * 16

AS_THE_EVALUATOR = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
"""Each example has a stream of its own, so one index serves them all; every back end runs the same test."""


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ref(stream: str = "run1", source: str = "det") -> StreamRef:
    return StreamRef("bt", source, stream)


def unit(ids: Sequence[int], to: StreamRef | None = None, **changes: Any) -> UnitRecord:
    """Return a plausible unit; every id has its own metadata, checksum and place."""
    n = len(ids)
    values: dict[str, Any] = {
        "ref": to or ref(),
        "ids": ids,
        "offsets": [64 * i for i in range(n)],
        "sizes": [50] * n,
        "checksums": [-i for i in ids],
        "metas": [json.dumps({"n": i}) for i in ids],
        "t_acq_ns": [10 * i for i in range(n)],
        "t_ingest_ns": 77,
        "segment": 1,
    }
    return UnitRecord(**(values | changes))


def in_file(message_id: int, path: str) -> UnitRecord:
    """Return a unit of one message with a file of its own."""
    file = OwnFile(f"/t/bt/det/run1/files/{path}", "r1", 1, "u", "b")
    return unit([message_id], segment=0, offsets=[0], file=file)


def number(index: MetadataIndex, to: StreamRef | None = None) -> int:
    no = index.stream_no(to or ref())
    assert no is not None
    return no


def ids_of(rows: Sequence[Any]) -> list[int]:
    return [row[0] for row in rows]


class IndexContract:
    """Subclass it and give `make`."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def make(self) -> Callable[[], MetadataIndex]:
        """Return a function that gives a fresh index of beamtime `bt` on `clock` with sessions of TIMEOUT_S."""
        raise NotImplementedError

    @pytest.fixture
    def index(self, make: Callable[[], MetadataIndex]) -> Iterator[MetadataIndex]:
        index = make()
        yield index
        index.close()

    # -- commit

    def test_a_row_comes_back_as_it_went_in(self, index: MetadataIndex) -> None:
        kind = Format("<u2", (3, 4), "bslz4")
        index.commit([unit([7], format=kind, substream=2, dataset_size=3, checksums=[-(2**63)], segment=9)])
        (row,) = index.rows_after_seq(number(index), 0, 10)
        formats = index.formats([row[8]])
        assert formats == {row[8]: kind}
        expected = Row(7, 1, 2, 3, 9, 0, 50, -(2**63), row[8], '{"n": 7}', 0, 77, 0, 0)
        assert tuple(row) == tuple(expected)

    def test_arrival_numbers_are_dense_in_the_order_of_the_units(self, index: MetadataIndex) -> None:
        outcomes = index.commit([unit([5, 9]), unit([1], ref("other")), unit(range(2, 5)), unit([])])
        assert [tuple(o)[:2] for o in outcomes] == [(1, 2), (1, 1), (3, 5), (0, 5)]
        assert [(row[0], row[1]) for row in index.rows_after_seq(number(index), 0, 10)] == [
            (5, 1), (9, 2), (2, 3), (3, 4), (4, 5)
        ]  # fmt: skip

    def test_a_commit_without_units_does_nothing(self, index: MetadataIndex) -> None:
        assert index.commit([]) == []
        assert index.streams() == []

    def test_the_same_bytes_again_are_no_news(self, index: MetadataIndex) -> None:
        index.commit([unit([1, 2])])
        (outcome,) = index.commit([unit([1, 2])])
        assert outcome[:4] == (0, 2, (), ())

    def test_the_same_content_at_another_place_is_success_and_spare(self, index: MetadataIndex) -> None:
        index.commit([unit([1, 2])])
        (outcome,) = index.commit([unit([1, 2, 3], segment=2)])
        assert outcome[:4] == (3, 3, (), (0, 1))
        assert [row[4] for row in index.rows_after_seq(number(index), 0, 10)] == [1, 1, 2]

    # -- files of single messages

    def test_a_file_is_registered_with_its_message_and_closed(self, index: MetadataIndex) -> None:
        (outcome,) = index.commit([in_file(1, "a.cbf")])
        assert outcome.first_seq == outcome.head_seq == 1
        assert outcome.segment > 0
        row = Row._make(index.rows_after_seq(number(index), 0, 10)[0])
        assert (row.segment, row.offset, row.size) == (outcome.segment, 0, 50)
        assert index.segments([row.segment]) == {row.segment: SegmentInfo("/t/bt/det/run1/files/a.cbf", "r1", "b", "u")}
        assert index.open_segments("r1") == []

    def test_the_same_message_with_the_same_file_is_no_news(self, index: MetadataIndex) -> None:
        (first,) = index.commit([in_file(1, "a.cbf")])
        (again,) = index.commit([in_file(1, "a.cbf")])  # a journal replayed
        assert again[:4] == (0, 1, (), ())
        (later,) = index.commit([replace(in_file(1, "a.cbf"), t_ingest_ns=78)])  # sent again: that record is spare
        assert later[:4] == (0, 1, (), (0,))
        assert first.segment == again.segment == later.segment

    def test_a_file_belongs_to_one_message(self, index: MetadataIndex) -> None:
        outcomes = index.commit([in_file(1, "a.cbf"), in_file(2, "a.cbf"), in_file(3, "b.cbf"), unit([4])])
        assert [outcome.head_seq for outcome in outcomes] == [1, 1, 2, 3]
        ((at, error),) = outcomes[1].errors
        assert (at, type(error)) == (0, DuplicateFile)
        assert (error.path, error.message_id, outcomes[1].segment) == ("a.cbf", 2, 0)
        assert ids_of(index.rows_after_seq(number(index), 0, 10)) == [1, 3, 4]

    @pytest.mark.parametrize(
        ("before", "refused"),
        [
            ({"segment": 5}, ()),  # there already, elsewhere: this file is spare
            ({"metas": ['{"other": 1}'], "segment": 5}, (DuplicateId,)),
        ],
    )
    def test_the_file_of_a_message_that_is_not_taken_stays_free(
        self, index: MetadataIndex, before: dict[str, Any], refused: tuple[type[Exception], ...]
    ) -> None:
        index.commit([unit([1], **before)])
        (outcome,) = index.commit([in_file(1, "a.cbf")])
        assert tuple(type(error) for _, error in outcome.errors) == refused
        assert outcome.superseded == (() if refused else (0,))
        assert outcome.segment == 0
        (taken,) = index.commit([in_file(2, "a.cbf")])
        assert (taken.errors, taken.head_seq) == ((), 2)

    def test_a_message_that_was_in_memory_only_gets_its_file(self, index: MetadataIndex) -> None:
        index.commit([unit([1], segment=-3, offsets=[64], t_ingest_ns=70)])
        (outcome,) = index.commit([in_file(1, "a.cbf")])
        assert outcome[:4] == (0, 1, (), ())
        assert Row._make(index.rows_after_seq(number(index), 0, 1)[0]).segment == outcome.segment > 0
        assert index.commit([in_file(1, "a.cbf")])[0][:4] == (0, 1, (), ())

    @pytest.mark.parametrize(
        "changed",
        [
            {"checksums": [5]},
            {"sizes": [5]},
            {"metas": ['{"n":  2}']},
            {"format": Format("<u2", (25,))},
            {"format": Format(codec="lz4")},
            {"segment": 0, "checksums": [5]},
        ],
    )
    def test_other_content_under_an_id_is_refused_and_the_first_stays(
        self, index: MetadataIndex, changed: dict[str, Any]
    ) -> None:
        index.commit([unit([2])])
        before = index.rows_after_seq(number(index), 0, 10)
        (outcome,) = index.commit([unit([2], **changed)])
        ((position, error),) = outcome.errors
        assert position == 0
        assert isinstance(error, DuplicateId)
        assert error.message_id == 2
        assert (outcome.first_seq, outcome.head_seq, outcome.superseded) == (0, 1, ())
        assert index.rows_after_seq(number(index), 0, 10) == before

    def test_a_refused_message_refuses_only_itself_and_leaves_no_hole(self, index: MetadataIndex) -> None:
        index.commit([unit([3])])
        outcomes = index.commit([unit([1, 2]), unit([3, 4, 5], checksums=[9, -4, -5]), unit([6], ref("b"))])
        assert [position for position, _ in outcomes[1].errors] == [0]
        assert [tuple(o)[:2] for o in outcomes] == [(2, 3), (4, 5), (1, 1)]
        rows = index.rows_after_seq(number(index), 0, 10)
        assert [row[1] for row in rows] == [1, 2, 3, 4, 5]
        assert ids_of(rows) == [3, 1, 2, 4, 5]

    def test_two_units_of_one_commit_with_one_id_are_compared_like_any_others(self, index: MetadataIndex) -> None:
        outcomes = index.commit([unit([1]), unit([1], segment=2), unit([1], sizes=[1])])
        assert outcomes[1].superseded == (0,)
        assert isinstance(outcomes[2].errors[0][1], DuplicateId)

    def test_a_message_of_no_bytes_that_comes_again_at_its_place_is_spare(self, index: MetadataIndex) -> None:
        empty = unit([1], sizes=[0])
        assert index.commit([empty])[0].superseded == ()
        assert index.commit([empty])[0].superseded == ()  # the very same record
        assert index.commit([unit([1], sizes=[0], t_ingest_ns=78)])[0].superseded == (0,)

    def test_bytes_on_disk_replace_a_place_in_a_cache(self, index: MetadataIndex) -> None:
        index.commit([unit([1], segment=0)])
        (outcome,) = index.commit([unit([1], segment=4, offsets=[640])])
        assert outcome[:4] == (0, 1, (), ())
        (row,) = index.rows_after_seq(number(index), 0, 10)
        assert row[4:6] == (4, 640)
        assert index.commit([unit([1], segment=0)])[0].superseded == (0,)

    def test_of_two_places_in_memories_the_newer_one_is_kept(self, index: MetadataIndex) -> None:
        index.commit([unit([1], segment=-3, offsets=[64])])
        (outcome,) = index.commit([unit([1], segment=-4, offsets=[640])])
        assert outcome[:4] == (0, 1, (), ())
        (row,) = index.rows_after_seq(number(index), 0, 10)
        assert row[4:6] == (-4, 640)

    @pytest.mark.parametrize("bad", [0, -1, MAX_ID + 1, -(2**64)])
    def test_an_impossible_id_is_refused_alone(self, index: MetadataIndex, bad: int) -> None:
        (outcome,) = index.commit([unit([1, bad, 2], checksums=[0, 0, 0])])
        ((position, error),) = outcome.errors
        assert position == 1
        assert isinstance(error, WrongInput)
        assert ids_of(index.rows_after_seq(number(index), 0, 10)) == [1, 2]

    def test_metadata_that_is_no_unicode_is_refused_alone(self, index: MetadataIndex) -> None:
        (outcome,) = index.commit([unit([1, 2, 3], metas=['{"n": 1}', '{"a": "\udc80"}', '{"n": 3}'])])
        ((position, error),) = outcome.errors
        assert position == 1
        assert isinstance(error, WrongInput)
        assert ids_of(index.rows_after_seq(number(index), 0, 10)) == [1, 3]

    def test_the_largest_id_works(self, index: MetadataIndex) -> None:
        index.commit([unit([MAX_ID - 1, MAX_ID])])
        no = number(index)
        assert index.heads([no])[no] == StreamHead(2, MAX_ID, False, 0, "", MAX_ID + 1)
        assert ids_of(index.rows_from_id(no, MAX_ID - 1, MAX_ID + 1, 10)) == [MAX_ID - 1, MAX_ID]
        assert ids_of(index.rows_from_id(no, MAX_ID - 1, MAX_ID, 10)) == [MAX_ID - 1]
        assert index.row(no, MAX_ID + 1) is None
        assert index.open_session(ref(), ONE, 0, True, "r").id_max == MAX_ID

    @pytest.mark.parametrize("name", ["a/b", " ", "..", "ä" * 127, "run'1\"; --", "雪☃", "a\nb", "%41"])
    def test_any_name_names_a_stream(self, index: MetadataIndex, name: str) -> None:
        to = ref(name, source=name)
        index.commit([unit([1], to)])
        assert index.stream_info(to).ref == to
        assert index.sources() == [name]
        assert index.stream_refs([number(index, to)]) == {number(index, to): to}

    def test_metadata_text_is_kept_to_the_letter(self, index: MetadataIndex) -> None:
        texts = ['{"a":1,  "ü\\u00e4": "☃"}', " {} "]
        index.commit([unit([1, 2], metas=texts)])
        assert [row[9] for row in index.rows_after_seq(number(index), 0, 10)] == texts[:2]

    def test_a_column_of_another_length_is_refused_at_birth(self) -> None:
        with pytest.raises(WrongInput, match="other lengths"):
            unit([1, 2], sizes=[1])

    def test_a_unit_of_another_beamtime_is_refused(self, index: MetadataIndex) -> None:
        with pytest.raises(WrongInput, match="beamtime"):
            index.commit([unit([1]), unit([1], StreamRef("elsewhere", "det", "run1"))])
        assert index.stream_no(ref()) is None

    def test_parts_of_a_dataset_share_an_id(self, index: MetadataIndex) -> None:
        parts = [unit([4], substream=k, dataset_size=2) for k in (2, 1)]
        assert [o.first_seq for o in index.commit(parts)] == [1, 2]
        no = number(index)
        assert [row[2] for row in index.rows_from_id(no, 4, 5, 10)] == [1, 2]
        assert index.stream_info(ref()).n_messages == 2

    def test_origins_name_streams_that_need_not_exist_yet(self, index: MetadataIndex) -> None:
        origins = [Origin("det", "raw", 11), None, Origin("det", "run1", 12)]
        index.commit([unit([1, 2, 3], origins=origins)])
        rows = index.rows_after_seq(number(index), 0, 10)
        refs = index.stream_refs(row[12] for row in rows if row[12])
        assert [(refs[row[12]].stream, row[13]) if row[12] else None for row in rows] == [
            ("raw", 11), None, ("run1", 12)
        ]  # fmt: skip
        assert index.stream_no(ref("raw")) is None
        assert [info.ref.stream for info in index.streams()] == ["run1"]
        index.commit([unit([1], ref("raw"))])
        assert index.stream_no(ref("raw")) == rows[0][12]

    def test_equal_formats_share_a_number(self, index: MetadataIndex) -> None:
        kinds = [PLAIN, Format("<f4", (2, 2)), Format("<f4", (2, 2)), Format("<f4", (4,)), Format("<f4", ())]
        index.commit([unit([i + 1], format=kind) for i, kind in enumerate(kinds)])
        numbers = [row[8] for row in index.rows_after_seq(number(index), 0, 10)]
        assert [index.formats(numbers)[no] for no in numbers] == kinds
        assert len(set(numbers)) == 4
        assert index.formats([10**6]) == {}

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

    # -- queries

    @pytest.mark.parametrize("declared", [[], ["score"], ["score", "hit.n"]])
    def test_queries_select_and_order(self, index: MetadataIndex, declared: list[str]) -> None:
        metas = [json.dumps({"score": (i * 7) % 20 / 20, "hit": {"n": i % 3}, "ok": i % 2 == 0}) for i in range(20)]
        metas[4], metas[5] = '{"score": "high", "hit": 3}', "{}"
        half = len(metas) // 2
        index.commit([unit(range(1, half + 1), metas=metas[:half])])
        index.declare_keys(declared)
        assert index.declared_keys() == declared
        index.commit([unit(range(half + 1, 21), metas=metas[half:])])
        index.commit([unit([1], ref("other"), metas=['{"score": 0.99}'])])
        score, hits, ok = MetaKey(("score",)), MetaKey(("hit", "n")), MetaKey(("ok",))
        data = {i + 1: json.loads(text) for i, text in enumerate(metas)}
        good = {i: m["score"] for i, m in data.items() if isinstance(m.get("score"), float)}
        deep = {i: m["hit"]["n"] for i, m in data.items() if isinstance(m.get("hit"), dict)}

        def ask(where: Any, *order: Order, limit: int | None = None) -> list[int]:
            return ids_of(index.query(number(index), Query(where, order, limit)))

        above = Comparison(score, ">", Number(0.5))
        assert ask(above) == [i for i in data if good.get(i, 0) > 0.5]
        assert ask(above, Order(score, True), limit=3) == sorted(good, key=lambda i: -good[i])[:3]
        assert ask(above, Order(score), limit=0) == []
        assert ask(And((above, Comparison(hits, "=", Number(1))))) == [
            i for i in data if good.get(i, 0) > 0.5 and deep.get(i) == 1
        ]
        assert ask(Or((above, Comparison(hits, "=", Number(2))))) == [
            i for i in data if good.get(i, 0) > 0.5 or deep.get(i) == 2
        ]
        assert ask(Not(above)) == [i for i in data if not good.get(i, 0) > 0.5]
        assert ask(Comparison(score, "=", Text("high"))) == [5]
        assert ask(Comparison(ok, "=", Boolean(True)), limit=3) == [1, 3, 7]
        assert ask(Comparison(Builtin("_id"), ">=", Number(19))) == [19, 20]
        assert len(index.query(number(index), Query(None), row_limit=4)) == 4

    @pytest.mark.needs_server
    @pytest.mark.parametrize("further", [[], ["score", "sample.name", "note", "hit"]], ids=["", "sorted"])
    @pytest.mark.parametrize("declared", [[], ["score", "sample.name"], ["note"]])
    def test_the_corpus_is_answered(self, index: MetadataIndex, declared: list[str], further: list[str]) -> None:
        index.declare_keys(declared)
        index.declare_sorted_keys(further)
        index.commit(query_corpus.units(query_corpus.MESSAGES, ref()))
        if further:
            index.finish_stream(ref(), 9, "")
            index.sort_finished(ref())
            assert index.unsorted() == []
        no = number(index)
        found = {text: ids_of(index.query(no, parse(text))) for text, _ in query_corpus.ANSWERS}
        assert found == dict(query_corpus.ANSWERS)
        assert {text: index.count(no, parse(text)) for text in found} == {text: len(ids) for text, ids in found.items()}

    @pytest.mark.needs_server
    @AS_THE_EVALUATOR
    @given(
        case=st.tuples(query_corpus.records(), query_corpus.queries) | query_corpus.rows_with_one_key(),
        declared=st.sampled_from(query_corpus.DECLARED),
        further=st.sampled_from(query_corpus.SORTED),
        page=st.integers(1, 4),
    )
    def test_rows_pages_and_counts_are_those_of_the_evaluator(
        self, index: MetadataIndex, case: tuple[list[Record], Query], declared: list[str], further: list[str], page: int
    ) -> None:
        rows, query = case
        to = ref(f"s{len(index.streams(limit=10_000))}")
        index.set_stream_meta(to, "{}")
        no = number(index, to)
        index.declare_keys(declared)
        index.declare_sorted_keys(further)
        index.commit(query_corpus.units(rows, to))
        if further:
            index.finish_stream(to, max((row.id for row in rows), default=0), "")
            index.sort_finished(to)
        expected = [(record.id, record.substream) for record in select(query, rows)]
        assert [(row[0], row[2]) for row in index.query(no, query)] == expected
        assert index.count(no, query) == len(expected)
        unlimited = Query(query.where, query.order)
        everything = [(record.id, record.substream) for record in select(unlimited, rows)]
        found: list[Any] = []
        while part := index.query(no, unlimited, row_limit=page, after=found[-1][1] if found else 0):
            found += part
        assert [(row[0], row[2]) for row in found] == everything
        explained = index.explain(no, query)
        assert explained.rows_total == len(rows)
        assert len(everything) <= explained.rows <= len(rows)

    def test_pages_go_on_exactly_where_they_ended_while_messages_arrive(self, index: MetadataIndex) -> None:
        def send(**scores: Any) -> None:
            ids = [int(name[1:]) for name in scores]
            index.commit([unit(ids, metas=[json.dumps({"score": score}) for score in scores.values()])])

        send(_2=1, _4=2, _6=1, _8=2)
        no = number(index)
        first = index.query(no, Query(), row_limit=2)
        assert ids_of(first) == [2, 4]
        send(_3=1, _7=2)  # one on each side of the place
        assert ids_of(index.query(no, Query(), after=first[-1][1])) == [6, 7, 8]

        by_score = Query(None, (Order(MetaKey(("score",)), True),))
        first = index.query(no, by_score, row_limit=2)
        assert ids_of(first) == [4, 7]
        send(_1=3, _9=2, _5="x", _10=None)
        assert ids_of(index.query(no, by_score, after=first[-1][1])) == [8, 9, 2, 3, 6, 5, 10]

    def test_a_row_that_is_not_there_cannot_be_gone_on_after(self, index: MetadataIndex) -> None:
        index.commit([unit([1])])
        for after in (2, 2**40, -1):
            with pytest.raises(WrongInput, match="arrival number"):
                index.query(number(index), Query(), after=after)

    def test_a_query_on_an_unknown_stream_finds_nothing(self, index: MetadataIndex) -> None:
        assert index.query(5, Query()) == []
        assert index.count(5, Query()) == 0
        assert index.explain(5, Query()).rows == 0

    def test_too_many_or_odd_declared_keys_are_refused(self, index: MetadataIndex) -> None:
        index.declare_keys(["a"])
        for keys in (["a", "b", "c"], ["a.."], [""], ['x"y']):
            with pytest.raises(WrongInput):
                index.declare_keys(keys)
        assert index.declared_keys() == ["a"]
        index.declare_keys(["meta.b"])
        assert index.declared_keys() == ["b"]
        index.declare_sorted_keys(["a", "meta.c.d"])
        for keys in (list("abcdefg"), ["a.."], [""], ['x"y']):
            with pytest.raises(WrongInput):
                index.declare_sorted_keys(keys)
        assert index.sorted_keys() == ["a", "c.d"]
        assert index.declared_keys() == ["b"]
        index.declare_sorted_keys([])
        assert index.sorted_keys() == []

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
        assert index.last_deletion() == deletion.no > begun
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
