from __future__ import annotations

from asapo.delivery.rows import RowTuple, flatten
from asapo.delivery.window import StreamWindow
from asapo.models import Row


def rows(*ids: int, seq: int = 1, substream: int = 0, size: int = 0) -> list[RowTuple]:
    return [tuple(Row(one, seq + i, substream, size, 1, 0, 10, 0, 1, "{}", 0, 0, 0, 0)) for i, one in enumerate(ids)]


def test_a_dense_stream_is_settled_as_soon_as_it_is_there() -> None:
    window = StreamWindow()
    window.add(rows(1, 2, 3))
    assert window.settled_below == 4
    assert window.slice_ordered(1, 2).ids == [1, 2]
    assert window.slice_ordered(1, 2).position == 3
    assert window.slice_ordered(3, 10).position == 4


def test_a_hole_waits_for_the_watermark_and_is_then_a_gap() -> None:
    window = StreamWindow()
    window.add(rows(1, 2, 5, 6, 9))
    assert window.slice_ordered(1, 10).ids == [1, 2]
    window.set_watermark(5)
    assert window.slice_ordered(1, 10).ids == [1, 2, 5, 6]
    assert window.settled_below == 7
    window.set_watermark(3)
    assert (window.watermark, window.settled_below) == (5, 7)
    window.set_watermark(20)
    assert window.slice_ordered(1, 10) == window.slice_ordered(1, 5)
    assert window.slice_ordered(1, 10).position == 20


def test_ids_out_of_order_are_read_in_order_and_by_arrival() -> None:
    window = StreamWindow()
    window.add(rows(11, 12, 13, 14, 15, 16))
    window.add(rows(5, 1, 2, 3, 4, 6, seq=7))
    window.add(rows(8, 7, seq=13))
    assert window.slice_ordered(1, 100).ids == [1, 2, 3, 4, 5, 6, 7, 8]
    window.add(rows(10, 9, seq=15))
    assert window.slice_ordered(1, 100).ids == list(range(1, 17))
    assert window.slice_arrival(6, 3).ids == [16, 5, 1]
    assert window.slice_arrival(6, 3).position == 9


def test_rows_handed_in_twice_count_once() -> None:
    window = StreamWindow()
    window.add(rows(1, 2))
    assert window.add(rows(1, 2, 3)).ids == [3]
    assert (window.n_rows, window.head_seq) == (3, 3)
    assert window.add([]).ids == []


def test_a_dataset_is_visible_when_its_last_part_is_there() -> None:
    window = StreamWindow()
    assert window.add(rows(1, 2, substream=2, size=2)).ids == []
    assert window.settled_below == 1
    assert len(window.parts_of(2)) == 1
    added = window.add(rows(2, seq=3, substream=1, size=2))
    assert added.ids == [2]
    assert [row[2] for row in flatten(added.entries)] == [1, 2]
    assert window.slice_arrival(1, 10).keys == [3]
    window.add(rows(1, seq=4, substream=1, size=2))
    assert window.slice_ordered(1, 10).ids == [1, 2]
    assert window.n_rows == 4


def test_prune_keeps_what_is_not_settled_and_raises_low() -> None:
    window = StreamWindow()
    window.add(rows(*range(1, 101), 200, 201))
    assert window.prune(limit_rows=50, limit_bytes=10**9) == 52
    assert (window.low, window.n_rows) == (53, 50)
    assert window.prune(limit_rows=0, limit_bytes=10**9) == 48
    assert (window.low, len(window)) == (101, 2)
    assert window.n_rows == 2
    assert window.get(100) is None
    assert window.get(200) is not None
    assert window.seq_low == 101
    late = window.add(rows(7, seq=103))
    assert late.ids == [7]
    assert window.get(7) is None
    assert window.slice_arrival(101, 10).ids == [200, 201, 7]


def test_prune_keeps_the_byte_limit() -> None:
    window = StreamWindow()
    window.add(rows(*range(1, 101)))
    whole = window.n_bytes
    window.prune(limit_rows=1000, limit_bytes=whole // 2)
    assert 0 < window.n_bytes <= whole // 2
    window.prune(limit_rows=0, limit_bytes=0)
    assert (window.n_bytes, window.n_rows, window.id_max) == (0, 0, 100)


def test_a_dataset_with_forgotten_parts_is_named_and_comes_back_by_a_load() -> None:
    window = StreamWindow(low=50, head_seq=10)
    assert window.add(rows(7, seq=11, substream=2, size=2)).ids == []
    assert window.orphans == {7}
    added = window.add_parts(rows(7, seq=4, substream=1, size=2) + rows(7, seq=11, substream=2, size=2))
    assert added.ids == [7]
    assert not window.orphans
    assert window.slice_arrival(11, 5).ids == [7]


def test_incomplete_datasets_are_bounded() -> None:
    window = StreamWindow()
    window.add(rows(*range(1, 101), substream=1, size=2))
    window.prune(limit_rows=10, limit_bytes=10**9)
    assert [len(window.parts_of(one)) for one in (90, 91)] == [0, 1]
    assert window.add(rows(90, seq=101, substream=2, size=2)).ids == []
    assert window.orphans == {90}


def test_what_was_loaded_before_the_tail_is_read_by_id_only() -> None:
    window = StreamWindow(low=3, head_seq=5)
    window.load(rows(3, 4, seq=4) + rows(5, seq=3, substream=1, size=2))
    window.add(rows(5, seq=6, substream=2, size=2))
    assert window.slice_ordered(3, 9).ids == [3, 4, 5]
    assert window.slice_arrival(6, 9).ids == [5]


def test_complete_needs_the_end_and_every_id_before_it_settled() -> None:
    window = StreamWindow()
    window.add(rows(1, 3))
    window.finish(3, "next")
    assert not window.complete
    window.set_watermark(4)
    assert window.complete
