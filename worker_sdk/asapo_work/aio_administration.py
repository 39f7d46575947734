"""The calls of an async consumer about groups and streams as such; see `administration`."""

from __future__ import annotations

from asapo_work import groups, plans
from asapo_work.aio_lookups import AsyncLookups
from asapo_work.groups import DeadLetter, Edge, GroupInfo, Letters


class AsyncAdministration(AsyncLookups):
    """The part of an async consumer that looks after groups and streams."""

    async def groups(
        self, *, stream: str | None = None, source: str | None = None, timeout_s: float | None = None
    ) -> list[GroupInfo]:
        """Return how far groups are; see `Consumer.groups`."""
        chosen = self._client.source if source is None else source
        if stream is not None:
            chosen = self._client.place(stream, source).source
        return await self._run(groups.groups(chosen, stream or "", self._client.wait_s(timeout_s)))

    async def dead_letters(
        self, group: str, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> list[DeadLetter]:
        """Return the messages that a group gave up; see `Consumer.dead_letters`."""
        return await self._run(
            groups.dead_letters(self._client.place(stream, source), group, self._client.wait_s(timeout_s))
        )

    async def requeue_dead_letters(
        self,
        group: str,
        letters: Letters | None = None,
        *,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Have dead letters given out again; see `Consumer.requeue_dead_letters`."""
        wait_s = self._client.wait_s(timeout_s)
        return await self._run(groups.settle(self._client.place(stream, source), group, letters, wait_s, requeue=True))

    async def drop_dead_letters(
        self,
        group: str,
        letters: Letters | None = None,
        *,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Forget dead letters; see `Consumer.drop_dead_letters`."""
        wait_s = self._client.wait_s(timeout_s)
        return await self._run(groups.settle(self._client.place(stream, source), group, letters, wait_s, requeue=False))

    async def seek(
        self,
        group: str,
        *,
        to: Edge | None = None,
        id: int | None = None,
        time_ns: int | None = None,
        fraction: float | None = None,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Let a group go on at another place of the stream; see `Consumer.seek`."""
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        return await self._run(
            groups.seek(place, group, wait_s, to=to, message_id=id, time_ns=time_ns, fraction=fraction)
        )

    async def delete_group(
        self, group: str, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Let a group be forgotten; see `Consumer.delete_group`."""
        await self._run(groups.delete(self._client.place(stream, source), group, self._client.wait_s(timeout_s)))

    async def delete_stream(
        self,
        stream: str,
        *,
        source: str | None = None,
        force: bool = False,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Delete a stream for good; see `Consumer.delete_stream`."""
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        await self._run(plans.delete_stream(place, wait_s, self._client.clock, force=force, missing_ok=missing_ok))
