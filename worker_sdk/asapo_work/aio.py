"""The same consumer for asyncio: one thread does the socket work, coroutines wait without blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar, overload

from asapo.wire.events import Event
from asapo.wire.limits import LEASE_S
from asapo_work import plans, queries
from asapo_work.aio_administration import AsyncAdministration
from asapo_work.client import STREAM_TIMEOUT_S, TIMEOUT_S, Client
from asapo_work.failures import cause_of
from asapo_work.link import ANSWER_GRACE_S
from asapo_work.message import Message
from asapo_work.payload import Access
from asapo_work.plans import Ask, Given, Pause, Plan, Reading, reading_of
from asapo_work.queries import Asking, Found
from asapo_work.session import Call
from asapo_work.stream import AckMode, Await, Follow, Give, Glance, StreamReader, StreamSettings

T = TypeVar("T")
GRACE_STEP_S: Final = 0.1


class _Ended(NamedTuple):
    """A plan's result: a coroutine cannot let StopIteration pass."""

    value: Any


def _advance(move: Callable[[Any], Any], value: Any) -> Any:
    try:
        return move(value)
    except StopIteration as stop:
        return _Ended(stop.value)


class AsyncConsumer(AsyncAdministration):
    """Reads the streams of one beamtime from coroutines; parameters and calls are those of `Consumer`.

    `msg.data` of a mapped message costs no wait. Where payloads come from a data server, `await consumer.load(msg)`
    first, so that the event loop goes on meanwhile.
    """

    def __init__(
        self,
        url: str,
        *,
        beamtime: str,
        source: str = "",
        timeout_s: float = TIMEOUT_S,
        verify: bool = False,
        token: str = "",
        name: str = "",
        access: Access = "auto",
    ) -> None:
        self._client = Client(
            url,
            beamtime=beamtime,
            source=source,
            timeout_s=timeout_s,
            verify=verify,
            token=token,
            name=name,
            access=access,
        )
        self._readers: weakref.WeakSet[StreamReader] = weakref.WeakSet()
        self._poller: threading.Thread | None = None
        self._ended = weakref.finalize(self, self._client.close)

    @overload
    async def get_next(
        self, group: str, *, n: None = None, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        ordered: bool = ..., where: str = ..., lease_s: float = ..., max_attempts: int = ...,
    ) -> Message: ...  # fmt: skip
    @overload
    async def get_next(
        self, group: str, *, n: int, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        ordered: bool = ..., where: str = ..., lease_s: float = ..., max_attempts: int = ...,
    ) -> list[Message]: ...  # fmt: skip
    async def get_next(
        self,
        group: str,
        *,
        n: int | None = None,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
        ordered: bool = True,
        where: str = "",
        lease_s: float = LEASE_S,
        max_attempts: int = 0,
    ) -> Message | list[Message]:
        """Take what comes next for a group; see `Consumer.get_next`."""
        reading = reading_of(group=group, ordered=ordered, where=where, lease_s=lease_s, max_attempts=max_attempts)
        self._client.keep_leases(lease_s)
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        messages = await self._run(plans.get_next(place, reading, 1 if n is None else n, wait_s, time.monotonic))
        return messages[0] if n is None else messages

    def stream(
        self,
        *,
        group: str,
        stream: str = "default",
        source: str | None = None,
        where: str = "",
        batch: int | None = None,
        ordered: bool = True,
        follow: Follow | None = "next",
        timeout_s: float | None = None,
        ack: AckMode = "auto",
        prefetch: bool = True,
        lease_s: float = LEASE_S,
        max_attempts: int = 0,
    ) -> AsyncGenerator[Any, None]:
        """Iterate over what comes for a group; see `Consumer.stream`.

        Leave the loop early only under ``contextlib.aclosing``: an async generator that is merely dropped hands its
        messages back when the event loop gets round to it.
        """
        settings = StreamSettings(
            batch=None if batch is None else plans.check_count(batch),
            follow=follow,
            timeout_s=STREAM_TIMEOUT_S if timeout_s is None else plans.check_wait(timeout_s),
            ack=ack,
            prefetch=prefetch,
        )
        reading = Reading(group=group, ordered=ordered, where=where, lease_s=lease_s, max_attempts=max_attempts)
        place = self._client.place(stream, source)
        reader = StreamReader(self._client.channel, place, reading, settings, time.monotonic)
        self._readers.add(reader)
        return self._iterate(reader, single=batch is None, lease_s=lease_s)

    async def acknowledge(
        self, given: Given, *, group: str, stream: str = "default", source: str | None = None,
        timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        """Say that messages are done; see `Consumer.acknowledge`."""
        wait_s = self._client.wait_s(timeout_s)
        await self._run(plans.acknowledge(given, lambda: self._client.place(stream, source), group, wait_s))

    async def nack(
        self,
        given: Given,
        *,
        group: str,
        delay_s: float = 0.0,
        reason: str | BaseException = "",
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Ask to have messages given out again after `delay_s` seconds; see `Consumer.nack`."""
        wait_s, there = self._client.wait_s(timeout_s), lambda: self._client.place(stream, source)
        await self._run(plans.hand_back(given, there, group, wait_s, delay_s=delay_s, unstarted=False, reason=reason))

    async def give_back(
        self, given: Given, *, group: str, stream: str = "default", source: str | None = None,
        timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        """Hand back messages that were not looked at; the attempt does not count."""
        wait_s, there = self._client.wait_s(timeout_s), lambda: self._client.place(stream, source)
        await self._run(plans.hand_back(given, there, group, wait_s, delay_s=0.0, unstarted=True))

    async def get_last(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> Message:
        """Return the message with the highest id; see `Consumer.get_last`."""
        return await self._run(plans.get_last(self._client.place(stream, source), self._client.wait_s(timeout_s)))

    @overload
    async def get_by_id(
        self, ids: int, *, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...
    ) -> Message: ...
    @overload
    async def get_by_id(
        self, ids: Sequence[int], *, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...
    ) -> list[Message]: ...
    async def get_by_id(
        self,
        ids: int | Sequence[int],
        *,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> Message | list[Message]:
        """Return the message with this id, or a list in the order of these ids; see `Consumer.get_by_id`."""
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        if isinstance(ids, int):
            return (await self._run(plans.get_by_id(place, [ids], wait_s)))[0]
        return await self._run(plans.get_by_id(place, ids, wait_s))

    async def query(
        self,
        text: str,
        *,
        stream: str = "default",
        source: str | None = None,
        limit: int = 1000,
        keys: Sequence[str] | None = None,
        after: str = "",
        resolve: str = "",
        timeout_s: float | None = None,
    ) -> Found:
        """Return the messages whose metadata fulfil a query; see `Consumer.query`."""
        asking = Asking(limit=limit, keys=keys, after=after, resolve=resolve)
        place = self._client.place(stream, source)
        return await self._run(queries.query(place, text, asking, self._client.wait_s(timeout_s)))

    async def query_pages(
        self,
        text: str,
        *,
        stream: str = "default",
        source: str | None = None,
        page: int = 1000,
        keys: Sequence[str] | None = None,
        after: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Found, None]:
        """Yield everything a query selects, page by page; see `Consumer.query_pages`."""
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        more = True
        while more:
            asking = Asking(limit=page, keys=keys, after=after)
            found = await self._run(queries.page(place, text, asking, wait_s))
            after, more = found.cursor, found.more
            if found:
                yield found

    async def count(
        self, text: str, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> int:
        """Return how many messages a query selects; see `Consumer.count`."""
        place = self._client.place(stream, source)
        return await self._run(queries.count(place, text, self._client.wait_s(timeout_s)))

    async def explain(
        self, text: str, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return how a query would be answered; see `Consumer.explain`."""
        place = self._client.place(stream, source)
        return await self._run(queries.explain(place, text, self._client.wait_s(timeout_s)))

    async def stream_info(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return what is known of a stream."""
        place = self._client.place(stream, source)
        return await self._run(plans.describe(place.source, place.stream, self._client.wait_s(timeout_s)))

    async def stream_meta(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return the metadata of a stream, {} when none was set; UnknownStream when there is no such stream."""
        place = self._client.place(stream, source)
        return await self._run(plans.stream_meta(place.source, place.stream, self._client.wait_s(timeout_s)))

    async def beamtime_meta(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the metadata of the beamtime, {} when none was set."""
        return await self._run(plans.beamtime_meta(self._client.wait_s(timeout_s)))

    async def streams(self, *, source: str | None = None, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return what is known of every stream of a source, or of the whole beamtime when no source is named."""
        chosen = self._client.source if source is None else source
        return await self._run(plans.streams(chosen, self._client.wait_s(timeout_s)))

    async def sources(self, *, timeout_s: float | None = None) -> list[str]:
        """Return the names of all data sources of the beamtime."""
        return await self._run(plans.sources(self._client.wait_s(timeout_s)))

    async def receivers(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the receivers that are alive."""
        return await self._run(plans.receivers(self._client.wait_s(timeout_s)))

    async def load(self, message: Message) -> Message:
        """Read a message's payload in a thread, so that `raw` and `data` cost no wait any more."""
        await asyncio.to_thread(lambda: message.raw)
        return message

    async def close(self) -> None:
        """Hand back what was not started, say farewell, end the connections. Safe to call twice."""
        for reader in list(self._readers):
            reader.give_back()
        await asyncio.to_thread(self._ended)
        if self._poller is not None:
            await asyncio.to_thread(self._poller.join)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            for reader in self._readers:
                reader.failure = error
        await self.close()

    def __repr__(self) -> str:
        return self._client.summary("AsyncConsumer", self._client.channel.address)

    # ----------------------------------------------------------------------------------------------------------------

    async def _iterate(self, reader: StreamReader, *, single: bool, lease_s: float) -> AsyncGenerator[Any, None]:
        """Carry a stream's plan out, giving its messages to the loop."""
        self._client.keep_leases(lease_s)
        plan, before = reader.read(), None
        try:
            step: Any = _advance(plan.send, None)
            while not isinstance(step, _Ended):
                if not isinstance(step, Give):
                    step = await self._step(plan, step)
                    continue
                before = sys.exception()
                if single:
                    for message in step.taken.messages:
                        step.taken.started += 1
                        yield message
                        if reader.due():
                            reader.report(step.taken.started)
                else:
                    step.taken.started = len(step.taken.messages)
                    yield step.taken.messages
                step = _advance(plan.send, None)
        except GeneratorExit as left:
            reader.failure = reader.failure or cause_of(left, before)
            raise
        finally:
            plan.close()

    async def _run(self, plan: Plan[T]) -> T:
        """Carry a plan out, waiting in the event loop."""
        try:
            step: Any = _advance(plan.send, None)
            while not isinstance(step, _Ended):
                step = await self._step(plan, step)
            return step.value  # type: ignore[no-any-return]
        finally:
            plan.close()

    async def _step(self, plan: Any, step: Ask | Await | Glance | Pause) -> Any:
        """Do what the plan asks for and return what it asks for next."""
        try:
            if isinstance(step, Ask):
                answer: Any = await self._result(self._client.channel.begin(step.kind, step.fields), step.timeout_s)
            elif isinstance(step, Await):
                answer = await self._result(step.call, step.timeout_s)
            elif isinstance(step, Glance):
                await self._come(step.call, time.monotonic() + step.timeout_s - ANSWER_GRACE_S)
                answer = step.call.done
            else:
                answer = None
                await asyncio.sleep(step.seconds)
        except Exception as exc:
            return _advance(plan.throw, exc)
        return _advance(plan.send, answer)

    async def _result(self, call: Call, timeout_s: float) -> Event:
        """Wait for an answer; whatever ends the wait early abandons the call."""
        channel = self._client.channel
        try:
            await self._come(call, time.monotonic() + timeout_s)
        except BaseException:
            channel.abandon(call)
            raise
        return channel.outcome(call, timeout_s)

    async def _come(self, call: Call, deadline_s: float) -> None:
        """Wait until the answer is there or the deadline (and grace) has passed."""
        channel = self._client.channel
        if self._poller is None:
            self._poller = threading.Thread(target=channel.serve, name="asapo-consumer", daemon=True)
            self._poller.start()
        loop = asyncio.get_running_loop()
        came = asyncio.Event()

        def ring(_: Call) -> None:
            loop.call_soon_threadsafe(came.set)

        channel.notify(call, ring)
        while not call.done and (patience_s := channel.patience(deadline_s)) > 0:
            # Past the deadline only a server that answers is waited for: look whether it still is one.
            pause_s = min(patience_s, max(deadline_s - time.monotonic(), GRACE_STEP_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await came.wait()
