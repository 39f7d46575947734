"""Plain records of the delivery state: what a session holds, and a group as it is stored."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from asapo.delivery.ranges import RangeSet
from asapo.delivery.rows import Entry
from asapo.delivery.terms import Terms

KEPT_SESSIONS: Final = 256
"""Sessions of one group that are remembered after they fell silent."""


@dataclass(slots=True)
class Lease:
    """Messages that were given to a session by one grant."""

    granted_s: float
    lease_s: float
    entries: dict[int, Entry]


@dataclass(slots=True)
class Holder:
    """What one session holds."""

    worker: str = ""
    """The name it gave itself."""
    held: dict[int, Lease] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)
    renewed_s: float = -inf
    soonest_s: float = inf
    """No lease runs out before this: a worker that takes messages one by one has thousands of leases."""
    lost: RangeSet = field(default_factory=RangeSet)
    """Ids that were taken from the session because its lease ran out or it fell silent, and that it has not heard of
    yet."""

    suspect: int = 0
    """Id of the message among those it holds that may have killed a worker; see `redelivery`."""

    def ends_s(self, lease: Lease) -> float:
        """Return when the lease runs out; a renewal counts for all leases of the session."""
        return max(lease.granted_s, self.renewed_s) + lease.lease_s


class Departed:
    """Sessions that fell silent and what was taken from them: one that comes back may have worked on it meanwhile."""

    def __init__(self, most: int = KEPT_SESSIONS) -> None:
        self._most = most
        self._holders: OrderedDict[bytes, Holder] = OrderedDict()
        self.find = self._holders.get
        """Return what is left of a session, or None."""

    def add(self, session: bytes, holder: Holder) -> None:
        """Keep in mind that a session held messages; the oldest session is forgotten when there are too many."""
        for message_id in holder.held:
            holder.lost.add(message_id)
        if holder.lost:
            self._holders[session] = Holder(lost=holder.lost)
            while len(self._holders) > self._most:
                self._holders.popitem(last=False)

    def take(self, session: bytes, worker: str = "") -> Holder:
        """Return what is left of a session that is back, or a new one."""
        holder = self._holders.pop(session, None) or Holder()
        holder.worker = worker
        return holder


class GroupState(NamedTuple):
    """A group as it is stored: plain values only.

    "Keys" are what the group's position counts: ids when ordered, arrival numbers (seq) otherwise.
    """

    ordered: bool
    where: str
    floor: int
    """Every key up to this is done or will never come."""
    done: tuple[tuple[int, int], ...]
    """Closed ranges of done keys above the floor."""
    acked_ids: tuple[tuple[int, int], ...]
    """Unordered groups: ids that were acknowledged before this core read them."""
    attempts: tuple[tuple[int, int], ...]
    """(id, failed deliveries) of messages that are not done."""
    seen_seq: int
    """Rows with a higher arrival number are new to this state, even when their ids are among the done ones."""
    passed: int
    """Messages that the filter left out."""
    late: int
    """Messages that arrived below the group's position."""
    min_parts: int = 0
    dataset_timeout_s: float = 0.0
    aligned: int = 0
    """These three: see `Terms`."""
    given_incomplete: tuple[tuple[int, int], ...] = ()
    """Ids of datasets that were given incomplete."""
    late_parts: int = 0
    """Parts that came after their dataset was given."""

    @property
    def terms(self) -> Terms:
        """How the group reads."""
        return Terms(self.ordered, self.where, self.min_parts, self.dataset_timeout_s, self.aligned)
