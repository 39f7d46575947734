"""How a consumer learns for which exception its loop was left, and tells the broker."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from typing import Any

import pytest

from asapo.testing.fake_broker import FakeBroker
from asapo.wire.events import Bye, Done, Nack
from asapo.wire.group_events import Explain
from asapo_work import Consumer


class FrameError(Exception):
    """User code failed."""


def loop(consumer: Consumer, *, leave: str = "raise") -> None:
    for message in consumer.stream(group="g", max_attempts=2, prefetch=False, timeout_s=5):
        if message.id == 2:
            if leave == "break":
                break
            raise FrameError(message.id)
    if leave == "break":
        raise FrameError("after the loop")


def reasons(broker: FakeBroker) -> list[tuple[str, list[int], str]]:
    """Return kind, ids and reason of what was handed back and counts, and of what was explained."""
    broker.wait_until(lambda: any(isinstance(one, Bye) for one in broker.requests))  # the last that a consumer says
    said: list[Any] = [one for one in broker.requests if isinstance(one, Nack | Explain)]
    return [(type(one).__name__, list(one.ids), one.reason) for one in said if not getattr(one, "unstarted", False)]


def test_an_exception_that_leaves_loop_and_consumer_is_explained(scripted: FakeBroker) -> None:
    with pytest.raises(FrameError), Consumer(scripted.url, beamtime="bt", source="det") as consumer:
        loop(consumer)
    assert [(kind, ids) for kind, ids, _ in reasons(scripted)] == [("Nack", [2]), ("Explain", [2])]
    assert reasons(scripted)[1][2].endswith("FrameError: 2")


def test_a_loop_that_was_left_by_break_has_no_reason_whatever_happens_later(scripted: FakeBroker) -> None:
    with pytest.raises(FrameError), Consumer(scripted.url, beamtime="bt", source="det") as consumer:
        loop(consumer, leave="break")
    assert reasons(scripted) == [("Nack", [2], "")]


def test_an_exception_that_was_there_before_the_loop_is_no_reason(scripted: FakeBroker) -> None:
    with Consumer(scripted.url, beamtime="bt", source="det") as consumer:
        try:
            dict[str, int]()["nothing"]
        except KeyError:
            messages = consumer.stream(group="g", max_attempts=2, prefetch=False, timeout_s=5)
            next(messages)
            messages.close()
    assert reasons(scripted) == [("Nack", [1], "")]


def test_a_loop_under_closing_says_at_once_why_it_ended(scripted: FakeBroker) -> None:
    with Consumer(scripted.url, beamtime="bt", source="det") as consumer:
        with (
            contextlib.suppress(FrameError),
            contextlib.closing(consumer.stream(group="g", max_attempts=2, prefetch=False, timeout_s=5)) as messages,
        ):
            for message in messages:
                raise FrameError(message.id)
        gc.collect()
    ((kind, ids, reason),) = reasons(scripted)
    assert (kind, ids) == ("Nack", [1])
    assert reason.endswith("FrameError: 1")


SCRIPT = """
import sys
from asapo import Consumer

consumer = Consumer(sys.argv[1], beamtime="bt", source="det")
for message in consumer.stream(group="g", max_attempts=2, prefetch=False, timeout_s=5):
    raise ValueError(message.id)
"""


def test_an_exception_that_ends_the_program_is_explained(scripted: FakeBroker) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, scripted.url], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr.endswith("ValueError: 1\n")
    assert reasons(scripted) == [("Nack", [1], ""), ("Explain", [1], "ValueError: 1")]


@pytest.fixture
def scripted() -> Any:
    with FakeBroker() as broker:
        broker.script[Explain] = lambda event: Done(event.request)
        broker.stream(n=3)
        yield broker
