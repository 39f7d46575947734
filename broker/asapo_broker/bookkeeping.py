"""What the poll thread tells of its groups: to the store, and to who asks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from asapo.delivery import admin
from asapo.delivery.letters import DeadLetter
from asapo.models import StreamRef
from asapo_broker.saves import Save
from asapo_broker.serving import Serving
from asapo_broker.streams import StreamState
from asapo_broker.tally import Tally

Facts = dict[tuple[str, str, str], dict[str, Any]]
"""How far groups are, by source, stream and name."""


def changes(serving: Serving, tally: Tally) -> dict[tuple[StreamRef, str], Save]:
    """Return the groups that changed since the last call, as they are to be stored."""
    deleted = serving.admin.deleted
    found = {key: Save(None) for key in deleted}
    for state in serving.changed:
        if state.delivery is None:
            continue
        for name, stored in state.delivery.snapshot().items():
            letters = state.delivery.groups[name].cursor.dead.take_changes()
            tally.dead_lettered += sum(isinstance(change, DeadLetter) for change in letters.values())
            key = (state.feed.ref, name)
            found[key] = Save(stored, letters, anew=key in deleted)
    serving.changed.clear()
    deleted.clear()
    return found


def facts(streams: Iterable[StreamState], beamtime: str, source: str, stream: str, now_s: float) -> Facts:
    """Return how far groups are; "" stands for all sources or streams."""
    found: Facts = {}
    for state in streams:
        here = state.feed.ref
        if state.delivery is None or here.beamtime != beamtime:
            continue
        if source not in ("", here.source) or stream not in ("", here.stream):
            continue
        for name, group in state.delivery.groups.items():
            readers = {one.session.key: one.session.name for one in state.waiting_for(name)}
            found[here.source, here.stream, name] = {
                **admin.facts(group, now_s),
                "workers": sorted((readers | group.cursor.workers()).values()),
            }
    return found


def numbers(streams: Collection[StreamState], serving: Serving, n_waiting: int) -> dict[str, int]:
    """Return how much is in memory."""
    windows = [state.delivery.window for state in streams if state.delivery is not None]
    return {
        "streams": len(streams),
        "groups": serving.n_groups,
        "waiters": n_waiting,
        "outstanding": sum(state.n_outstanding for state in serving.active),
        "window_rows": sum(window.n_rows for window in windows),
        "window_bytes": sum(window.n_bytes for window in windows),
    }
