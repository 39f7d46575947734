"""The calls of a consumer about groups and streams as such; nobody's messages are read by them."""

from __future__ import annotations

from asapo_work import groups, plans
from asapo_work.groups import DeadLetter, Edge, GroupInfo, Letters
from asapo_work.lookups import Lookups


class Administration(Lookups):
    """The part of a consumer that looks after groups and streams."""

    def groups(
        self, *, stream: str | None = None, source: str | None = None, timeout_s: float | None = None
    ) -> list[GroupInfo]:
        """Return how far groups are: of one stream, of all streams of a source, or of the beamtime.

        Parameters
        ----------
        stream : str or None
            None returns the groups of every stream.
        source : str or None
            None means the consumer's source; where that is empty, every source.

        Returns
        -------
        list of GroupInfo
            Ordered by source, stream and name. A group is listed from its first read of the stream on.
        """
        chosen = self._client.source if source is None else source
        if stream is not None:
            chosen = self._client.place(stream, source).source
        return self._run(groups.groups(chosen, stream or "", self._client.wait_s(timeout_s)))

    def dead_letters(
        self, group: str, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> list[DeadLetter]:
        """Return the messages that a group gave up, by id.

        Raises
        ------
        UnknownGroup
            If the group never read the stream.
        """
        return self._run(groups.dead_letters(self._client.place(stream, source), group, self._client.wait_s(timeout_s)))

    def requeue_dead_letters(
        self,
        group: str,
        letters: Letters | None = None,
        *,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Have dead letters (or messages by their ids) given out again, attempts counted anew; None: all of them.

        Returns
        -------
        int
            How many there were; ids that are no dead letters count nothing.
        """
        wait_s = self._client.wait_s(timeout_s)
        return self._run(groups.settle(self._client.place(stream, source), group, letters, wait_s, requeue=True))

    def drop_dead_letters(
        self,
        group: str,
        letters: Letters | None = None,
        *,
        stream: str = "default",
        source: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Forget dead letters; the group does not get these messages again. As `requeue_dead_letters`."""
        wait_s = self._client.wait_s(timeout_s)
        return self._run(groups.settle(self._client.place(stream, source), group, letters, wait_s, requeue=False))

    def seek(
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
        """Let a group go on at another place of the stream; give exactly one place.

        From there on every message is given (again), attempts counted anew; what lies before counts as done, also what
        consumers hold. All leases end: who acknowledges a message that was held gets `LeaseLost`. Dead letters before
        the place stay listed, those behind it are given again.

        Parameters
        ----------
        to : {"start", "end"}
            The first message, or behind the last one that is there.
        id : int
            This message; up to one above the highest id. An unordered group needs one that is there.
        time_ns : int, unit ns since the Unix epoch
            The first message acquired then or later; the end when there is none.
        fraction : float, 0 to 1
            Behind this fraction of the ids (of the arrivals, in an unordered group).

        Returns
        -------
        int
            The position: the id, or arrival number, that is looked at next.

        Raises
        ------
        UnknownGroup
            If the group never read the stream.
        WrongInput
            If there is no such place.
        """
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        return self._run(groups.seek(place, group, wait_s, to=to, message_id=id, time_ns=time_ns, fraction=fraction))

    def delete_group(
        self, group: str, *, stream: str = "default", source: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Let a group be forgotten: its position, what it is done with, its dead letters.

        Consumers that wait for messages by it get `UnknownGroup`; who holds messages of it, `LeaseLost`. A later read
        under this name begins a new group at the start.

        Raises
        ------
        UnknownGroup
            If there is no such group.
        """
        self._run(groups.delete(self._client.place(stream, source), group, self._client.wait_s(timeout_s)))

    def delete_stream(
        self,
        stream: str,
        *,
        source: str | None = None,
        force: bool = False,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Delete a stream for good: its messages and their files, its metadata, its groups and their dead letters.

        Arrays and bytes that were read before stay valid. A stream of the same name may be begun afterwards: its ids,
        arrival numbers and groups begin anew. Whoever still holds messages of the deleted one gets `LeaseLost` or
        `UnknownStream` when they are acknowledged, and `StorageError` or `UnknownStream` for payloads not read yet.

        Parameters
        ----------
        force : bool
            Delete it also while producers write to it. What they send, or send again, from then on belongs to a new
            stream of the same name; their numbering goes on.
        missing_ok : bool
            Do nothing if there is no such stream.

        Raises
        ------
        UnknownStream
            If there is no such stream.
        StreamBusy
            If it is not finished and a live producer writes to it: call `finish_stream` or close the producer first.
        IndexUnavailable, DeadlineExceeded
            If no receiver was there to delete it in time, or one ended meanwhile: then it is deleted, or as it was, and
            may be called again.
        """
        place, wait_s = self._client.place(stream, source), self._client.wait_s(timeout_s)
        self._run(plans.delete_stream(place, wait_s, self._client.clock, force=force, missing_ok=missing_ok))
