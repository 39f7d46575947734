"""The same consumer for asyncio: one thread does the socket work, coroutines wait without blocking the loop."""

from __future__ import annotations

import asyncio
import sys
import time
import weakref
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self, overload

from asapo.wire.limits import LEASE_S
from asapo_work import plans
from asapo_work.aio_administration import AsyncAdministration
from asapo_work.aio_lookups import Ended, advance
from asapo_work.client import STREAM_TIMEOUT_S, TIMEOUT_S, Client
from asapo_work.failures import cause_of
from asapo_work.message import Message
from asapo_work.payload import Access
from asapo_work.plans import Given, reading_of
from asapo_work.stream import AckMode, Follow, Give, StreamReader, StreamSettings


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
        client = Client(
            url,
            beamtime=beamtime,
            source=source,
            timeout_s=timeout_s,
            verify=verify,
            token=token,
            name=name,
            access=access,
        )
        super().__init__(client)
        self._readers: weakref.WeakSet[StreamReader] = weakref.WeakSet()
        self._ended = weakref.finalize(self, client.close)

    @overload
    async def get_next(
        self, group: str, *, n: None = None, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        ordered: bool = ..., where: str = ..., lease_s: float = ..., max_attempts: int = ...,
        min_parts: int = ..., dataset_timeout_s: float = ..., aligned: bool = ...,
    ) -> Message: ...  # fmt: skip
    @overload
    async def get_next(
        self, group: str, *, n: int, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        ordered: bool = ..., where: str = ..., lease_s: float = ..., max_attempts: int = ...,
        min_parts: int = ..., dataset_timeout_s: float = ..., aligned: bool = ...,
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
        min_parts: int = 0,
        dataset_timeout_s: float = 0.0,
        aligned: bool = False,
    ) -> Message | list[Message]:
        """Take what comes next for a group; see `Consumer.get_next`."""
        reading = reading_of(
            n=n, group=group, ordered=ordered, where=where, lease_s=lease_s, max_attempts=max_attempts,
            min_parts=min_parts, dataset_timeout_s=dataset_timeout_s, aligned=aligned,
        )  # fmt: skip
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
        min_parts: int = 0,
        dataset_timeout_s: float = 0.0,
        aligned: bool = False,
        work_timeout_s: float = 0.0,
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
            work_timeout_s=work_timeout_s,
        )
        reading = reading_of(
            n=batch, group=group, ordered=ordered, where=where, lease_s=lease_s, max_attempts=max_attempts,
            min_parts=min_parts, dataset_timeout_s=dataset_timeout_s, aligned=aligned,
        )  # fmt: skip
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
        self._client.watch(reader.overtime)
        plan, before = reader.read(), None
        try:
            step: Any = advance(plan.send, None)
            while not isinstance(step, Ended):
                if not isinstance(step, Give):
                    step = await self._step(plan, step)
                    continue
                before = sys.exception()
                if single:
                    for message in step.taken.messages:
                        step.taken.started += 1
                        reader.overtime.begin()
                        yield message
                        reader.overtime.end()
                        if reader.due():
                            reader.report(step.taken.started)
                else:
                    step.taken.started = len(step.taken.messages)
                    reader.overtime.begin()
                    yield step.taken.messages
                    reader.overtime.end()
                step = advance(plan.send, None)
        except GeneratorExit as left:
            reader.failure = reader.failure or cause_of(left, before)
            raise
        finally:
            self._client.forget(reader.overtime)
            plan.close()
