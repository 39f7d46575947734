"""A stage: takes messages of a group, computes, publishes the results, and only then calls the messages done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
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
    """What a stage did since its `run` began."""

    taken: int = 0
    """Messages that `process` was given and that are done."""
    published: int = 0
    """Results that were stored."""
    bytes: int = 0
    """Stored bytes of the messages taken."""
    errors: int = 0
    """Calls of `process`, or results, that failed."""
    user_s: float = 0.0
    """Seconds inside `process`."""
    wall_s: float = 0.0
    """Seconds since `run` began, or that it took."""

    @property
    def rate_hz(self) -> float:
        """Messages a second, waiting included."""
        return self.taken / self.wall_s if self.wall_s else 0.0


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
    stream, where, ordered, follow, timeout_s, max_attempts, min_parts, dataset_timeout_s, aligned, work_timeout_s
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
        min_parts: int = 0,
        dataset_timeout_s: float = 0.0,
        aligned: bool = False,
        work_timeout_s: float = 0.0,
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._process = process
        self._group = group
        self._out_stream = out_stream
        self._reading: dict[str, Any] = {
            "group": group, "stream": stream, "where": where, "batch": batch, "ordered": ordered, "follow": follow,
            "timeout_s": timeout_s, "max_attempts": max_attempts, "min_parts": min_parts,
            "dataset_timeout_s": dataset_timeout_s, "aligned": aligned, "work_timeout_s": work_timeout_s,
        }  # fmt: skip
        self._stop = threading.Event()
        self._counts = StageCounts()
        self._began_s: float | None = None

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
        self._counts, self._began_s = StageCounts(), time.monotonic()
        self._consumer.report_work(self, self._told, group=self._group, stream=self._reading["stream"])
        try:
            for messages in self._consumer.stream(**self._reading):
                self._work_or_blame(messages)
                if self._stop.is_set():
                    self._consumer.acknowledge(messages, group=self._group)
                    break
        finally:
            self._counts, self._began_s = self.counts, None
        return self._counts

    @property
    def counts(self) -> StageCounts:
        """What the stage did so far; any thread."""
        began_s, counts = self._began_s, self._counts
        return counts if began_s is None else replace(counts, wall_s=time.monotonic() - began_s)

    def _told(self) -> dict[str, Any]:
        """Return what the broker is told with each sign of life."""
        return {**asdict(self.counts), "running": self._began_s is not None}

    def stop(self) -> None:
        """End `run` after the messages that are at work; any thread."""
        self._stop.set()

    def _work_or_blame(self, messages: list[Message]) -> None:
        """Work; if that fails, hand back what it failed on, and say why."""
        try:
            self._work(messages)
        except Exception as exc:
            if len(messages) == 1 or not self._reading["max_attempts"]:
                self._hand_back(messages, exc)
                raise
            self._one_by_one(messages)

    def _one_by_one(self, messages: list[Message]) -> None:
        """Work on messages that failed together, so that only the one that fails alone is to blame."""
        for at, message in enumerate(messages):
            try:
                self._work([message])
            except Exception as exc:
                self._hand_back([message], exc)
                with suppress(AsapoError):
                    self._consumer.give_back(messages[at + 1 :], group=self._group)
                raise
            self._consumer.acknowledge(message, group=self._group)

    def _hand_back(self, messages: list[Message], error: Exception) -> None:
        with suppress(AsapoError):  # what is lost is given to others anyway
            self._consumer.nack(messages, group=self._group, reason=error)

    def _work(self, messages: list[Message]) -> None:
        """Publish the results of these messages and wait until the receivers have them."""
        began_s = time.monotonic()
        user_s = 0.0
        n_bytes = sum(part.size for message in messages for part in message.parts or (message,))
        try:
            results = self._process(messages) or [None] * len(messages)
            user_s = time.monotonic() - began_s
            published = self._publish(messages, results)
        except BaseException:
            user_s = user_s or time.monotonic() - began_s
            self._count(errors=1, user_s=user_s)
            raise
        self._count(taken=len(messages), published=published, bytes=n_bytes, user_s=user_s)

    def _count(self, **more: float) -> None:
        """Let the counts grow."""
        counts = self._counts
        self._counts = replace(counts, **{name: getattr(counts, name) + n for name, n in more.items()})

    def _publish(self, messages: list[Message], results: Sequence[Result | None]) -> int:
        """Send the results, wait until they are stored, and return how many."""
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
