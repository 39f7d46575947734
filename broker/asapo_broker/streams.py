"""One stream on the poll thread: its window and groups, who waits for it, and what was asked of the loader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from asapo.delivery.admin import NeedEntries
from asapo.delivery.leases import GroupState
from asapo.delivery.needs import NeedBacklog
from asapo.delivery.rows import RowTuple
from asapo.delivery.stream import StreamDelivery
from asapo.delivery.terms import Terms, terms_of
from asapo.errors import AsapoError
from asapo.index import StreamHead
from asapo.wire.events import Acknowledge, GetNext, Nack
from asapo.wire.group_events import DeleteGroup, Explain, Seek, SettleDeadLetters
from asapo_broker.announced import AnnouncedUnit
from asapo_broker.feed import Feed, Filter, GroupReady, Opened, PartsLoaded, RowsLoaded, Tail
from asapo_broker.sessions import Session

GroupRequest = GetNext | Acknowledge | Nack | DeleteGroup | Explain | Seek | SettleDeadLetters
NO_BOUND_YET: Final = -1
"""`max_attempts` of a group that was restored for an acknowledgement: its first read says it."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A request to a group that is not answered yet."""

    session: Session
    event: GroupRequest
    deadline_s: float
    once: bool
    """The client does not want to wait: it is answered after one look into the index."""
    acked: bool = False
    """What it reported as done was taken in."""
    lost: list[int] = field(default_factory=list)
    asked: bool = False
    """The loader was asked to look for it."""
    sure: bool = False
    """The loader looked since."""


