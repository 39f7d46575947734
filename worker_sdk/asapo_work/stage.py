"""A stage: takes messages of a group, computes, publishes the results, and only then calls the messages done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asapo.errors import AsapoError, WrongInput
from asapo_work.consumer import Consumer
from asapo_work.message import Message
from asapo_work.stream import Follow

if TYPE_CHECKING:
    from asapo_produce import Producer


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage publishes for one message."""

    data: Any = None
    """Array, bytes, or None for metadata only."""
    meta: Mapping[str, Any] | None = None


Process = Callable[[list[Message]], "Sequence[Result | None] | None"]
"""User code: a list of messages to one result (or None: publish nothing) for each; None for the whole list likewise."""


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What a stage did."""

    taken: int = 0
    published: int = 0


class Stage:
    """Reads a stream, publishes a new one.

    A message is acknowledged after its result was: a stage that dies leaves nothing undone, and what it had published
    but not acknowledged is published again under the same id with the same content, which receivers take as one.
    So `process` should give the same result for the same message.

    Parameters
    ----------
    consumer : Consumer
        Where the messages come from.
    producer : Producer
        Where the results go; its source is the stage's.
    process : callable
        Gets a list of messages and returns a `Result` or None for each of them, in the same order.
    group : str
        Stages of one group share the messages.
    stream, where, ordered, follow, timeout_s, max_attempts
        As for `Consumer.stream`. With `max_attempts`, a list that `process` fails on is done again one by one, so that
        only the message that it fails on uses up an attempt, and becomes a dead letter in the end.
    out_stream : str
        Stream of the results; empty: the name of the stream that a message comes from.
    batch : int
        Most messages for one call of `process`.
    """

    def __init__(
        self,
        consumer: Consumer,
        producer: Producer,
        process: Process,
        *,
        group: str,
        stream: str = "default",
        out_stream: str = "",
        batch: int = 32,
        where: str = "",
        ordered: bool = True,
        follow: Follow | None = "next",
        timeout_s: float | None = None,
        max_attempts: int = 0,
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._process = process
        self._group = group
        self._out_stream = out_stream
        self._reading: dict[str, Any] = {
            "group": group,
            "stream": stream,
            "where": where,
            "batch": batch,
            "ordered": ordered,
            "follow": follow,
            "timeout_s": timeout_s,
            "max_attempts": max_attempts,
        }
        self._stop = threading.Event()

    def run(self) -> StageCounts:
        """Work until the stream is finished or `stop` is called.

        Raises
        ------
        NothingYet, UnknownStream
            If nothing came for `timeout_s`.
        AsapoError
            The first result that was refused; its messages are handed back.
        Exception
            Whatever `process` raised; its messages are handed back.
        """
        counts = StageCounts()
        for messages in self._consumer.stream(**self._reading):
            published = self._work_or_blame(messages)
            counts = StageCounts(counts.taken + len(messages), counts.published + published)
            if self._stop.is_set():
                self._consumer.acknowledge(messages, group=self._group)
                break
        return counts

    def stop(self) -> None:
        """End `run` after the messages that are at work; any thread."""
        self._stop.set()

    def _work_or_blame(self, messages: list[Message]) -> int:
        """Work; if that fails, hand back what it failed on, and say why."""
        try:
            return self._work(messages)
        except Exception as exc:
            if len(messages) == 1 or not self._reading["max_attempts"]:
                self._hand_back(messages, exc)
                raise
        published = 0
        for at, message in enumerate(messages):
            try:
                published += self._work([message])
            except Exception as exc:
                self._hand_back([message], exc)
                with suppress(AsapoError):
                    self._consumer.give_back(messages[at + 1 :], group=self._group)
                raise
            self._consumer.acknowledge(message, group=self._group)
        return published

    def _hand_back(self, messages: list[Message], error: Exception) -> None:
        with suppress(AsapoError):  # what is lost is given to others anyway
            self._consumer.nack(messages, group=self._group, reason=error)

    def _work(self, messages: list[Message]) -> int:
        """Publish the results of these messages and wait until the receivers have them."""
        results = self._process(messages) or [None] * len(messages)
        if len(results) != len(messages):
            raise WrongInput(
                f"process returned {len(results)} results for {len(messages)} messages: expected one for each"
            )
        handles = [
            self._producer.send(
                result.data, id=message.id, stream=self._out_stream or message.stream, meta=result.meta, origin=message
            )
            for message, result in zip(messages, results, strict=True)
            if result is not None
        ]
        for handle in handles:
            handle.result()
        return len(handles)


def run_stage(consumer: Consumer, producer: Producer, process: Process, **settings: Any) -> StageCounts:
    """Make a `Stage` and run it to the end of its stream; parameters as there."""
    return Stage(consumer, producer, process, **settings).run()
