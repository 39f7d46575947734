"""What is to be written of a group, and what several such writes come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from asapo.delivery.leases import GroupState
from asapo.delivery.letters import Change, DeadLetter, Explained, merge

NO_CHANGES: Final[Mapping[int, Change]] = {}


class Save(NamedTuple):
    """A group as it is now."""

    state: GroupState | None
    """None: the group was deleted."""
    letters: Mapping[int, Change] = NO_CHANGES
    """Dead letters that came, were explained, or went since the write before."""
    anew: bool = False
    """Nothing counts of what was written before: the group was deleted, and made again."""


class Stored(NamedTuple):
    """A group as a new core takes it over."""

    state: GroupState
    dead: dict[int, int]
    """Id of each dead letter to its key."""


def merged(older: Save | None, newer: Save) -> Save:
    """Return the one write that does what `older` and then `newer` do."""
    if older is None or newer.state is None or newer.anew:
        return newer
    return Save(newer.state, merge(older.letters, newer.letters), older.anew or older.state is None)


def overlay(state: GroupState | None, dead: Iterable[DeadLetter], saves: Iterable[Save]) -> tuple[
    GroupState | None, dict[int, DeadLetter]
]:  # fmt: skip
    """Return state and dead letters as they will be when these writes were made, in their order."""
    letters = {letter.message_id: letter for letter in dead}
    for save in saves:
        if save.state is None or save.anew:
            letters = {}
        state = save.state
        for message_id, change in save.letters.items():
            known = letters.get(message_id)
            if isinstance(change, DeadLetter):
                letters[message_id] = change
            elif change is None:
                letters.pop(message_id, None)
            elif known is not None:
                letters[message_id] = change.apply(known)
    return state, letters


def split(letters: Mapping[int, Change]) -> tuple[list[DeadLetter], list[tuple[int, Explained]], list[int]]:
    """Return the letters that came, what explains others, and the ids of those that went."""
    came = [change for change in letters.values() if isinstance(change, DeadLetter)]
    explained = [(one, change) for one, change in letters.items() if isinstance(change, Explained)]
    return came, explained, [one for one, change in letters.items() if change is None]