class StreamState:
    """A stream somebody reads. Methods take what the loader found; serving the requests is `Delivery`'s."""

    def __init__(self, feed: Feed, now_s: float) -> None:
        self.feed = feed
        self.delivery: StreamDelivery | None = None
        """None while the stream is not known in the index."""
        self.waiting: dict[Waiting, None] = {}
        """In the order of their coming."""
        self.opening: set[str] = set()
        """Groups the loader is restoring."""
        self.loading: set[str] = set()
        """Groups the loader is reading rows for."""
        self.parts_asked: set[int] = set()
        self.used_s = now_s
        self.looked = False
        """The loader has answered at least once."""
        self.error: AsapoError | None = None
        """Why the last look failed; None when it did not."""
        self._late_parts = 0

    def open(self, found: Opened, now_s: float) -> None:
        """Begin the window."""
        self.delivery = StreamDelivery(low=found.low, head_seq=found.head_seq)
        window = self.delivery.window
        window.load(found.rows, now_s)
        if found.head_seq:
            window.id_max = max(window.id_max, found.head.id_max)
            self._take_head(found.head)

    def take(self, tail: Tail, now_s: float, *, limit_rows: int, limit_bytes: int) -> tuple[int, ...]:
        """Take in newly indexed rows; return datasets whose parts have to be loaded."""
        self.feed.taken += 1
        if tail.rows:
            self._add(tail.rows, now_s, limit_rows, limit_bytes)
        if tail.head is not None:
            self._take_head(tail.head)
        return self._lost_sight_of()

    def push(self, rows: list[RowTuple], now_s: float, *, limit_rows: int, limit_bytes: int) -> tuple[int, ...]:
        """Take in a unit that a receiver told of and that follows what is here; return as `take`."""
        assert self.delivery is not None
        self._add(rows, now_s, limit_rows, limit_bytes)
        self.feed.pushed_seq = self.delivery.window.head_seq
        return self._lost_sight_of()

    def follows(self, unit: AnnouncedUnit) -> bool:
        """Tell whether a unit follows what is here without a hole."""
        return self.delivery is not None and unit.first_seq == self.delivery.window.head_seq + 1

    @property
    def unsettled(self) -> bool:
        """True when there are messages that ordered groups may not have yet, for want of a mark."""
        return self.delivery is None or self.delivery.window.settled_below <= self.delivery.window.id_max

    def _add(self, rows: list[RowTuple], now_s: float, limit_rows: int, limit_bytes: int) -> None:
        assert self.delivery is not None
        self.delivery.add(rows, now_s)
        self.delivery.window.prune(limit_rows=limit_rows, limit_bytes=limit_bytes)

    def _lost_sight_of(self) -> tuple[int, ...]:
        """Return datasets whose earlier parts have to be loaded and were not asked for yet."""
        assert self.delivery is not None
        orphans = self.delivery.window.orphans
        if not orphans:
            return ()
        asked = tuple(orphans - self.parts_asked)
        self.parts_asked.update(asked)
        return asked

    def _take_head(self, head: StreamHead) -> None:
        assert self.delivery is not None
        window = self.delivery.window
        window.set_watermark(head.watermark)
        if head.finished:
            window.finish(head.last_id, head.next_stream)
            if head.watermark > head.id_max:
                # No open session will send anything: ids up to the last one that are absent are gaps.
                window.set_watermark(head.last_id + 1)

    def new_late_parts(self) -> int:
        """Return how many parts came too late since the last call."""
        before, self._late_parts = self._late_parts, self.delivery.late_parts if self.delivery is not None else 0
        return self._late_parts - before

    def take_parts(self, found: PartsLoaded, now_s: float) -> None:
        """Take in the parts of datasets that the window had lost sight of."""
        assert self.delivery is not None
        self.parts_asked.clear()
        self.delivery.add_parts(found.rows, now_s)

    def take_group(self, found: GroupReady) -> None:
        """Make the group that the loader restored or prepared; without either it stays unknown."""
        assert self.delivery is not None
        job = found.job
        state = found.stored.state if found.stored is not None else None
        self.opening.discard(job.group)
        if found.error is not None or (state is None and job.new is None):
            return  # a group whose stored state cannot be read is not begun anew: the next request asks again
        new = job.new
        if (
            state is None
            and new is not None
            and not self.feed.begun_anew
            and any(isinstance(one.event, Acknowledge | Nack) for one in self.waiting_for(job.group))
        ):
            # Somebody was given messages by a core that died before it stored anything of the group.
            state = GroupState(new.ordered, new.where, 0, (), (), (), 0, 0, 0)._replace(
                min_parts=new.min_parts, dataset_timeout_s=new.dataset_timeout_s, aligned=terms_of(new).aligned
            )
        terms = state.terms if state is not None else terms_of(new) if new is not None else Terms()
        self.delivery.open_group(
            job.group,
            **terms._asdict(),
            matches=found.matches,
            max_attempts=new.max_attempts if new is not None else NO_BOUND_YET,
            state=state,
            dead=found.stored.dead if found.stored is not None else {},
        )

    def take_rows(self, found: RowsLoaded) -> None:
        """Hand rows that a group needed to that group."""
        assert self.delivery is not None
        need = found.job.need
        self.loading.discard(found.job.group)
        group = self.delivery.groups.get(found.job.group)
        if group is None or found.error is not None:
            return
        if isinstance(need, NeedBacklog):
            group.add_backlog(found.rows, from_key=need.from_key, covered_below=found.covered)
        elif isinstance(need, NeedEntries):
            group.add_entries(need.ids, found.rows)
        else:
            group.add_unseen(found.rows, covered_seq=found.covered)

    def filter_of(self, group: str) -> Filter | None:
        """Return the prepared filter of a group."""
        found = self.delivery.groups.get(group) if self.delivery is not None else None
        return found.matches if found is not None and isinstance(found.matches, Filter) else None

    def drop_groups(self, now_s: float, *, unused_s: float) -> int:
        """Let go of groups that nobody has asked for so long; return how many. The next request restores them."""
        if self.delivery is None:
            return 0
        groups, wanted = self.delivery.groups, {one.event.group for one in self.waiting}
        idle = [
            name
            for name, group in groups.items()
            if group.used_s < now_s - unused_s and name not in wanted and group.cursor.at_rest(now_s)
        ]
        for name in idle:
            del groups[name]
        return len(idle)

    def waiting_for(self, group: str) -> list[Waiting]:
        """Return the requests that wait for a group."""
        return [one for one in self.waiting if one.event.group == group]

    @property
    def n_outstanding(self) -> int:
        """Messages that sessions hold or that wait to be given again, in all groups."""
        if self.delivery is None:
            return 0
        return sum(one.cursor.n_outstanding + one.cursor.n_waiting for one in self.delivery.groups.values())

    @property
    def waits_for_time(self) -> bool:
        """True when something may be given only because time passes."""
        return self.delivery is not None and any(one.waits_for_time for one in self.delivery.groups.values())
