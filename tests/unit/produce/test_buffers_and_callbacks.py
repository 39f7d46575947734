"""Recycled buffers, and the thread that runs user code."""

import gc
import logging
import threading

import numpy as np
import pytest

from asapo_produce.buffers import BufferPool, as_array
from asapo_produce.callbacks import CallbackThread


def test_a_buffer_is_recycled_when_nobody_holds_it() -> None:
    pool = BufferPool(1000)
    buffer = pool.take(100)
    buffer[:3] = b"abc"
    part = as_array(buffer, (10, 10), "|u1")[2:4]
    del buffer
    gc.collect()
    other = pool.take(100)
    assert pool.recycled == 0
    del part
    gc.collect()
    again = pool.take(100)
    assert pool.recycled == 1
    assert bytes(again[:3]) == b"abc"
    assert len(other) == len(again) == 100


def test_a_pool_keeps_no_more_than_its_limit() -> None:
    pool = BufferPool(150)
    held = [pool.take(100), pool.take(100)]
    held.clear()
    gc.collect()
    held = [pool.take(100), pool.take(100)]
    assert pool.recycled == 1


def test_an_array_in_a_buffer_is_writable() -> None:
    array = as_array(BufferPool(0).take(24), (3, 4), "<u2")
    array[:] = 7
    assert array.dtype == np.dtype("<u2")
    assert array.sum() == 84


def test_an_empty_buffer_is_possible() -> None:
    assert len(BufferPool(0).take(0)) == 0


def test_callbacks_run_in_order_on_one_thread() -> None:
    thread = CallbackThread()
    seen: list[tuple[int, str]] = []
    for i in range(50):
        thread.call(lambda handle: seen.append((handle, threading.current_thread().name)), i)
    thread.stop(10)
    assert seen == [(i, "asapo-callbacks") for i in range(50)]


@pytest.mark.expects_errors
def test_a_raising_callback_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    thread = CallbackThread()
    seen: list[int] = []

    def bad(handle: int) -> None:
        raise ZeroDivisionError("user code")

    with caplog.at_level(logging.ERROR):
        thread.call(bad, 1)
        thread.call(seen.append, 2)
        thread.stop(10)
    assert seen == [2]
    assert "user code" in caplog.text


def test_a_thread_without_callbacks_is_never_started() -> None:
    thread = CallbackThread()
    thread.stop(0)
    assert "asapo-callbacks" not in {t.name for t in threading.enumerate()}


def test_a_callback_may_stop_its_own_thread() -> None:
    thread = CallbackThread()
    done = threading.Event()

    def stop(handle: int) -> None:
        thread.stop(10)
        done.set()

    thread.call(stop, 1)
    assert done.wait(10)
