"""Random lives of groups that take datasets before they are complete, or chunks, against a plain model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asapo.delivery.group import Group
from asapo.delivery.leases import GroupState
from asapo.delivery.needs import Again, Granted, NeedBacklog, NeedUnseen
from asapo.delivery.ranges import RangeSet
from asapo.delivery.rows import RowTuple, row_id, row_seq
from asapo.delivery.stream import StreamDelivery
from asapo.errors import NothingYet, StreamFinished
from tests.property.test_delivery_model import make_row

LEASE_S: Final = 10.0
SIZE: Final = 3
GROUPS: Final[dict[str, dict[str, Any]]] = {
    "parts": {"min_parts": 2},
    "time": {"dataset_timeout_s": 5.0},
    "both": {"min_parts": 2, "dataset_timeout_s": 5.0},
    "chunks": {"aligned": 3},
    "chunks of parts": {"aligned": 3, "min_parts": 1},
}
SESSIONS: Final = [b"s1", b"s2"]


@dataclass
class Seen:
    """What the model knows of one group."""

    given: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)
    """Id to the rows of its newest delivery."""
    chunks: set[tuple[int, ...]] = field(default_factory=set)
    """Since the start of the present core."""
    acked: set[int] = field(default_factory=set)
    partly: set[int] = field(default_factory=set)
    """Ids that were acknowledged by the session that holds them, whether their chunk is done or not."""
    holders: dict[int, bytes] = field(default_factory=dict)
    excused: set[int] = field(default_factory=set)
    last_new: int = 0
    stored: GroupState | None = None
    acked_when_stored: set[int] = field(default_factory=set)
    loads: list[tuple[Any, list[RowTuple], int]] = field(default_factory=list)


class ModesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[RowTuple] = []
        self.tailed = 0
        self.now_s = 100.0
        self.delivery = StreamDelivery()
        self.seen = {name: Seen() for name in GROUPS}
        self.coming: list[tuple[int, int, int]] = []
        """(id, substream, dataset size) on their way."""
        self.next_id = 1
        self.datasets = True
        self.first_s: dict[int, float] = {}
        """When the first part of a dataset was handed in to the present core."""
        self.restarted = False
        self.lied = False

    @initialize(datasets=st.booleans())
    def choose(self, datasets: bool) -> None:
        self.datasets = datasets
        for name in GROUPS:
            self.group(name)

    def group(self, name: str) -> Group:
        state = self.seen[name].stored if self.restarted else None
        return self.delivery.open_group(name, lease_s=LEASE_S, state=state, **GROUPS[name])

    # -- what comes -----------------------------------------------------------------------------------------------

    @rule(gaps=st.lists(st.integers(1, 2), min_size=1, max_size=6), lost=st.lists(st.booleans(), max_size=18))
    def send(self, gaps: list[int], lost: list[bool]) -> None:
        """Messages, or datasets of which some parts never come."""
        for gap in gaps:
            parts = range(1, SIZE + 1) if self.datasets else (0,)
            sent = [part for part in parts if not self.datasets or not (lost and lost.pop())]
            self.coming += [(self.next_id, part, SIZE if self.datasets else 0) for part in sent]
            self.next_id += gap

    @precondition(lambda self: self.coming)
    @rule(picks=st.lists(st.integers(0, 8), min_size=1, max_size=12))
    def commit(self, picks: list[int]) -> None:
        for pick in picks:
            if self.coming:
                one, part, size = self.coming.pop(min(pick, len(self.coming) - 1))
                self.rows.append(make_row(one, len(self.rows) + 1, part, size))

    @rule(number=st.integers(1, 20))
    def tail(self, number: int) -> None:
        new = self.rows[self.tailed : self.tailed + number]
        for row in new:
            self.first_s.setdefault(row_id(row), self.now_s)
        self.delivery.add(new, self.now_s)
        self.tailed += len(new)
        orphans = set(self.delivery.window.orphans)
        if orphans:
            self.delivery.add_parts([row for row in self.rows[: self.tailed] if row_id(row) in orphans], self.now_s)

    @rule(honest=st.sampled_from([True, True, True, False]))
    def move_watermark(self, honest: bool) -> None:
        missing = [one for one, _, _ in self.coming] + [row_id(row) for row in self.rows[self.tailed :]]
        bound = min(missing, default=self.next_id) if honest else self.next_id
        self.lied = self.lied or bound > min(missing, default=self.next_id)
        self.delivery.window.set_watermark(bound)

    @rule(limit=st.integers(0, 30))
    def prune(self, limit: int) -> None:
        self.delivery.window.prune(limit_rows=limit, limit_bytes=10**9)

    @rule(by=st.floats(0.5, 7))
    def time_passes(self, by: float) -> None:
        self.now_s += by
        for name, expired in self.delivery.expire(self.now_s).items():
            seen = self.seen[name]
            for first in expired:
                chunk = next((one for one in seen.chunks if one[0] == first), (first,))
                for one in chunk:
                    seen.holders.pop(one, None)
                seen.excused.update(chunk)

    @rule(
        n=st.integers(1, 8), at_once=st.integers(1, 6), lost=st.lists(st.booleans(), max_size=8),
        seed=st.integers(0, 99),
        accidents=st.lists(st.sampled_from(["back", "nack", "lose", "restart", "part", "wait"]), max_size=4),
    )  # fmt: skip
    def flow(self, n: int, at_once: int, lost: list[bool], seed: int, accidents: list[str]) -> None:
        """The usual life: what comes is read and acknowledged, bit by bit, with accidents in between."""
        self.send([1 + (seed + one) % 2 for one in range(n)], lost)
        while self.coming:
            self.commit([seed % 3] * at_once)
            self.tail(at_once)
            self.move_watermark(True)
            accident = accidents.pop() if accidents else ""
            if accident == "restart":
                self.store()
                self.restart(1 + seed % 40)
            elif accident == "wait":
                self.time_passes(6.0)
            for name in GROUPS:
                session = SESSIONS[seed % 2]
                self.ask(name, session, n)
                self.hand_in(name)
                if accident == "lose":
                    self.lose_session(session)
                elif accident in ("back", "nack"):
                    self.hand_back(name, session, accident == "back")
                self.ack(name, session, 2 if accident == "part" else 1)

    # -- the groups -----------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(list(GROUPS)), session=st.sampled_from(SESSIONS), n=st.integers(1, 9))
    def get_next(self, name: str, session: bytes, n: int) -> None:
        self.ask(name, session, n)

    def ask(self, name: str, session: bytes, n: int) -> object:
        answer = self.group(name).next_rows(session, n, self.now_s)
        if isinstance(answer, (NeedBacklog, NeedUnseen)):
            self.load(name, answer)
        elif isinstance(answer, Granted):
            self.check(name, session, answer)
            if answer.need is not None:
                self.load(name, answer.need)
        return answer

    def load(self, name: str, need: NeedBacklog | NeedUnseen) -> None:
        """The index is read now, datasets with all parts that are there; the answer is handed in later."""
        by_id: dict[int, list[RowTuple]] = {}
        for row in self.rows:
            by_id.setdefault(row_id(row), []).append(row)
        if isinstance(need, NeedBacklog):
            ids = [one for one in sorted(by_id) if need.from_key <= one < need.below]
            covered = ids[4] + 1 if len(ids) > 5 else need.below
            found = [row for one in ids if one < covered for row in by_id[one]]
        else:
            covered = need.upto_seq
            new = {row_id(row) for row in self.rows if need.after_seq < row_seq(row) <= need.upto_seq}
            found = [row for one in new if one < need.below_id for row in by_id[one]]
        self.seen[name].loads.append((need, found, covered))

    @rule(name=st.sampled_from(list(GROUPS)))
    def hand_in(self, name: str) -> None:
        if self.seen[name].loads:
            need, rows, covered = self.seen[name].loads.pop(0)
            if isinstance(need, NeedBacklog):
                self.group(name).add_backlog(rows, from_key=need.from_key, covered_below=covered)
            else:
                self.group(name).add_unseen(rows, covered_seq=covered)

    def check(self, name: str, session: bytes, granted: Granted) -> None:
        seen, terms = self.seen[name], GROUPS[name]
        new = [one for one in granted.ids if one not in seen.given]
        for one in granted.ids:
            assert one not in seen.holders, "two live leases"
            assert one not in seen.given or one in seen.excused, "given twice without a reason"
            seen.excused.discard(one)
            seen.holders[one] = session
            seen.partly.discard(one)
            rows = [row for row in granted.rows if row_id(row) == one]
            self.check_parts(terms, one, rows)
            seen.given[one] = rows
        for one in new:
            if one not in granted.late:
                assert one > seen.last_new, "goes back without the flag"
                seen.last_new = one
        if "aligned" in terms:
            self.check_chunk(seen, terms["aligned"], granted)

    def check_parts(self, terms: dict[str, Any], one: int, rows: list[RowTuple]) -> None:
        assert set(rows) <= set(self.rows), "rows that are nobody's"
        assert len(set(rows)) == len(rows)
        if not self.datasets or len(rows) == SIZE:
            return
        enough = 0 < terms.get("min_parts", 0) <= len(rows)
        limit_s = terms.get("dataset_timeout_s", 0.0)
        over = limit_s and self.now_s >= self.first_s.get(one, -1e9) + limit_s
        old = limit_s and one < self.delivery.window.aside.low
        assert enough or over or old or (limit_s and self.delivery.window.complete), "given before its time"

    def check_chunk(self, seen: Seen, size: int, granted: Granted) -> None:
        chunk = tuple(granted.ids)
        short = self.delivery.window.complete or chunk[0] in granted.late
        assert len(chunk) == size or (short and len(chunk) < size), "a chunk that is not whole"
        if chunk in seen.chunks:
            return
        assert not any(set(chunk) & set(other) for other in seen.chunks), "chunks that overlap"
        seen.chunks.add(chunk)

    @rule(name=st.sampled_from(list(GROUPS)), session=st.sampled_from(SESSIONS), share=st.integers(1, 2))
    def ack(self, name: str, session: bytes, share: int) -> None:
        seen = self.seen[name]
        mine = sorted(one for one, holder in seen.holders.items() if holder == session)[::share]
        assert self.group(name).cursor.ack(session, list(RangeSet((one, one) for one in mine))) == []
        if "aligned" in GROUPS[name]:
            seen.partly.update(mine)
            chunks = [chunk for chunk in seen.chunks if all(seen.holders.get(one) == session for one in chunk)]
            mine = [one for chunk in chunks if seen.partly.issuperset(chunk) for one in chunk]
        for one in mine:
            del seen.holders[one]
        seen.acked.update(mine)

    @rule(name=st.sampled_from(list(GROUPS)), session=st.sampled_from(SESSIONS), back=st.booleans())
    def hand_back(self, name: str, session: bytes, back: bool) -> None:
        seen, cursor = self.seen[name], self.group(name).cursor
        mine = [one for one, holder in seen.holders.items() if holder == session]
        some = mine[: len(mine) // 2]
        assert (cursor.give_back(session, some) if back else cursor.nack(session, some, 0.0, self.now_s)) == []
        if "aligned" in GROUPS[name]:
            some = [one for chunk in seen.chunks if set(chunk) & set(some) for one in chunk]
        for one in some:
            seen.holders.pop(one, None)
        seen.excused.update(some)

    @rule(session=st.sampled_from(SESSIONS))
    def lose_session(self, session: bytes) -> None:
        self.delivery.drop_session(session)
        for seen in self.seen.values():
            held = [one for one, holder in seen.holders.items() if holder == session]
            for one in held:
                del seen.holders[one]
            seen.excused.update(held)

    # -- death of the core ----------------------------------------------------------------------------------------

    @rule()
    def store(self) -> None:
        for name, state in self.delivery.snapshot().items():
            self.seen[name].stored = state
            self.seen[name].acked_when_stored = set(self.seen[name].acked)

    @rule(low=st.integers(1, 40))
    def restart(self, low: int) -> None:
        """A new core begins with what was stored; acknowledgements since then are lost."""
        window = self.delivery.window
        low = min(low, window.settled_below)
        watermark, id_max = window.watermark, window.id_max
        rows = sorted((row for row in self.rows[: self.tailed] if row_id(row) >= low), key=row_id)
        self.delivery = StreamDelivery(low=low, head_seq=self.tailed)
        self.delivery.window.load(rows, self.now_s)
        self.delivery.window.set_watermark(watermark)
        self.delivery.window.id_max = id_max
        self.restarted = True
        self.first_s = {row_id(row): self.now_s for row in rows}
        for name, seen in self.seen.items():
            seen.loads.clear()
            seen.holders.clear()
            seen.chunks.clear()
            seen.excused = set(seen.given) - seen.acked_when_stored
            seen.acked = set(seen.acked_when_stored)
            seen.last_new = 0
            self.group(name)

    # -- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def what_is_acknowledged_is_done_and_what_is_held_is_not(self) -> None:
        for name, seen in self.seen.items():
            if name in self.delivery.groups:
                floor, ranges = self.group(name).cursor._durable()
                done = RangeSet([(1, floor), *ranges])
                assert all(one in done for one in seen.acked - seen.excused)
                assert not any(one in done for one in seen.holders)

    def teardown(self) -> None:
        """Let everything arrive and be read: every group gets all that its rule promises."""
        self.commit([0] * len(self.coming))
        self.tail(len(self.rows) + 1)
        self.delivery.window.finish(self.next_id - 1)
        self.delivery.window.set_watermark(self.next_id)
        self.time_passes(1000.0)
        have = Counter(map(row_id, self.rows))
        for name, seen in self.seen.items():
            for _ in range(10_000):
                answer = self.ask(name, b"s1", 50)
                while seen.loads:
                    self.hand_in(name)
                if isinstance(answer, Granted):
                    self.ack(name, b"s1", 1)
                elif isinstance(answer, StreamFinished):
                    break
                assert not isinstance(answer, (Again, NothingYet)), "never comes to the end"
            else:
                pytest.fail("never comes to the end")
            enough = SIZE if self.datasets else 1
            if GROUPS[name].get("dataset_timeout_s"):
                enough = 1
            elif GROUPS[name].get("min_parts"):
                enough = min(enough, GROUPS[name]["min_parts"])
            owed = {one for one, n in have.items() if n >= enough}
            if not self.lied:  # what comes behind a wrong mark while no core looks, and is not complete, is not given
                assert owed == set(seen.given)
            assert {one for one, n in have.items() if n >= (SIZE if self.datasets else 1)} <= set(seen.given)


TestModes = ModesMachine.TestCase
TestModes.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
