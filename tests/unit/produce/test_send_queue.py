"""The queue: budget, packing, numbering, watermark, outcomes."""

from collections.abc import Callable
from typing import Any

import pytest

from asapo.errors import DeadlineExceeded, DiskFull, DuplicateId, LinkLost, QueueFull, StreamFinished, WrongInput
from asapo.wire.codec import decode
from asapo.wire.put import Put
from asapo_produce.handles import SendHandle
from asapo_produce.send_queue import SendQueue
from asapo_produce.units import OVERHEAD_BYTES, Unit

Send = Callable[..., SendHandle]


def take(queue: SendQueue) -> Unit:
    unit = queue.take()
    assert unit is not None
    return unit


def test_what_waits_together_shares_a_unit(queue: SendQueue, send: Send) -> None:
    for i in range(1, 6):
        send(i, bytes([i]) * (10 * i))
    unit = take(queue)
    assert (unit.ids, unit.sizes) == (range(1, 6), [10, 20, 30, 40, 50])
    put = decode(unit.header(1), len(unit.payload))
    assert isinstance(put, Put)
    assert (put.unit, put.stream, put.ids, put.sizes, put.closed_below) == (1, "s", unit.ids, unit.sizes, 1)
    assert put.nbytes == len(unit.payload)
    assert queue.take() is None


def test_payloads_of_a_unit_start_at_multiples_of_64(queue: SendQueue, send: Send) -> None:
    send(1, b"a" * 65)
    send(2, b"b" * 64)
    send(3, b"c")
    assert take(queue).payload == b"a" * 65 + bytes(63) + b"b" * 64 + b"c"


def test_sparse_ids_are_kept(queue: SendQueue, send: Send) -> None:
    for i in (3, 7, 8):
        send(i)
    assert list(take(queue).ids) == [3, 7, 8]


def test_a_lower_id_starts_a_unit(queue: SendQueue, send: Send) -> None:
    for i in (5, 6, 2):
        send(i)
    assert [list(take(queue).ids), list(take(queue).ids)] == [[5, 6], [2]]


def test_large_messages_go_alone(queue: SendQueue, send: Send) -> None:
    send(1)
    send(2, bytes(200_000))
    send(3)
    assert [take(queue).n for _ in range(3)] == [1, 1, 1]


def test_a_unit_ends_at_its_size(send: Send, queue: SendQueue) -> None:
    for i in range(1, 13):
        send(i, bytes(80_000))
    sizes = []
    while (unit := queue.take()) is not None:
        assert unit.nbytes <= 1 << 20
        sizes.append(unit.n)
    assert sum(sizes) == 12
    assert max(sizes) > 1


def test_streams_take_turns(queue: SendQueue, send: Send) -> None:
    for stream in "aab":
        send(0, bytes(200_000), stream=stream)
    assert [take(queue).lane.stream for _ in range(3)] == ["a", "b", "a"]


def test_without_packing_each_message_is_a_unit(called: list[Any], single: Any) -> None:
    queue = SendQueue(1 << 20, lambda callback, handle: None, pack=False)
    book = queue.book("s", 0)
    for i in (1, 2):
        item = single(i)
        queue.put(book, [item], explicit=True, timeout_s=0)
    assert take(queue).n == 1


def test_ids_are_counted_up_when_none_is_given(queue: SendQueue, send: Send) -> None:
    queue.learn(queue.book("s", 0), 41, numbering=True, finished=False)
    assert [send().id, send().id] == [42, 43]


@pytest.mark.parametrize("first", [0, 5])
def test_given_and_counted_ids_do_not_mix(queue: SendQueue, send: Send, first: int) -> None:
    send(first)
    with pytest.raises(WrongInput, match="ids of stream 's'"):
        send(5 - first)


def test_a_full_queue_says_how_full(queue: SendQueue, send: Send) -> None:
    send(1, bytes(600_000))
    with pytest.raises(QueueFull) as caught:
        send(2, bytes(600_000))
    assert caught.value.limit_bytes == 1 << 20
    assert caught.value.queued_bytes == 600_000 + 2 + OVERHEAD_BYTES
    queue.settle(take(queue))
    send(2, bytes(600_000))


def test_a_message_larger_than_the_queue_goes_alone(queue: SendQueue, send: Send) -> None:
    send(1, bytes(2 << 20))
    with pytest.raises(QueueFull):
        send(2)
    queue.settle(take(queue))
    assert queue.queued_bytes == 0


def test_the_watermark_is_the_lowest_id_on_its_way(queue: SendQueue, send: Send) -> None:
    book = queue.book("s", 0)
    for i in (4, 9, 20):
        send(i, bytes(200_000))
    units = [take(queue) for _ in range(3)]
    assert queue.closed_below(book) == 4
    queue.settle(units[1])
    assert queue.closed_below(book) == 4
    queue.settle(units[0])
    assert queue.closed_below(book) == 20
    assert queue.marks_of_idle() == {}
    queue.settle(units[2])
    assert queue.marks_of_idle() == {"s": 21}
    assert queue.marks_of_idle() == {}
    assert queue.marks() == {"s": 21}


