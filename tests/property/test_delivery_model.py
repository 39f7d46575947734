"""Random lives of a stream and its groups against a plain model of what must hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asapo.delivery.admin import NeedEntries, drop, revive
from asapo.delivery.group import Group
from asapo.delivery.leases import GroupState
from asapo.delivery.needs import Again, Granted, NeedBacklog, NeedUnseen
from asapo.delivery.ranges import RangeSet
from asapo.delivery.rows import RowTuple
from asapo.delivery.stream import StreamDelivery
from asapo.errors import NothingYet, StreamFinished
from asapo.models import Row

LEASE_S = 10.0
GROUPS = {"o1": True, "o2": True, "a1": False}
MAX_ATTEMPTS = {"o1": 0, "o2": 3, "a1": 2}
SESSIONS = [b"s1", b"s2", b"s3"]


def make_row(message_id: int, seq: int, substream: int = 0, size: int = 0) -> RowTuple:
    return tuple(Row(message_id, seq, substream, size, 1, 0, 10, 0, 1, f'{{"k":{message_id % 3}}}', 0, 0, 0, 0))


class Index:
    """What is committed, by arrival; answers the loads that groups ask for, datasets whole."""

    def __init__(self) -> None:
        self.rows: list[RowTuple] = []

    def put(self, parts: list[tuple[int, int, int]]) -> None:
        for message_id, substream, size in parts:
            self.rows.append(make_row(message_id, len(self.rows) + 1, substream, size))

    def visible(self) -> dict[int, list[RowTuple]]:
        found: dict[int, list[RowTuple]] = {}
        for row in self.rows:
            found.setdefault(row[0], []).append(row)
        return {one: rows for one, rows in found.items() if len(rows) >= max(rows[0][3], 1)}

    def backlog(self, need: NeedBacklog, limit: int) -> tuple[list[RowTuple], int]:
        keyed = sorted(
            (message_id if need.ordered else max(row[1] for row in rows), rows)
            for message_id, rows in self.visible().items()
        )
        found = [(key, rows) for key, rows in keyed if need.from_key <= key < need.below]
        covered = found[limit - 1][0] + 1 if len(found) > limit else need.below
        return [row for key, rows in found if key < covered for row in rows], covered

    def unseen(self, need: NeedUnseen, limit: int) -> tuple[list[RowTuple], int]:
        keyed = sorted((max(row[1] for row in rows), rows) for rows in self.visible().values())
        found = [
            (seq, rows) for seq, rows in keyed
            if need.after_seq < seq <= need.upto_seq and rows[0][0] < need.below_id
        ]  # fmt: skip
        covered = found[limit - 1][0] if len(found) > limit else need.upto_seq
        return [row for seq, rows in found if seq <= covered for row in rows], covered


@dataclass
class Seen:
    """What the model knows of one group."""

    delivered: dict[int, int] = field(default_factory=dict)
    acked: set[int] = field(default_factory=set)
    holders: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    excused: set[int] = field(default_factory=set)
    """Ids that may be delivered again: nacked, expired, given back, session lost, or everything after a restore."""
    failed: dict[int, int] = field(default_factory=dict)
    """Failed deliveries of ids that are neither done nor dead letters."""
    dead: set[int] = field(default_factory=set)
    suspects: set[int] = field(default_factory=set)
    """Ids that were held when their session was lost or too slow."""
    skipped: set[int] = field(default_factory=set)
    """Ids that somebody declared done by seeking beyond them."""
    last_new: int = 0
    stored: GroupState | None = None
    stored_dead: dict[int, int] = field(default_factory=dict)
    when_stored: tuple[set[int], dict[int, int], set[int], set[int]] = field(
        default_factory=lambda: (set(), {}, set(), set())
    )
    """What was acked, failed, dead and skipped then."""
    loads: list[tuple[Any, list[RowTuple], int]] = field(default_factory=list)

    def fail(self, ids: set[int], bound: int, *, suspect: bool) -> None:
        """Take these from their holders; each has used up an attempt."""
        for one in ids:
            del self.holders[one]
            self.failed[one] = self.failed.get(one, 0) + 1
            if 0 < bound <= self.failed[one]:
                del self.failed[one]
                self.dead.add(one)
                self.suspects.discard(one)
            else:
                self.excused.add(one)
                if suspect and bound > 1:
                    self.suspects.add(one)


class DeliveryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = Index()
        self.tailed = 0
        self.now_s = 100.0
        self.delivery = StreamDelivery()
        self.seen = {name: Seen() for name in GROUPS}
        self.queues: list[list[list[tuple[int, int, int]]]] = [[], []]
        self.next_id = 1
        self.dense = False
        self.restored = False
        self.renewed_s = dict.fromkeys(SESSIONS, -1e9)

    @initialize(dense=st.booleans())
    def choose_numbering(self, dense: bool) -> None:
        self.dense = dense
        for name in GROUPS:
            self.group(name)

    def group(self, name: str) -> Group:
        return self.delivery.open_group(
            name,
            ordered=GROUPS[name],
            lease_s=LEASE_S,
            max_attempts=MAX_ATTEMPTS[name],
            state=self.seen[name].stored if self.restored else None,
            dead=self.seen[name].stored_dead if self.restored else {},
        )

    # -- the producer and two receivers ---------------------------------------------------------------------------

    @rule(receiver=st.integers(0, 1), gaps=st.lists(st.integers(1, 4), min_size=1, max_size=9), parts=st.integers(0, 3))
    def send(self, receiver: int, gaps: list[int], parts: int) -> None:
        """One unit is on its way to a receiver: messages, or datasets of up to three parts in several units."""
        ids = []
        for gap in gaps:
            ids.append(self.next_id)
            self.next_id += 1 if self.dense else gap
        if parts < 2:
            self.queues[receiver].append([(one, 0, 0) for one in ids])
        for part in range(1, parts + 1) if parts >= 2 else ():
            self.queues[(receiver + part) % 2].append([(one, part, parts) for one in ids])

    @precondition(lambda self: any(self.queues))
    @rule(receiver=st.integers(0, 1), newest=st.booleans())
    def commit(self, receiver: int, newest: bool) -> None:
        queue = self.queues[receiver] or self.queues[1 - receiver]
        self.index.put(queue.pop(-1 if newest else 0))

    @rule(number=st.integers(1, 30))
    def tail(self, number: int) -> None:
        self.delivery.add(self.index.rows[self.tailed : self.tailed + number])
        self.tailed = min(self.tailed + number, len(self.index.rows))
        self.load_orphans()

    def load_orphans(self) -> None:
        if self.delivery.window.orphans:
            wanted = set(self.delivery.window.orphans)
            self.delivery.add_parts([row for row in self.index.rows[: self.tailed] if row[0] in wanted])

    @rule(honest=st.sampled_from([True, True, True, False]), down=st.integers(0, 20))
    def move_watermark(self, honest: bool, down: int) -> None:
        """Below the lowest id that is not handed in yet; a dishonest one (a lost session) makes late arrivals."""
        missing = [part[0] for queue in self.queues for unit in queue for part in unit]
        missing += [row[0] for row in self.index.rows[self.tailed :]]
        bound = min(missing, default=self.next_id) if honest else self.next_id
        self.delivery.window.set_watermark(bound - down if down < bound else 1)

    @rule(limit=st.integers(0, 40))
    def prune(self, limit: int) -> None:
        self.delivery.window.prune(limit_rows=limit, limit_bytes=10**9)
        assert self.delivery.window.low <= self.delivery.window.settled_below

    @rule(
        units=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=4),
        parts=st.sampled_from([0, 0, 0, 2]), kept=st.integers(0, 3), n=st.integers(1, 12), data=st.data(),
    )  # fmt: skip
    def flow(self, units: list[list[int]], parts: int, kept: int, n: int, data: st.DataObject) -> None:
        """The usual life: some units come in, others stay behind, somebody reads and acknowledges."""
        for number, gaps in enumerate(units):
            self.send(number % 2, gaps, parts)
        while sum(map(len, self.queues)) > kept:
            self.commit(data.draw(st.integers(0, 1)), data.draw(st.booleans()))
        self.tail(data.draw(st.integers(5, 60)))
        self.move_watermark(data.draw(st.sampled_from([True, True, False])), 0)
        for name in GROUPS:
            session = data.draw(st.sampled_from(SESSIONS))
            self.ask(name, session, n)
            self.hand_in_load(name, False)
            if data.draw(st.booleans()):
                self.ack(name, session, data.draw(st.integers(1, 3)))

    # -- the groups -----------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(list(GROUPS)), session=st.sampled_from(SESSIONS), n=st.integers(1, 20))
    def get_next(self, name: str, session: bytes, n: int) -> None:
        self.ask(name, session, n)

    def ask(self, name: str, session: bytes, n: int) -> object:
        answer = self.group(name).next_rows(session, n, self.now_s)
        if isinstance(answer, (NeedBacklog, NeedUnseen)):
            self.start_load(name, answer)
        elif isinstance(answer, Granted):
            self.check_grant(name, session, n, answer)
            if answer.need is not None:
                self.start_load(name, answer.need)
        return answer

    def start_load(self, name: str, need: NeedBacklog | NeedUnseen, limit: int = 7) -> None:
        """The load reads the index now; its answer is handed in later."""
        load = self.index.backlog(need, limit) if isinstance(need, NeedBacklog) else self.index.unseen(need, limit)
        self.seen[name].loads.append((need, *load))

    @rule(name=st.sampled_from(list(GROUPS)), newest=st.booleans())
    def hand_in_load(self, name: str, newest: bool) -> None:
        loads = self.seen[name].loads
        if loads:
            need, rows, covered = loads.pop(-1 if newest else 0)
            if isinstance(need, NeedBacklog):
                self.group(name).add_backlog(rows, from_key=need.from_key, covered_below=covered)
            else:
                self.group(name).add_unseen(rows, covered_seq=covered)

    def check_grant(self, name: str, session: bytes, n: int, granted: Granted) -> None:
        seen, visible = self.seen[name], self.index.visible()
        assert 0 < len(granted.ids) <= n
        assert [row[:2] for one in granted.ids for row in sorted(visible[one], key=lambda row: row[2])] == [
            row[:2] for row in granted.rows
        ]
        assert len(seen.suspects.intersection(granted.ids)) <= 1, "two suspects at once"
        assert granted.attempts == {one: seen.failed[one] + 1 for one in granted.ids if one in seen.failed}
        for one in granted.ids:
            assert one not in seen.holders, "two live leases"
            assert one not in seen.dead, "a dead letter"
            assert one not in seen.skipped, "done by a seek"
            assert one not in seen.acked or one in seen.excused, "given again after its ack"
            assert one not in seen.delivered or one in seen.excused, "given twice without a reason"
            seen.excused.discard(one)
            if GROUPS[name] and one not in granted.late and one not in seen.delivered:
                assert one > seen.last_new, "an ordered group goes back without the flag"
                skipped = {x for x in self.handed_in() if seen.last_new < x < one}
                assert skipped <= seen.delivered.keys() | set(granted.ids) | seen.acked | seen.skipped, "skipped"
                seen.last_new = one
            seen.delivered[one] = seen.delivered.get(one, 0) + 1
            seen.holders[one] = (session, self.now_s)

    def handed_in(self) -> set[int]:
        visible = self.index.visible()
        return {one for one, rows in visible.items() if max(row[1] for row in rows) <= self.tailed}

    @rule(name=st.sampled_from(list(GROUPS)), session=st.sampled_from(SESSIONS), share=st.integers(1, 3))
    def ack(self, name: str, session: bytes, share: int) -> None:
        seen = self.seen[name]
        mine = sorted(one for one, (holder, _) in seen.holders.items() if holder == session)[::share]
        lost = self.group(name).cursor.ack(session, list(RangeSet((one, one) for one in mine)))
        assert lost == []
        for one in mine:
            del seen.holders[one]
            seen.failed.pop(one, None)
        seen.acked |= set(mine)
        seen.suspects -= set(mine)

    @rule(name=st.sampled_from(list(GROUPS)), session=st.sampled_from(SESSIONS))
    def ack_of_others_is_refused(self, name: str, session: bytes) -> None:
        seen = self.seen[name]
        others = sorted(one for one, (holder, _) in seen.holders.items() if holder != session)[:2]
        for one in others:
            assert self.group(name).cursor.ack(session, [(one, one)]) == [one]

    @rule(name=st.sampled_from(list(GROUPS)), session=st.sampled_from(SESSIONS), delay=st.sampled_from([0.0, 3.0]),
          back=st.booleans())  # fmt: skip
    def nack_or_give_back(self, name: str, session: bytes, delay: float, back: bool) -> None:
        seen, cursor = self.seen[name], self.group(name).cursor
        mine = [one for one, (holder, _) in seen.holders.items() if holder == session][::2]
        lost = cursor.give_back(session, mine) if back else cursor.nack(session, mine, delay, self.now_s)
        assert lost == []
        if not back:
            seen.fail(set(mine), MAX_ATTEMPTS[name], suspect=False)
        for one in mine if back else ():
            del seen.holders[one]
            seen.excused.add(one)

    @rule(by=st.floats(0.5, 12))
    def time_passes(self, by: float) -> None:
        self.now_s += by
        expired = self.delivery.expire(self.now_s)
        for name, seen in self.seen.items():
            due = {
                one for one, (session, given_s) in seen.holders.items()
                if max(given_s, self.renewed_s[session]) + LEASE_S <= self.now_s
            }  # fmt: skip
            assert set(expired.get(name, ())) == due
            seen.fail(due, MAX_ATTEMPTS[name], suspect=True)

    @rule(session=st.sampled_from(SESSIONS))
    def renew(self, session: bytes) -> None:
        self.delivery.renew(session, self.now_s)
        self.renewed_s[session] = self.now_s

    @rule(session=st.sampled_from(SESSIONS))
    def lose_session(self, session: bytes) -> None:
        self.delivery.drop_session(session, self.now_s)
        self.renewed_s[session] = -1e9
        for name, seen in self.seen.items():
            held = {one for one, (holder, _) in seen.holders.items() if holder == session}
            seen.fail(held, MAX_ATTEMPTS[name], suspect=True)

    # -- an administrator -----------------------------------------------------------------------------------------

    def key_of(self, name: str, message_id: int) -> int:
        return message_id if GROUPS[name] else self.seq_of(message_id)

    @rule(name=st.sampled_from(list(GROUPS)), data=st.data())
    def seek(self, name: str, data: st.DataObject) -> None:
        window = self.delivery.window
        place = data.draw(st.integers(1, (window.id_max if GROUPS[name] else window.head_seq) + 1))
        seen, group = self.seen[name], self.group(name)
        holders = dict(seen.holders)
        assert group.seek(place) == len(holders)
        for one, (session, _) in holders.items():
            assert group.cursor.ack(session, [(one, one)]) == [one], "a late acknowledgement"
        again = {one for one in self.index.visible() if self.key_of(name, one) >= place}
        before = {one for one in self.handed_in() if self.key_of(name, one) < place}
        for done in (seen.acked, seen.dead, seen.skipped):
            done -= again
        for known in (seen.holders, seen.failed):
            known.clear()
        seen.suspects.clear()
        seen.excused = (seen.excused | again) - before
        seen.skipped |= before
        seen.last_new = place - 1

    @precondition(lambda self: any(seen.dead for seen in self.seen.values()))
    @rule(name=st.sampled_from(["o2", "a1"]), requeue=st.booleans(), everything=st.booleans(), data=st.data())
    def settle_dead_letters(self, name: str, requeue: bool, everything: bool, data: st.DataObject) -> None:
        seen, group = self.seen[name], self.group(name)
        wanted = sorted(seen.dead)
        if not everything and wanted:
            wanted = data.draw(st.lists(st.sampled_from(wanted), unique=True))
        count = (revive if requeue else drop)(group, wanted, everything=everything)
        if isinstance(count, NeedEntries):
            group.add_entries(count.ids, [row for row in self.index.rows if row[0] in count.ids])
            count = revive(group, wanted, everything=everything)
        assert count == len(wanted)
        seen.dead -= set(wanted)
        if requeue:
            seen.excused |= set(wanted)
            seen.skipped -= set(wanted)

    @rule(name=st.sampled_from(list(GROUPS)))
    def delete_group(self, name: str) -> None:
        """A group of the same name begins anew; what the old one was asked to load may still come."""
        del self.delivery.groups[name]
        self.seen[name] = Seen(loads=self.seen[name].loads)
        self.group(name)

    # -- death of the core ----------------------------------------------------------------------------------------

    @rule()
    def store(self) -> None:
        for name, state in self.delivery.snapshot().items():
            seen = self.seen[name]
            seen.stored, seen.stored_dead = state, dict(self.group(name).cursor.dead.keys)
            seen.when_stored = set(seen.acked), dict(seen.failed), set(seen.dead), set(seen.skipped)

    @rule(low=st.integers(1, 60), old_acks=st.booleans(), newer=st.booleans(), stored=st.booleans())
    def restart(self, low: int, old_acks: bool, newer: bool, stored: bool) -> None:
        """A new core begins with what was stored; acks since then are lost, workers may repeat theirs."""
        if stored:
            self.store()
        if newer:
            self.tailed = len(self.index.rows)  # committed while no core was there
        low = min(low, self.delivery.window.settled_below)
        rows = sorted((row for row in self.index.rows[: self.tailed] if row[0] >= low), key=lambda row: row[0])
        settled = self.delivery.window.settled_below
        id_max = max([self.delivery.window.id_max, *(self.handed_in() if newer else ())])
        self.delivery = StreamDelivery(low=low, head_seq=self.tailed)
        self.delivery.window.load(rows)
        self.delivery.window.set_watermark(settled)
        self.delivery.window.id_max = id_max
        self.restored = True
        self.renewed_s = dict.fromkeys(SESSIONS, -1e9)
        for name, seen in self.seen.items():
            seen.loads.clear()
            holders, seen.holders = seen.holders, {}
            acked, failed, dead, skipped = seen.when_stored
            seen.excused |= set(seen.delivered) - acked
            seen.acked, seen.failed, seen.dead, seen.skipped = set(acked), dict(failed), set(dead), set(skipped)
            seen.suspects.clear()
            seen.last_new = 0
            group = self.group(name)
            for one, (session, _) in holders.items() if old_acks and seen.stored is not None else ():
                assert group.cursor.ack(session, [(one, one)]) == []
                if seen.stored is not None and self.seq_of(one) <= seen.stored.seen_seq:
                    seen.acked.add(one)
                    seen.excused.discard(one)

    def seq_of(self, message_id: int) -> int:
        return int(max(row[1] for row in self.index.visible()[message_id]))

    # -- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def acked_ids_are_done_in_the_state(self) -> None:
        for name, seen in self.seen.items():
            if name not in self.delivery.groups or not GROUPS[name]:
                continue
            floor, done = self.group(name).cursor._durable()
            held = RangeSet([(1, floor), *done])
            assert all(one in held for one in seen.acked - seen.excused)
            assert not any(one in held for one in seen.holders)

    @invariant()
    def dead_letters_are_those_of_the_model(self) -> None:
        for name, group in self.delivery.groups.items():
            assert group.cursor.dead.keys.keys() == self.seen[name].dead

    def teardown(self) -> None:
        """Let everything arrive and be read: every group gets every message at least once."""
        for queue in self.queues:
            for unit in queue:
                self.index.put(unit)
            queue.clear()
        self.tail(len(self.index.rows))
        self.delivery.window.finish(self.next_id - 1)
        self.delivery.window.set_watermark(self.next_id)
        self.time_passes(1000.0)
        for name, seen in self.seen.items():
            for _ in range(10_000):
                answer = self.ask(name, b"s1", 50)
                while seen.loads:
                    self.hand_in_load(name, False)
                if isinstance(answer, Granted):
                    self.ack(name, b"s1", 1)
                elif isinstance(answer, StreamFinished):
                    break
                assert not isinstance(answer, (Again, NothingYet)), "never comes to the end"
            else:
                pytest.fail("never comes to the end")
            assert set(self.index.visible()) <= set(seen.delivered) | seen.skipped


TestDelivery = DeliveryMachine.TestCase
TestDelivery.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
