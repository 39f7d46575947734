"""What can be asked without a group, and how plans are carried out by a thread that waits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar, overload

from asapo.models import check_name
from asapo_work import plans, queries, ranges
from asapo_work.client import STREAM_TIMEOUT_S, BaseClient
from asapo_work.live import LiveSettings, LiveView
from asapo_work.message import Message
from asapo_work.plans import Ask, Pause, Plan, Show
from asapo_work.queries import Asking, Found
from asapo_work.ranges import Gaps, Moment, TimeOf
from asapo_work.stream import Await, Follow, Glance

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
    ) -> Iterator[Message]:
        """Iterate over the messages of a range in the order of their ids; belongs to no group.

        Parameters
        ----------
        first, last : int or None
            Lowest and highest id; both belong to the range.
        since, until : str, datetime, int or None
            Times from `since` on and before `until`: ISO 8601 text (UTC unless it says otherwise), a datetime with its
            zone, or ns since 1970.
        by : {"acquired", "stored"}
            Which time of a message: when it was taken, or when a receiver took it in.
        where : str
            Only messages whose metadata fulfil this condition of a query.
        page : int
            Messages fetched at once.
        keys : sequence of str or None
            As for `query`.

        Raises
        ------
        WrongInput, DeadlineExceeded, UnknownStream
            As `query`.

        Notes
        -----
        What arrives while the loop runs is found when its id is not passed yet. A range of times looks at all messages
        from `first` to `last`.
        """
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
    ) -> Iterator[Message]:
        """Iterate over the newest message, again and again, until the stream is finished; belongs to no group.

        What comes while the loop's body runs is passed over. Viewers take no messages from groups and hold nothing up.

        Parameters
        ----------
        rate_hz : float, unit 1/s
            Most messages a second.
        every : int
            Show at most one message in so many: the next one lies at least so many arrivals behind the last.
        follow : {"next", "source", None}
            At the end of a stream go on with the one that it names; with "source" also with the newest stream of the
            source, once that has a message and the present one has nothing new.
        timeout_s : float or None, unit seconds
            How long to wait for something new; None: 600 s.

        Raises
        ------
        NothingYet, UnknownStream
            If nothing new came in time.
        """
        settings = LiveSettings(
            rate_hz=rate_hz,
            every=every,
            follow=follow,
            timeout_s=STREAM_TIMEOUT_S if timeout_s is None else plans.check_wait(timeout_s),
        )
        return self._walk(LiveView(self._client.place(stream, source), settings, self._client.clock).read())

    # -- about streams -----------------------------------------------------------------------------------------------

    def stream_info(
        self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return what is known of a stream: sizes, highest id, whether it is finished, its metadata (key `meta`)."""
        place = self._client.place(stream, source)
        return self._run(plans.describe(place.source, place.stream, self._client.wait_s(timeout_s)))

    def gaps(self, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None) -> Gaps:
        """Return which ids a stream lacks: those that will not come, those that may, and incomplete datasets.

        Raises
        ------
        UnknownStream
            If there is no such stream.
        DeadlineExceeded
            If finding them took longer than the facility allows a query.
        """
        place = self._client.place(stream, source)
        return self._run(ranges.gaps(place, self._client.wait_s(timeout_s)))

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

    def stages(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return what the stages of the beamtime that are connected did so far.

        Returns
        -------
        list of dict
            For each: `name` and `session` of its consumer, `group`, `source`, `stream`, `running`, and the numbers of
            `StageCounts`. They are about a second old.
        """
        return self._run(plans.stages(self._client.beamtime, self._client.wait_s(timeout_s)))

    def receivers(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the receivers that are alive."""
        return self._run(plans.receivers(self._client.wait_s(timeout_s)))

    def report_work(
        self, work: object, tell: Callable[[], dict[str, Any]], *, group: str, stream: str = "default",
        source: str | None = None,
    ) -> None:  # fmt: skip
        """Have the broker told what a piece of work has done, with each sign of life.

        Parameters
        ----------
        work : hashable
            Whose report it is; a second one replaces the first.
        tell : callable
            Returns the numbers of `StageCounts` so far and `running`; called by a thread of the SDK, must not block.
        group, stream, source : str
            What the work reads.
        """
        named = {"group": check_name("group", group), **self._client.place(stream, source).fields}
        self._client.report(work, lambda: {**tell(), **named})

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
