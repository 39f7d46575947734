"""Listings of groups and of their dead letters: what is in memory, what is stored, and what the index counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from asapo.delivery.leases import GroupState
from asapo.errors import UnknownStream, WrongInput
from asapo.index import MetadataIndex
from asapo.index.unread import unread
from asapo.models import StreamRef, check_name
from asapo.wire.events import Done
from asapo.wire.group_events import ListDeadLetters, ListGroups
from asapo.wire.limits import MAX_ROWS
from asapo_broker.administering import unknown_group
from asapo_broker.store import CursorStore

LETTERS_AT_ONCE: Final = 1000

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listing:
    """A request for a listing, with what the poll thread knows of it."""

    event: ListGroups | ListDeadLetters
    live: Mapping[tuple[str, str, str], Facts]
    """How far the groups in memory are, by source, stream and name."""

    @property
    def request(self) -> int:
        """Number of the request."""
        return self.event.request

    def answer(self, beamtime: str, store: CursorStore, index: MetadataIndex | None) -> Done:
        """Return the listing.

        Raises
        ------
        WrongInput, UnknownGroup
            The request is not acceptable, or its group not known.
        """
        event = self.event
        if isinstance(event, ListGroups):
            return Done(event.request, {"groups": self._groups(event, beamtime, store, index)})
        ref = StreamRef(beamtime, check_name("source", event.source), check_name("stream", event.stream))
        letters = store.letters(ref, event.group, event.after, max(1, min(event.limit, LETTERS_AT_ONCE)))
        if letters is None:
            raise unknown_group(ref, event.group)
        return Done(event.request, {"letters": [letter._asdict() for letter in letters]})

    def _groups(self, event: ListGroups, beamtime: str, store: CursorStore, index: MetadataIndex | None) -> list[Facts]:
        after = tuple(event.after)
        if event.after and (len(after) != 3 or not all(type(name) is str for name in after)):
            raise WrongInput(f"after {event.after!r:.80}: expected [source, stream, group]")
        if event.stream and not event.source:
            raise WrongInput(f"stream {event.stream!r} without its source: name both, or none")
        known = store.groups(beamtime, event.source, event.stream)
        found = [entry for entry in known if (entry[0][0].source, entry[0][0].stream, entry[0][1]) > after]
        out: list[Facts] = []
        for (ref, name), state, n_dead in found[: max(1, min(event.limit, MAX_ROWS))]:
            facts = self.live.get((ref.source, ref.stream, name)) or _stored(state, n_dead)
            left = _unread(index, ref, facts)
            shown = {key: value for key, value in facts.items() if key != "done"}
            lag = facts["held"] + facts["waiting"] + left
            out.append({"source": ref.source, "stream": ref.stream, "group": name, **shown, "unread": left, "lag": lag})
        return out


def _stored(state: GroupState, n_dead: int) -> Facts:
    """Return the facts of a group that is not in memory: nobody reads it, so nothing is held."""
    return {
        "ordered": state.ordered,
        "where": state.where,
        "position": state.floor + 1,
        "floor": state.floor,
        "held": 0,
        "waiting": 0,
        "failed": len(state.attempts),
        "dead_letters": n_dead,
        "oldest_s": 0.0,
        "passed": state.passed,
        "late": state.late,
        "workers": [],
        "done": state.done,
    }


def _unread(index: MetadataIndex | None, ref: StreamRef, facts: Facts) -> int:
    no = index.stream_no(ref) if index is not None else None
    if index is None or no is None:
        return 0
    try:
        info = index.stream_info(ref)
    except UnknownStream:
        return 0
    return unread(index, no, info, ordered=facts["ordered"], first=facts["position"], done=facts["done"])
