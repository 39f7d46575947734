"""What an administrator asks of a group: where it is to go on, what it holds, its dead letters again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import floor, inf, isfinite
from typing import Any, Final

from asapo.delivery.group import Group
from asapo.delivery.rows import Entry
from asapo.delivery.window import StreamWindow
from asapo.errors import WrongInput

LETTERS_AT_ONCE: Final = 1000
"""Dead letters that one request gives out again or drops."""
TARGETS: Final = ("start", "end", "id", "fraction")


@dataclass(frozen=True, slots=True)
class NeedEntries:
    """Load the rows of these ids from the index, then `Group.add_entries`."""

    ids: tuple[int, ...]


def place_of(window: StreamWindow, *, ordered: bool, to: str, message_id: int, seq: int, fraction: float) -> int:
    """Return the position that an administrator means.

    Parameters
    ----------
    to : {"start", "end", "id", "fraction"}
        The first message; behind the last one that is there; the message `message_id`, whose arrival number is `seq`
        (0 when it has none yet); behind this `fraction` of the ids, or of the arrivals in an unordered group.

    Raises
    ------
    WrongInput
        If there is no such place.
    """
    last = window.id_max if ordered else window.head_seq
    if to == "start":
        return 1
    if to == "end":
        return last + 1
    if to == "fraction":
        if not (isfinite(fraction) and 0 <= fraction <= 1):
            raise WrongInput(f"fraction {fraction!r}: expected a number from 0 (the start) to 1 (the end)")
        return 1 + floor(last * fraction)
    if to != "id":
        raise WrongInput(f"seek to {to!r:.80}: expected one of {', '.join(TARGETS)}")
    if not 1 <= message_id <= window.id_max + 1:
        raise WrongInput(f"seek to id {message_id}: expected 1 to {window.id_max + 1}, one above the highest id")
    if ordered:
        return message_id
    if not 1 <= seq <= last:
        raise WrongInput(f"seek to id {message_id}: an unordered group goes on at a message that is there")
    return seq


def revive(group: Group, ids: Collection[int], *, everything: bool) -> int | NeedEntries:
    """Give dead letters (these, or the first ones) out again; return how many, or what has to be loaded first."""
    chosen = group.cursor.dead.first(ids, everything, LETTERS_AT_ONCE)
    entries: dict[int, Entry] = {}
    missing: list[int] = []
    for message_id in chosen:
        entry = group.window.get(message_id) or group.fetched.get(message_id)
        if entry is not None:
            entries[message_id] = entry
        elif message_id not in group.fetched:
            missing.append(message_id)
    if missing:
        return NeedEntries(tuple(missing))
    group.fetched = {}
    return group.cursor.revive(chosen, entries)


def drop(group: Group, ids: Collection[int], *, everything: bool) -> int:
    """Forget dead letters (these, or the first ones); their messages stay done. Return how many."""
    chosen = group.cursor.dead.first(ids, everything, LETTERS_AT_ONCE)
    group.cursor.dead.remove(chosen)
    group.cursor.dirty = True
    return len(chosen)


def facts(group: Group, now_s: float) -> dict[str, Any]:
    """Return how far a group is: plain values.

    `position` is the next key to look at, `floor` the one up to which everything is done; `held` counts messages that
    sessions have, `waiting` those that will be given again or came late; `oldest_s` is the age of the oldest delivery
    that is not acknowledged, 0 when there is none; `workers` are the sessions that hold something; `done` are ranges of
    keys from the position on.
    """
    cursor = group.cursor
    oldest_s = cursor.oldest_s
    return {
        "ordered": cursor.ordered,
        "where": group.where,
        "position": cursor.position,
        "floor": cursor.floor,
        "held": cursor.n_outstanding,
        "waiting": cursor.n_waiting,
        "failed": len(cursor.attempts),
        "dead_letters": len(cursor.dead),
        "oldest_s": 0.0 if oldest_s == inf else max(0.0, now_s - oldest_s),
        "passed": cursor.passed,
        "late": cursor.late,
        "workers": sorted(cursor.workers().values()),
        "done": list(cursor.ahead),
    }
