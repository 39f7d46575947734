"""What is asked of a group as such, on the poll thread: seek, delete, its dead letters."""

from __future__ import annotations

from collections.abc import Callable

from asapo.delivery.admin import NeedEntries, drop, place_of, revive
from asapo.delivery.group import Group
from asapo.errors import UnknownGroup
from asapo.models import StreamRef
from asapo.wire.group_events import DeleteGroup, Explain, Seek, SettleDeadLetters
from asapo_broker.feed import Filter
from asapo_broker.streams import StreamState, Waiting

AdminRequest = DeleteGroup | Explain | Seek | SettleDeadLetters


def unknown_group(ref: StreamRef, group: str) -> UnknownGroup:
    """Return the error for a group of which nothing is known."""
    return UnknownGroup(
        f"stream {ref} has no group {group!r}: it never read the stream, or was deleted",
        group=group, source=ref.source, stream=ref.stream,
    )  # fmt: skip


class Administering:
    """Carries out such requests.

    Parameters
    ----------
    look : callable
        Has the loader look at a stream, for the sake of one request.
    deny : callable
        Answers all reads that wait for a group with an error.
    """

    def __init__(
        self, look: Callable[[StreamState, Waiting], None], deny: Callable[[StreamState, str, UnknownGroup], None]
    ) -> None:
        self._look = look
        self._deny = deny
        self.deleted: set[tuple[StreamRef, str]] = set()
        """Groups that were deleted since they were saved last."""

    def serve(self, state: StreamState, group: Group, waiting: Waiting) -> dict[str, int] | NeedEntries | None:
        """Return the result; or what has to be loaded first; None: not now.

        Raises
        ------
        WrongInput
            If there is no such place in the stream.
        """
        event = waiting.event
        cursor = group.cursor
        if isinstance(event, Seek):
            return self._seek(state, group, waiting, event)
        if isinstance(event, DeleteGroup):
            return self._delete(state, group, event)
        if isinstance(event, Explain):
            if cursor.dead.explain(event.ids, waiting.session.name, event.reason, event.traceback):
                cursor.dirty = True
            return {}
        assert isinstance(event, SettleDeadLetters)
        settle = revive if event.requeue else drop
        count = settle(group, event.ids, everything=event.everything)
        if isinstance(count, NeedEntries):
            return count
        return {"count": count, "left": len(cursor.dead)}

    def _seek(self, state: StreamState, group: Group, waiting: Waiting, event: Seek) -> dict[str, int] | None:
        # What is in memory of a stream that nobody reads may be old: where its end is, the index says.
        if not waiting.sure or state.feed.behind:
            self._look(state, waiting)
            return None
        position = place_of(
            group.window, ordered=group.cursor.ordered, to=event.to, message_id=event.message_id, seq=event.seq,
            fraction=event.fraction,
        )  # fmt: skip
        return {"held": group.seek(position), "position": position}

    def _delete(self, state: StreamState, group: Group, event: DeleteGroup) -> dict[str, int]:
        assert state.delivery is not None
        ref = state.feed.ref
        del state.delivery.groups[event.group]
        if isinstance(group.matches, Filter):
            group.matches.close()
        self.deleted.add((ref, event.group))
        self._deny(state, event.group, unknown_group(ref, event.group))
        return {"held": group.cursor.n_outstanding}
