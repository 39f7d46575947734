"""What every index promises of commits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asapo.errors import (
    DuplicateFile,
    DuplicateId,
    WrongInput,
)
from asapo.index.interface import MetadataIndex, StreamHead
from asapo.models import MAX_ID, PLAIN, Format, Origin, Row, SegmentInfo, StreamRef
from tests.contract.index_units import (
    ONE,
    IndexFixtures,
    ids_of,
    in_file,
    number,
    ref,
    unit,
)


class CommitContract(IndexFixtures):
    """Commits, and files of single messages."""

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
