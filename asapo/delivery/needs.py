"""What a group answers when it is asked for messages, beside the stream states: messages, or what it needs first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from asapo.delivery.rows import RowTuple
from asapo.errors import StreamState

BACKLOG_ROWS: Final = 3_000
"""Rows asked from the index at once: many groups take turns at it, and each keeps its rows in memory."""


@dataclass(frozen=True, slots=True)
class NeedBacklog:
    """Load messages with `from_key` <= key < `below` from the index, at most about `limit` rows, then `add_backlog`.

    Keys are ids when `ordered`, else arrival numbers. A dataset belongs to the key of its last part and comes whole;
    incomplete datasets may be left out.
    """

    ordered: bool
    from_key: int
    below: int
    limit: int = BACKLOG_ROWS


@dataclass(frozen=True, slots=True)
class NeedUnseen:
    """Load rows with `after_seq` < seq <= `upto_seq` and id < `below_id`, in the order of seq, then `add_unseen`.

    They came while no core looked after the group, with ids it had passed already.
    """

    after_seq: int
    upto_seq: int
    below_id: int
    limit: int = BACKLOG_ROWS


@dataclass(frozen=True, slots=True)
class Again:
    """The filter looked at its share and found nothing; call again, after others had their turn."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Messages given to a session."""

    ids: list[int]
    rows: list[RowTuple]
    """One per message; all parts of a dataset."""
    attempts: dict[int, int]
    """Id to delivery count, for those delivered more than once."""
    late: list[int]
    """Ids that came below the group's position."""
    need: NeedBacklog | None = None
    """Load this already now, so that the next call does not wait for it."""
    incomplete: int = 0
    """Datasets among them of which parts are missing."""


Answer = Granted | NeedBacklog | NeedUnseen | Again | StreamState
AGAIN: Final = Again()
