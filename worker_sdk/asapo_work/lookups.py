"""What can be asked without a group, and how plans are carried out by a thread that waits."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, TypeVar, overload

from asapo_work import plans, queries
from asapo_work.client import BaseClient
from asapo_work.message import Message
from asapo_work.plans import Ask, Pause, Plan, Show
from asapo_work.queries import Asking, Found
from asapo_work.stream import Await, Glance

T = TypeVar("T")


class Lookups:
    """The part of a consumer that reads messages by id or query and tells about streams."""

    def __init__(self, client: BaseClient) -> None:
        self._client = client

    def get_last(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> Message:
        """Return the message with the highest id; belongs to no group.

        Raises
        ------
        NothingYet, StreamFinished, UnknownStream
            If there is none.
        """
        return self._run(plans.get_last(self._client.place(stream, source), self._client.wait_s(timeout_s)))

    @overload
    def get_by_id(
        self, ids: int, *, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        min_parts: int = ...,
    ) -> Message: ...  # fmt: skip
    @overload
    def get_by_id(
        self, ids: Sequence[int], *, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        min_parts: int = ...,
    ) -> list[Message]: ...  # fmt: skip
    def get_by_id(
        self,
        ids: int | Sequence[int],
        *,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
        min_parts: int = 0,
    ) -> Message | list[Message]:
        """Return the message with this id, or a list in the order of these ids; belongs to no group.

        A dataset is returned when it is complete or has at least `min_parts` parts (0: only when it is complete).

        Raises
        ------
        NothingYet, StreamFinished, UnknownStream, Gap, PartialDataset
            Why the first one that is missing is not there.
        """
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        if isinstance(ids, int):
            return self._run(plans.get_by_id(place, [ids], wait_s, min_parts))[0]
        return self._run(plans.get_by_id(place, ids, wait_s, min_parts))

    def query(
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
        """Return the messages whose metadata fulfil a query, by id unless it says otherwise.

        Parameters
        ----------
        text : str
            For example ``meta.score > 0.9 AND meta.detector = 'a' ORDER BY meta.score DESC``.
        limit : int
            Most messages to return; each part of a dataset counts.
        keys : sequence of str or None
            Of the metadata return only these keys, for example ``["score", "sample.name"]``; None returns all.
        after : str
            The `cursor` of an earlier answer to the same query: go on behind its last message.
        resolve : {"", "origin"}
            "origin" returns the messages that the selected ones were computed from instead, each once.

        Raises
        ------
        WrongInput
            If the query, a key or the cursor cannot be understood; says what and where.
        DeadlineExceeded
            If the query ran longer than the facility allows.
        UnknownStream
            If there is no such stream.
        """
        asking = Asking(limit=limit, keys=keys, after=after, resolve=resolve)
        place = self._client.place(stream, source)
        return self._run(queries.query(place, text, asking, self._client.wait_s(timeout_s)))

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
    ) -> Iterator[Found]:
        """Yield everything a query selects in pages of up to `page` messages, none twice and none left out.

        What arrives meanwhile is on a later page if its place in the order is not passed yet. A dataset is on one page
        unless it has more than `page` parts. With ``resolve="origin"`` a page has the messages that up to `page`
        selected ones were computed from, each message on one page only. Parameters, attributes of the pages, and errors
        are those of `query`.
        """
        asking = Asking(limit=page, keys=keys, after=after, resolve=resolve)
        return self._walk(
            queries.pages(self._client.place(stream, source), text, asking, self._client.wait_s(timeout_s))
        )

    def count(
        self, text: str, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> int:
        """Return how many messages a query selects, each part of a dataset counted; only the number travels."""
        place = self._client.place(stream, source)
        return self._run(queries.count(place, text, self._client.wait_s(timeout_s)))

    def explain(
        self, text: str, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return how a query would be answered: why it is fast or slow.

        Returns
        -------
        dict
            `index`: "id" or the name of the declared key whose index serves the query, "" for none. `scans`: True when
            every message may be looked at. `rows`: most messages that are looked at. `rows_total`: messages of the
            stream. `sorts`: True when all messages that are selected must be found before the first is returned.
            `plan`: what the database says.
        """
        place = self._client.place(stream, source)
        return self._run(queries.explain(place, text, self._client.wait_s(timeout_s)))

    # -- about streams -----------------------------------------------------------------------------------------------

    def stream_info(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return what is known of a stream: sizes, highest id, whether it is finished, its metadata (key `meta`)."""
        place = self._client.place(stream, source)
        return self._run(plans.describe(place.source, place.stream, self._client.wait_s(timeout_s)))

    def stream_meta(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return the metadata of a stream, {} when none was set; UnknownStream when there is no such stream."""
        place = self._client.place(stream, source)
        return self._run(plans.stream_meta(place.source, place.stream, self._client.wait_s(timeout_s)))

    def beamtime_meta(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the metadata of the beamtime, {} when none was set."""
        return self._run(plans.beamtime_meta(self._client.wait_s(timeout_s)))

    def streams(self, *, source: str | None = None, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return what is known of every stream of a source, or of the whole beamtime when no source is named.

        Ordered by source and name; `number` grows in the order in which the streams were made.
        """
        chosen = self._client.source if source is None else source
        return self._run(plans.streams(chosen, self._client.wait_s(timeout_s)))

    def sources(self, *, timeout_s: float | None = None) -> list[str]:
        """Return the names of all data sources of the beamtime."""
        return self._run(plans.sources(self._client.wait_s(timeout_s)))

    def receivers(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the receivers that are alive."""
        return self._run(plans.receivers(self._client.wait_s(timeout_s)))

    def _run(self, plan: Plan[T]) -> T:
        """Carry a plan out, waiting in this thread."""
        try:
            step = next(plan)
            while True:
                step = self._step(plan, step)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _walk(self, plan: Generator[Any, Any, None]) -> Generator[Any, None, None]:
        """Carry a plan out that has things to show, and yield them."""
        try:
            step = next(plan)
            while True:
                if isinstance(step, Show):
                    yield step.value
                    step = next(plan)
                else:
                    step = self._step(plan, step)
        except StopIteration:
            return
        finally:
            plan.close()

    def _do(self, step: Ask | Await | Glance | Pause) -> Any:
        if isinstance(step, Ask):
            return self._client.channel.call(step.kind, step.fields, step.timeout_s)
        if isinstance(step, Await):
            return self._client.channel.result(step.call, step.timeout_s)
        if isinstance(step, Glance):
            return self._client.channel.glance(step.call, step.timeout_s)
        return self._client.pause(step.seconds)

    def _step(self, plan: Generator[Any, Any, Any], step: Ask | Await | Glance | Pause) -> Any:
        """Do what the plan asks for and return what it asks for next."""
        try:
            answer = self._do(step)
        except Exception as exc:
            return plan.throw(exc)
        return plan.send(answer)
