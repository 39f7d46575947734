"""Answers about groups as such, for a folder: groups are in this program's memory, and so are their dead letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asapo.delivery.admin import NeedEntries, drop, facts, place_of, revive
from asapo.delivery.answers import unknown_stream
from asapo.delivery.group import Group
from asapo.delivery.letters import DeadLetter
from asapo.errors import UnknownGroup
from asapo.index.answers import whole
from asapo.index.unread import unread
from asapo.models import StreamRef
from asapo.wire.events import Done, Event
from asapo.wire.group_events import DeleteGroup, Explain, ListDeadLetters, ListGroups, Seek, SettleDeadLetters
from asapo_work.offline.folder import Folder, OfflineStream


class GroupAnswers:
    """Answers requests about groups one at a time.

    Parameters
    ----------
    now_s : callable
        The clock that deliveries are told by, seconds.
    """

    def __init__(self, folder: Folder, now_s: Callable[[], float]) -> None:
        self._folder = folder
        self._now_s = now_s
        self.table: dict[type[Event], Callable[[Any], Event]] = {
            ListGroups: self._list,
            Seek: self._seek,
            DeleteGroup: self._delete,
            ListDeadLetters: self._letters,
            SettleDeadLetters: self._settle,
            Explain: self._explain,
        }

    def _found(self, request: Any) -> tuple[OfflineStream, Group]:
        stream = self._folder.stream(request.source, request.stream)
        if stream is None:
            raise unknown_stream(StreamRef(self._folder.beamtime, request.source, request.stream))
        group = stream.delivery.groups.get(request.group)
        if group is None:
            raise UnknownGroup(
                f"stream {stream.ref} has no group {request.group!r}: it did not read the stream in this program",
                group=request.group, source=request.source, stream=request.stream,
            )  # fmt: skip
        return stream, group

    def _list(self, request: ListGroups) -> Event:
        found = []
        for stream in self._folder.streams(request.source):
            source, name = stream.ref.source, stream.ref.stream
            if request.stream in ("", name):
                entries = sorted(stream.delivery.groups.items())
                found += [
                    self._facts(stream, one, group)
                    for one, group in entries
                    if [source, name, one] > list(request.after)
                ]
        return Done(request.request, {"groups": found[: request.limit]})

    def _facts(self, stream: OfflineStream, name: str, group: Group) -> dict[str, Any]:
        known = facts(group, self._now_s())
        done, ordered, first = known.pop("done"), known["ordered"], known["position"]
        left = unread(stream, 0, stream.info, ordered=ordered, first=first, done=done)
        lag = known["held"] + known["waiting"] + left
        where = {"source": stream.ref.source, "stream": stream.ref.stream, "group": name}
        return {**where, **known, "unread": left, "lag": lag}

    def _seek(self, request: Seek) -> Event:
        _, group = self._found(request)
        position = place_of(
            group.window, ordered=group.cursor.ordered, to=request.to, message_id=request.message_id, seq=request.seq,
            fraction=request.fraction,
        )  # fmt: skip
        return Done(request.request, {"held": group.seek(position), "position": position})

    def _delete(self, request: DeleteGroup) -> Event:
        stream, group = self._found(request)
        del stream.delivery.groups[request.group]
        return Done(request.request, {"held": group.cursor.n_outstanding})

    def _letters(self, request: ListDeadLetters) -> Event:
        _, group = self._found(request)
        letters = [one for one in group.cursor.dead.changes.values() if isinstance(one, DeadLetter)]
        wanted = sorted(one for one in letters if one.message_id > request.after)[: request.limit]
        return Done(request.request, {"letters": [letter._asdict() for letter in wanted]})

    def _settle(self, request: SettleDeadLetters) -> Event:
        stream, group = self._found(request)
        settle = revive if request.requeue else drop
        count = settle(group, request.ids, everything=request.everything)
        while isinstance(count, NeedEntries):
            group.add_entries(count.ids, whole(stream, 0, count.ids))
            count = settle(group, request.ids, everything=request.everything)
        return Done(request.request, {"count": count, "left": len(group.cursor.dead)})

    def _explain(self, request: Explain) -> Event:
        _, group = self._found(request)
        group.cursor.dead.explain(request.ids, "", request.reason, request.traceback)
        return Done(request.request)
