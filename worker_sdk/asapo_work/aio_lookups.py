"""What can be asked without a group, from coroutines, and how plans are carried out by an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any, Final, NamedTuple, TypeVar, overload

from asapo.models import check_name
from asapo.wire.events import Event
from asapo_work import plans, queries, ranges
from asapo_work.client import STREAM_TIMEOUT_S, Client
from asapo_work.link import ANSWER_GRACE_S
from asapo_work.live import LiveSettings, LiveView
from asapo_work.message import Message
from asapo_work.plans import Ask, Pause, Plan, Show
from asapo_work.queries import Asking, Found
from asapo_work.ranges import Gaps, Moment, TimeOf
from asapo_work.session import Call
from asapo_work.stream import Await, Follow, Glance

T = TypeVar("T")
GRACE_STEP_S: Final = 0.1


class Ended(NamedTuple):
    """A plan's result: a coroutine cannot let StopIteration pass."""

    value: Any


def advance(move: Callable[[Any], Any], value: Any) -> Any:
    """Move a plan on; return what it asks for next, or how it ended."""
    try:
        return move(value)
    except StopIteration as stop:
        return Ended(stop.value)


class AsyncLookups:
    """The part of an async consumer that reads messages by id or query and tells about streams."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._poller: threading.Thread | None = None

    async def get_last(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> Message:
        """Return the message with the highest id; see `Consumer.get_last`."""
        return await self._run(plans.get_last(self._client.place(stream, source), self._client.wait_s(timeout_s)))

    @overload
    async def get_by_id(
        self, ids: int, *, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        min_parts: int = ...,
    ) -> Message: ...  # fmt: skip
    @overload
    async def get_by_id(
        self, ids: Sequence[int], *, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        min_parts: int = ...,
    ) -> list[Message]: ...  # fmt: skip
    async def get_by_id(
        self,
        ids: int | Sequence[int],
        *,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
        min_parts: int = 0,
    ) -> Message | list[Message]:
        """Return the message with this id, or a list in the order of these ids; see `Consumer.get_by_id`."""
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        if isinstance(ids, int):
            return (await self._run(plans.get_by_id(place, [ids], wait_s, min_parts)))[0]
        return await self._run(plans.get_by_id(place, ids, wait_s, min_parts))

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

    def query_pages(
        self,
        text: str,
        *,
        stream: str = "default",
        source: str | None = None,
        page: int = 1000,
        keys: Sequence[str] | None = None,
        after: str = "",
        resolve: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Found, None]:
        """Yield everything a query selects, page by page; see `Consumer.query_pages`."""
        asking = Asking(limit=page, keys=keys, after=after, resolve=resolve)
        return self._walk(
            queries.pages(self._client.place(stream, source), text, asking, self._client.wait_s(timeout_s))
        )

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

    def messages(
        self,
        *,
        first: int | None = None,
        last: int | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        by: TimeOf = "acquired",
        where: str = "",
        stream: str = "default",
        source: str | None = None,
        page: int = 1000,
        keys: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Iterate over the messages of a range in the order of their ids; see `Consumer.messages`."""
        text = ranges.range_text(first=first, last=last, since=since, until=until, by=by, where=where)
        place = self._client.place(stream, source)
        return self._walk(ranges.messages(place, text, page, keys, self._client.wait_s(timeout_s)))

    def live(
        self,
        *,
        stream: str = "default",
        source: str | None = None,
        rate_hz: float = 10.0,
        every: int = 1,
        follow: Follow | None = "next",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Iterate over the newest message, again and again, until the stream is finished; see `Consumer.live`."""
        settings = LiveSettings(
            rate_hz=rate_hz,
            every=every,
            follow=follow,
            timeout_s=STREAM_TIMEOUT_S if timeout_s is None else plans.check_wait(timeout_s),
        )
        return self._walk(LiveView(self._client.place(stream, source), settings, self._client.clock).read())

    async def stream_info(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return what is known of a stream."""
        place = self._client.place(stream, source)
        return await self._run(plans.describe(place.source, place.stream, self._client.wait_s(timeout_s)))

    async def gaps(self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None) -> Gaps:
        """Return which ids a stream lacks; see `Consumer.gaps`."""
        place = self._client.place(stream, source)
        return await self._run(ranges.gaps(place, self._client.wait_s(timeout_s)))

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

    async def stages(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return what the stages of the beamtime did so far; see `Consumer.stages`."""
        return await self._run(plans.stages(self._client.beamtime, self._client.wait_s(timeout_s)))

    async def receivers(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the receivers that are alive."""
        return await self._run(plans.receivers(self._client.wait_s(timeout_s)))

    async def load(self, message: Message) -> Message:
        """Read a message's payload in a thread, so that `raw` and `data` cost no wait any more."""
        await asyncio.to_thread(lambda: message.raw)
        return message

    def report_work(
        self, work: object, tell: Callable[[], dict[str, Any]], *, group: str, stream: str = "default",
        source: str | None = None,
    ) -> None:  # fmt: skip
        """Have the broker told what a piece of work has done; see `Consumer.report_work`. Does not wait."""
        named = {"group": check_name("group", group), **self._client.place(stream, source).fields}
        self._client.report(work, lambda: {**tell(), **named})

    # -- carrying plans out ------------------------------------------------------------------------------------------

    async def _walk(self, plan: Generator[Any, Any, None]) -> AsyncGenerator[Any, None]:
        """Carry a plan out that has things to show, and yield them."""
        try:
            step: Any = advance(plan.send, None)
            while not isinstance(step, Ended):
                if isinstance(step, Show):
                    yield step.value
                    step = advance(plan.send, None)
                else:
                    step = await self._step(plan, step)
        finally:
            plan.close()

    async def _run(self, plan: Plan[T]) -> T:
        """Carry a plan out, waiting in the event loop."""
        try:
            step: Any = advance(plan.send, None)
            while not isinstance(step, Ended):
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
            return advance(plan.throw, exc)
        return advance(plan.send, answer)

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
