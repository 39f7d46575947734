"""One stream in the delivery core: its window and its groups, kept in step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from asapo.delivery.group import Group
from asapo.delivery.leases import GroupState
from asapo.delivery.letters import NO_LETTERS
from asapo.delivery.rows import Matches, RowTuple, row_seq
from asapo.delivery.terms import Terms
from asapo.delivery.window import Added, StreamWindow
from asapo.errors import GroupMismatch


class StreamDelivery:
    """A window and the groups that read it. Everything that changes the window goes through here.

    Parameters
    ----------
    low, head_seq : int
        See `StreamWindow`: where the window begins.
    """

    def __init__(self, *, low: int = 1, head_seq: int = 0) -> None:
        self.window = StreamWindow(low=low, head_seq=head_seq)
        self.groups: dict[str, Group] = {}
        self.late_parts = 0
        """Parts that came after a group was given their dataset."""

    def add(self, rows: Sequence[RowTuple], now_s: float = 0.0) -> Added:
        """Take newly indexed rows, in the order of seq, and tell the groups; `now_s` is the monotonic clock."""
        head_seq = self.window.head_seq
        added = self._tell(self.window.add(rows, now_s))
        if any(group.incomplete is not None for group in self.groups.values()):
            new = [row for row in rows if row_seq(row) > head_seq]
            self.late_parts += sum(group.parts_came(new) for group in self.groups.values())
        return added

    def add_parts(self, rows: Sequence[RowTuple], now_s: float = 0.0) -> Added:
        """Take all parts of datasets that were named by `window.orphans`, and tell the groups."""
        return self._tell(self.window.add_parts(rows, now_s))

    def _tell(self, added: Added) -> Added:
        if added.ids:
            for group in self.groups.values():
                group.arrived(added, self.window.low)
        return added

    def open_group(
        self,
        name: str,
        *,
        ordered: bool = True,
        where: str = "",
        matches: Matches | None = None,
        lease_s: float = 60.0,
        max_attempts: int = 0,
        state: GroupState | None = None,
        dead: Mapping[int, int] = NO_LETTERS,
        min_parts: int = 0,
        dataset_timeout_s: float = 0.0,
        aligned: int = 0,
    ) -> Group:
        """Return the group, made at the first call; its `Terms` are fixed then.

        `state` and `dead` are what was stored of a group that this core does not know yet.

        Raises
        ------
        GroupMismatch
            If the group (or its stored state) has other terms.
        WrongInput
            If the terms do not go together.
        """
        group = self.groups.get(name)
        terms = Terms(ordered, where, min_parts, dataset_timeout_s, aligned).check()
        found = group.terms if group else state.terms if state else None
        if found is not None and found != terms:
            raise GroupMismatch(
                f"group {name!r} has {found}, not {terms}; use another group name",
                group=name,
                expected=found._asdict(),
                found=terms._asdict(),
            )
        if group is None:
            group = self.groups[name] = Group(
                self.window, ordered=ordered, where=where, matches=matches, lease_s=lease_s, max_attempts=max_attempts,
                state=state, dead=dead, min_parts=min_parts, dataset_timeout_s=dataset_timeout_s, aligned=aligned,
            )  # fmt: skip
        return group

    def expire(self, now_s: float, when_ns: int = 0) -> dict[str, list[int]]:
        """Take back what leases ran out for; return the ids by group, for groups with any. `when_ns`: time of day."""
        found = {name: group.cursor.expire(now_s, when_ns) for name, group in self.groups.items()}
        return {name: ids for name, ids in found.items() if ids}

    def renew(self, session: bytes, now_s: float) -> None:
        """Renew the leases that a session holds in any group."""
        for group in self.groups.values():
            group.cursor.renew(session, now_s)

    def drop_session(self, session: bytes, now_s: float = -inf, when_ns: int = 0) -> dict[str, list[int]]:
        """Give out again what a lost session held; return the ids by group, for groups with any."""
        found = {name: group.cursor.drop_session(session, now_s, when_ns) for name, group in self.groups.items()}
        return {name: ids for name, ids in found.items() if ids}

    def snapshot(self, *, everything: bool = False) -> dict[str, GroupState]:
        """Return the state of the groups that changed since the last call, or of all."""
        return {name: group.snapshot() for name, group in self.groups.items() if everything or group.cursor.dirty}


def other_bound(name: str, expected: int, found: int) -> GroupMismatch:
    """Return the error for a read of a group with another `max_attempts` than its first one."""
    return GroupMismatch(
        f"group {name!r} has max_attempts {expected}, not {found}; "
        "give all its reads the same, or use another group name",
        group=name,
        expected={"max_attempts": expected},
        found={"max_attempts": found},
    )
