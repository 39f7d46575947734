"""What goes on the wire is what was queued: the header of a unit is not checked where it is made, so it is here."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.models import MAX_ID, PLAIN, Format, Origin
from asapo.wire.codec import decode, encode
from asapo.wire.put import Put, unpack_column
from asapo_produce import send_queue
from asapo_produce.handles import BatchHandle, SendHandle
from asapo_produce.send_queue import SendQueue
from asapo_produce.units import Block, Single, Unit

ids = st.lists(st.integers(1, MAX_ID), min_size=1, max_size=5, unique=True).map(sorted)
formats = st.sampled_from([PLAIN, Format("<u2", (2,)), Format("|u1", (7, 9), "bslz4")])
origins = st.sampled_from([None, Origin("raw", "scan", 3)])


def new_queue() -> SendQueue:
    return SendQueue(1 << 30, lambda callback, handle: None)


def put_of(unit: Unit, number: int) -> Put:
    """Decode the header, with every check; the same Put must give the same bytes."""
    header = unit.header(number)
    put = decode(header, len(unit.payload))
    assert isinstance(put, Put)
    assert encode(put) == header
    return put


@given(
    ids, formats, st.sampled_from([(0, 0), (2, 3)]), st.sampled_from(["written", "memory"]), st.data(),
    st.integers(1, MAX_ID),
)  # fmt: skip
def test_singles_are_a_valid_put(
    numbers: list[int], form: Format, part: tuple[int, int], level: str, data: st.DataObject, unit_number: int
) -> None:
    queue = new_queue()
    book = queue.book("s/ü", part[0])
    lane = queue.lane(book, part[1], form, level)
    size = st.just(4) if form.codec == "raw" and form.dtype else st.integers(0, 200)
    found = [data.draw(st.tuples(size, origins, st.integers(-(2**63), 2**63 - 1))) for _ in numbers]
    for number, (nbytes, origin, time_ns) in zip(numbers, found, strict=True):
        handle = SendHandle(queue.settled, book.later)
        item = Single(book, lane, number, memoryview(bytes(nbytes)), 2**64 - 1, '{"a":"ü"}', time_ns, origin, handle)
        queue.put(book, [item], explicit=True, timeout_s=0)
    unit = queue.take()
    assert unit is not None
    put = put_of(unit, unit_number)
    assert queue.take() is None
    assert (put.unit, put.stream, put.level, put.format) == (unit_number, "s/ü", level, form)
    assert (list(put.ids), put.closed_below, put.substream, put.dataset_size) == (numbers, numbers[0], *part)
    assert list(put.sizes) == [nbytes for nbytes, _, _ in found]
    assert unpack_column(put.acquired_ns, signed=True) == [time_ns for _, _, time_ns in found]
    assert unpack_column(put.checksums) == [2**64 - 1] * len(numbers)
    assert list(put.metas) == ['{"a":"ü"}'] * len(numbers)
    wanted = [origin for _, origin, _ in found]
    assert list(put.origins) == (wanted if any(wanted) else [])


@pytest.mark.parametrize("numbers", [range(4, 7), [4, 9, 11]])
def test_a_block_is_a_valid_put(numbers: list[int]) -> None:
    queue = new_queue()
    book = queue.book("s", 0)
    lane = queue.lane(book, 0, Format("<u2", (50,)), "written")
    handle = BatchHandle(queue.settled, book.later, 1)
    block = Block(
        book, lane, numbers, memoryview(bytes(356)), [100] * 3, [1, 2, 3], ["{}"] * 3, bytes(24), [], handle
    )  # fmt: skip
    queue.put(book, [block], explicit=True, timeout_s=0)
    unit = queue.take()
    assert unit is not None
    put = put_of(unit, 1)
    assert (list(put.ids), list(put.sizes), put.closed_below) == (list(numbers), [100] * 3, 4)


def test_messages_of_other_formats_do_not_share_a_unit(queue: SendQueue, single: Callable[..., Single]) -> None:
    book = queue.book("s", 0)
    plain, image = queue.lane(book, 0, PLAIN, "written"), queue.lane(book, 0, Format("<u2", (2,)), "written")
    assert queue.lane(book, 0, Format(), "written") is plain
    for number, lane in enumerate([plain, image, plain, image], 1):
        item = single(number)
        item.lane = lane
        queue.put(book, [item], explicit=True, timeout_s=0)
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    assert (list(first.ids), list(second.ids), queue.take()) == ([1, 3], [2, 4], None)


def test_a_stream_of_ever_new_formats_loses_nothing(
    queue: SendQueue, single: Callable[..., Single], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_queue, "MAX_LANES", 3)
    book = queue.book("s", 0)
    for number in range(1, 21):
        item = single(number)
        item.lane = queue.lane(book, 0, Format("|u1", (number % 7,)), "written")
        queue.put(book, [item], explicit=True, timeout_s=0)
    assert len(book.lanes) <= 3
    taken: list[int] = []
    while (unit := queue.take()) is not None:
        taken += unit.ids
    assert sorted(taken) == list(range(1, 21))
