"""The consumer of a worker script: blocking calls, safe to use from several threads."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self, overload

from asapo.wire.limits import LEASE_S
from asapo_work import plans
from asapo_work.administration import Administration
from asapo_work.client import STREAM_TIMEOUT_S, TIMEOUT_S, BaseClient, Client
from asapo_work.failures import Unexplained, cause_of, last_words
from asapo_work.message import Message
from asapo_work.payload import Access
from asapo_work.plans import Given, reading_of
from asapo_work.stream import AckMode, Follow, Give, StreamReader, StreamSettings, Taken


class Consumer(Administration):
    """Reads the streams of one beamtime.

    The connection is made by the first call and made anew when it breaks; a call that was under way is repeated without
    being served twice. Use one consumer per process (a forked child must make its own); threads may share it.

    Parameters
    ----------
    url : str
        Address of the broker, for example ``asapo://127.0.0.1:4000``.
    beamtime : str
        The granted period whose data are read.
    source : str
        Data source of all calls that name none.
    timeout_s : float, unit seconds
        How long calls wait that are not told otherwise; never for ever.
    verify : bool
        Compare the checksum of every payload when it is read.
    token : str
        What allows this consumer to read the beamtime, where services ask for it.
    name : str
        Shown in logs and listings; by default host, program and process id.
    access : {"auto", "map", "fetch"}
        Payloads are mapped from the receiver's file where it is on this host, else fetched from its data server;
        "map" and "fetch" allow only the one.

    Raises
    ------
    WrongInput
        If a name or the address is not acceptable.

    Examples
    --------
    >>> with Consumer("asapo://127.0.0.1:4000", beamtime="bt1", source="pilatus") as consumer:  # doctest: +SKIP
    ...     for msg in consumer.stream(group="hits"):
    ...         print(msg.id, msg.meta, msg.data.mean())
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
        self._begin(client, client.channel.address)

    def _begin(self, client: BaseClient, address: str) -> None:
        """Work with this client; a consumer that gets its messages otherwise begins here."""
        super().__init__(client)
        self._address = address
        self._readers: weakref.WeakSet[StreamReader] = weakref.WeakSet()
        self._ended = weakref.finalize(self, _farewell, client)

    # -- a group's messages ------------------------------------------------------------------------------------------

    @overload
    def get_next(
        self, group: str, *, n: None = None, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        ordered: bool = ..., where: str = ..., lease_s: float = ..., max_attempts: int = ...,
        min_parts: int = ..., dataset_timeout_s: float = ..., aligned: bool = ...,
    ) -> Message: ...  # fmt: skip
    @overload
    def get_next(
        self, group: str, *, n: int, stream: str = ..., source: str | None = ..., timeout_s: float | None = ...,
        ordered: bool = ..., where: str = ..., lease_s: float = ..., max_attempts: int = ...,
        min_parts: int = ..., dataset_timeout_s: float = ..., aligned: bool = ...,
    ) -> list[Message]: ...  # fmt: skip
    def get_next(
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
        """Take what comes next for a group; acknowledge it when it is done.

        Parameters
        ----------
        group : str
            Consumers of one group share the messages: each is given to one of them.
        n : int or None
            Take a list of up to this many, at least one, as soon as there is one; None takes a single message.
        stream, source : str
            What to read; waits also for a stream that does not exist yet.
        timeout_s : float, unit seconds
            How long to wait for the first message.
        ordered : bool
            By id, waiting for ids that may still come; False: as they arrive. Fixed by the group's first read.
        where : str
            Only messages whose metadata fulfil this query; the others count as passed. Fixed by the group's first read.
        lease_s : float, unit seconds
            Given to another consumer when not acknowledged for this long after this consumer was last heard of.
        max_attempts : int
            Given out at most this often; 0 means no bound. The same in all reads of a group.
        min_parts : int
            Give a dataset as soon as it has so many parts; 0 waits until it is complete. Fixed by the group's first
            read. An incomplete dataset has `message.complete` False and is given once, whatever comes later.
        dataset_timeout_s : float, unit seconds
            Give a dataset so long after its first part came, as it is then; 0 waits until it is complete. Fixed by the
            group's first read.
        aligned : bool
            Give chunks of exactly `n` messages in their order, each chunk to one consumer; the last one of a stream may
            be shorter. A chunk is done when all of its messages are, else it is given again as a whole. `n` is then
            fixed by the group's first read.

        Raises
        ------
        NothingYet, StreamFinished, UnknownStream, Gap
            The four answers other than a message.
        GroupMismatch
            If the group reads with another filter, order or `max_attempts`.
        ConnectFailed, DeadlineExceeded
            If the broker did not answer in time.
        """
        reading = reading_of(
            n=n, group=group, ordered=ordered, where=where, lease_s=lease_s, max_attempts=max_attempts,
            min_parts=min_parts, dataset_timeout_s=dataset_timeout_s, aligned=aligned,
        )  # fmt: skip
        self._client.keep_leases(lease_s)
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        messages = self._run(plans.get_next(place, reading, 1 if n is None else n, wait_s, self._client.clock))
        return messages[0] if n is None else messages

    @overload
    def stream(
        self, *, group: str, stream: str = ..., source: str | None = ..., where: str = ..., batch: None = None,
        ordered: bool = ..., follow: Follow | None = ..., timeout_s: float | None = ..., ack: AckMode = ...,
        prefetch: bool = ..., lease_s: float = ..., max_attempts: int = ...,
        min_parts: int = ..., dataset_timeout_s: float = ..., aligned: bool = ..., work_timeout_s: float = ...,
    ) -> Generator[Message, None, None]: ...  # fmt: skip
    @overload
    def stream(
        self, *, group: str, stream: str = ..., source: str | None = ..., where: str = ..., batch: int,
        ordered: bool = ..., follow: Follow | None = ..., timeout_s: float | None = ..., ack: AckMode = ...,
        prefetch: bool = ..., lease_s: float = ..., max_attempts: int = ...,
        min_parts: int = ..., dataset_timeout_s: float = ..., aligned: bool = ..., work_timeout_s: float = ...,
    ) -> Generator[list[Message], None, None]: ...  # fmt: skip
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
    ) -> Generator[Any, None, None]:
        """Iterate over what comes for a group until the stream is finished.

        With ``ack="auto"`` a message (or list) is done when the loop asks for the next one. A loop that is left by
        `break` or by an exception hands the current message back, to be given out again: acknowledge it first if it is
        done. What was fetched ahead is handed back, too, and counts as never given. Messages that were given to
        somebody else before they were done here are named in a warning of the log; the loop goes on.

        Parameters
        ----------
        batch : int or None
            Yield lists of up to this many, as many as are there; None yields single messages.
        follow : {"next", "source"} or None
            After the end go on with the stream that the producer named as the next; with "source" otherwise with any
            other stream of the source, in the order in which they were made, also one that comes later.
        timeout_s : float, unit seconds
            How long to wait for the next message; 600 by default.
        ack : {"auto", "manual"}
            "manual" leaves it to `acknowledge`.
        prefetch : bool
            Ask for the next messages while user code works on these.
        work_timeout_s : float, unit seconds
            How long user code may work on one message (or list). What it has not come back from by then is given to
            others, which counts as an attempt; the dead letter shows where it hung. 0: for ever, since signs of life
            renew the lease as long as the process lives.

        Other parameters as for `get_next`.

        Raises
        ------
        NothingYet, UnknownStream
            If nothing came for `timeout_s`; a new loop goes on where this one stopped.
        GroupMismatch, ConnectFailed, DeadlineExceeded
            As for `get_next`.
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
        reader = StreamReader(self._client.channel, place, reading, settings, self._client.clock)
        self._readers.add(reader)
        return self._iterate(reader, single=batch is None, lease_s=lease_s)

    def acknowledge(
        self,
        given: Given,
        *,
        group: str,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Say that messages are done; the group does not get them again.

        Parameters
        ----------
        given : Message, id, or a sequence of either
            What is done; `stream` and `source` are needed for bare ids only.
        group : str
            The group that they were given to.

        Raises
        ------
        LeaseLost
            If some were given to somebody else meanwhile (field `message_ids`); the others count as done.
        """
        wait_s = self._client.wait_s(timeout_s)
        self._run(plans.acknowledge(given, lambda: self._client.place(stream, source), group, wait_s))

    def nack(
        self, given: Given, *, group: str, delay_s: float = 0.0, reason: str | BaseException = "",
        stream: str = "default", source: str | None = None, timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        """Ask to have messages given out again after `delay_s` seconds, because their processing failed.

        Parameters
        ----------
        reason : str or exception
            Why; kept, with the exception's traceback, in the dead letter if this was the last attempt.

        Raises
        ------
        LeaseLost
            If this consumer does not hold some (field `message_ids`); the others are handed back.
        """
        wait_s, there = self._client.wait_s(timeout_s), lambda: self._client.place(stream, source)
        self._run(plans.hand_back(given, there, group, wait_s, delay_s=delay_s, unstarted=False, reason=reason))

    def give_back(
        self,
        given: Given,
        *,
        group: str,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Hand back messages that were not looked at; the attempt does not count. Raises as `nack`."""
        wait_s, there = self._client.wait_s(timeout_s), lambda: self._client.place(stream, source)
        self._run(plans.hand_back(given, there, group, wait_s, delay_s=0.0, unstarted=True))

    # -- its life ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Hand back what was not started, say farewell, end the connections. Safe to call twice."""
        for reader in list(self._readers):
            reader.give_back()
        self._ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            for reader in self._readers:
                reader.failure = error
            self._client.explain(error)
        self.close()

    def __repr__(self) -> str:
        return self._client.summary(type(self).__name__, self._address)

    # ----------------------------------------------------------------------------------------------------------------

    def _iterate(self, reader: StreamReader, *, single: bool, lease_s: float) -> Generator[Any, None, None]:
        """Carry a stream's plan out, giving its messages to the loop."""
        self._client.keep_leases(lease_s)
        self._client.watch(reader.overtime)
        plan, before = reader.read(), None
        try:
            step = next(plan)
            while True:
                if isinstance(step, Give):
                    before = sys.exception()
                    yield from _one_by_one(reader, step.taken) if single else _as_list(reader, step.taken)
                    step = next(plan)
                    continue
                step = self._step(plan, step)
        except StopIteration:
            return
        except GeneratorExit as left:
            reader.failure = reader.failure or cause_of(left, before)
            plan.close()
            if reader.unexplained is not None:
                here = inspect.currentframe()
                self._client.unexplained = here and Unexplained.at(here.f_back, reader.unexplained)
            raise
        finally:
            self._client.forget(reader.overtime)
            plan.close()


def _farewell(client: BaseClient) -> None:
    """End everything, having told for which exception the program ends."""
    client.explain(last_words())
    client.close()


def _one_by_one(reader: StreamReader, taken: Taken) -> Generator[Message, None, None]:
    for message in taken.messages:
        taken.started += 1
        reader.overtime.begin()
        yield message
        reader.overtime.end()
        if reader.due():
            reader.report(taken.started)


def _as_list(reader: StreamReader, taken: Taken) -> Generator[list[Message], None, None]:
    taken.started = len(taken.messages)
    reader.overtime.begin()
    yield taken.messages
    reader.overtime.end()