def test_a_stream_whose_units_tell_all_needs_no_mark_of_its_own(queue: SendQueue, send: Send) -> None:
    for first in (1, 3):
        send(first, bytes(200_000))
        send(first + 1, bytes(200_000))
        for unit in [take(queue), take(queue)]:
            queue.settle(unit)
        assert queue.marks_of_idle() == {}, "dense ids from the mark on"
    send(10)
    queue.settle(take(queue))
    assert queue.marks_of_idle() == {}, "sent alone, so the unit bore the mark 10"
    send(11)
    unit = take(queue)
    queue.settle(unit, [(0, DiskFull("no", free_bytes=0))])
    assert queue.marks_of_idle() == {"s": 12}, "11 will never come"
    send(12)
    unit = take(queue)
    queue.closed_below(unit.book)  # it is sent again, perhaps by another link
    queue.settle(unit)
    assert queue.marks_of_idle() == {"s": 13}
    send(13)
    send(15)
    unit = take(queue)
    assert list(unit.ids) == [13, 15]
    queue.settle(unit)
    assert queue.marks_of_idle() == {"s": 16}, "nobody knows of 14"


def test_a_late_lower_id_lowers_the_watermark_again(queue: SendQueue, send: Send) -> None:
    send(10)
    queue.settle(take(queue))
    send(3)
    assert queue.closed_below(queue.book("s", 0)) == 3


def test_errors_reach_the_messages_they_belong_to(queue: SendQueue, send: Send) -> None:
    handles = [send(i) for i in (1, 2, 3)]
    queue.settle(take(queue), [(1, DuplicateId(message_id=2))])
    assert [handle.exception(0) is None for handle in handles] == [True, False, True]
    assert handles[0].result(0) == 1
    with pytest.raises(DuplicateId):
        handles[1].result(0)
    assert (queue.acked, queue.failed, queue.queued_bytes) == (2, 1, 0)


def test_callbacks_run_in_id_order_whatever_is_acknowledged_first(
    queue: SendQueue, send: Send, called: list[Any]
) -> None:
    for i in (1, 2, 3):
        send(i, bytes(200_000)).add_done_callback(print)
    units = [take(queue) for _ in range(3)]
    queue.settle(units[2])
    assert called == []
    queue.settle(units[0])
    assert [handle.id for _, handle in called] == [1]
    queue.settle(units[1])
    assert [handle.id for _, handle in called] == [1, 2, 3]


def test_a_callback_on_a_settled_message_runs_at_once(queue: SendQueue, send: Send, called: list[Any]) -> None:
    handle = send(1)
    queue.settle(take(queue))
    handle.add_done_callback(print)
    assert called == [(print, handle)]


def test_flush_waits_only_for_what_was_sent_before(queue: SendQueue, send: Send) -> None:
    send(1)
    with pytest.raises(DeadlineExceeded):
        queue.wait_flushed(0)
    unit = take(queue)
    send(2)
    queue.settle(unit)
    with pytest.raises(DeadlineExceeded):
        queue.wait_flushed(0)
    queue.settle(take(queue))
    queue.wait_flushed(0)


def test_a_closed_stream_takes_nothing_more(queue: SendQueue, send: Send) -> None:
    send(7)
    queue.settle(take(queue))
    assert queue.close_stream("s", 0) == 7
    with pytest.raises(StreamFinished):
        send(8)
    assert queue.book("s", 3).finished
    send(1, stream="other")


def test_a_stream_that_cannot_be_closed_in_time_stays_open(queue: SendQueue, send: Send) -> None:
    send(7)
    with pytest.raises(DeadlineExceeded):
        queue.close_stream("s", 0)
    send(8)


def test_stopping_fails_what_waits_and_what_comes(queue: SendQueue, send: Send) -> None:
    handle = send(1)
    queue.stop(LinkLost("over"))
    assert isinstance(handle.exception(0), LinkLost)
    with pytest.raises(LinkLost):
        send(2)


@pytest.mark.parametrize(("stream", "substream"), [("", 0), ("a\0", 0), ("s", -1), ("s", True)])
def test_bad_names_are_refused(queue: SendQueue, stream: str, substream: int) -> None:
    with pytest.raises(WrongInput):
        queue.book(stream, substream)


def test_a_passing_error_is_a_fact_of_the_handle_too(queue: SendQueue, send: Send) -> None:
    handle = send(1)
    queue.settle(take(queue), [(0, DiskFull(free_bytes=0))])
    error = handle.exception(0)
    assert error is not None
    assert error.retriable
