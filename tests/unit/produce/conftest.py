"""Items and queues for tests without a link."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from asapo.models import PLAIN
from asapo_produce.handles import SendHandle
from asapo_produce.send_queue import SendQueue
from asapo_produce.units import Single

MakeSingle = Callable[..., Single]


@pytest.fixture
def called() -> list[Any]:
    """Return the callbacks that were handed over, as (callback, handle)."""
    return []


@pytest.fixture
def queue(called: list[Any]) -> SendQueue:
    """Return a queue of 1 MiB."""
    return SendQueue(1 << 20, lambda callback, handle: called.append((callback, handle)))


@pytest.fixture
def single(queue: SendQueue) -> MakeSingle:
    """Return a maker of messages that wait."""

    def make(message_id: int = 0, data: bytes = b"data", stream: str = "s", level: str = "written") -> Single:
        book = queue.book(stream, 0)
        handle = SendHandle(queue.settled, book.later)
        handle.id = message_id
        lane = queue.lane(book, 0, PLAIN, level)
        return Single(book, lane, message_id, memoryview(data), xxh3_64_intdigest(data), "{}", 5, None, handle)

    return make


@pytest.fixture
def send(queue: SendQueue, single: MakeSingle) -> Callable[..., SendHandle]:
    """Return a short `send` onto the queue."""

    def send(message_id: int = 0, data: bytes = b"data", stream: str = "s", timeout_s: float = 0.0) -> SendHandle:
        item = single(message_id, data, stream)
        queue.put(item.book, [item], explicit=bool(message_id), timeout_s=timeout_s)
        return item.handle

    return send


@pytest.fixture
def settled() -> threading.Condition:
    """Return a condition for handles without a queue."""
    return threading.Condition()
