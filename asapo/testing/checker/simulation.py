"""Seeded random schedules over the model: producers, workers, readers, kills, retries, lost power; then the checker.

>>> check(simulate(1, Model)).violations
[]
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterator
from typing import Final

from asapo.testing.checker.book import Book
from asapo.testing.checker.content import Content, Weights
from asapo.testing.checker.evidence import (
    SURVIVES_KILLS,
    SURVIVES_POWER_LOSS,
    Evidence,
    Kill,
    Probe,
    Resource,
    ServerLedger,
    Way,
)
from asapo.testing.checker.invariants import check
from asapo.testing.checker.model import SAVE_TICKS, Answer, Frame, Model
from asapo.testing.checker.model_readers import Asker, GroupReader, last_of, offline, take_digest

MODEL_SIZES: Final[Weights] = ((0, 1), (1, 1), (40, 4), (300, 2), (5_000, 1))
"""Nothing, a byte, small ones, and one above the model's segment size."""
TICK_NS: Final = 1_000_000_000
MESSAGES: Final = 30
PATIENCE: Final = 4
"""Rounds of resending after which a producer of the model gives up."""

INGEST_ONLY: Final = frozenset({"resend", "conflict", "read", "look", "kill_receiver", "kill_core", "kill_worker"})
"""Leave these out for long runs: what they look through grows with the run."""

WEIGHTS: Final = {
    "send": 10, "work": 60, "lose_an_answer": 2, "resend": 2, "conflict": 2, "read": 24, "look": 3,
    "kill_receiver": 1, "kill_core": 1, "kill_worker": 1, "lose_power": 1, "heal": 8,
}  # fmt: skip


class Simulation:
    """One run. Everything it does follows from its seed."""

    def __init__(
        self, seed: int, model: type[Model], *, messages: int, sizes: Weights, power: bool, without: Collection[str]
    ) -> None:
        self.chance = random.Random(seed)
        self.model = model(self.chance)
        self.content = Content(seed, "model", sizes)
        self.book = Book(self.content)
        self.to_send = itertools.islice(self.content.ids(), messages)
        self.next_id: int | None = next(self.to_send, None)
        self.outstanding: dict[int, Frame] = {}
        self.conflicts: dict[int, Frame] = {}
        self.power = power
        self.weights = {name: weight for name, weight in WEIGHTS.items() if name not in without}
        self.kills: list[Kill] = []
        self.probes: list[Probe] = []
        self.before = self.model.resources()
        clock = self.now_ns
        self.readers = [
            GroupReader(self.model, clock, Way.ORDERED, "order", "reader"),
            GroupReader(self.model, clock, Way.WORKER, "work", "w1"),
            GroupReader(self.model, clock, Way.WORKER, "work", "w2"),
        ]
        self.asker = Asker(self.model, clock)
        self.lasts = last_of(self.model, clock)

    def now_ns(self) -> int:
        """Return the model's time."""
        return self.model.tick * TICK_NS

    # -- the producer -----------------------------------------------------------------------------------------------

    def send(self) -> None:
        """Send the next frame."""
        message_id = self.next_id
        if message_id is None:
            return
        level = self.chance.choice(("written", "synced")) if self.power else "written"
        self.outstanding[message_id] = self.frame(message_id, level)
        self.next_id = next(self.to_send, None)
        self.mark()
        self.model.take(self.outstanding[message_id])

    def frame(self, message_id: int, level: str, number: int = 0) -> Frame:
        """Make a frame and write it down."""
        payload = self.content.payload(message_id, number)
        self.book.invoke(message_id, take_digest(payload), len(payload), self.now_ns())
        return Frame(message_id, payload, message_id, level, number)

    def mark(self) -> None:
        """Tell the services below which id everything is settled."""
        ahead = self.next_id if self.next_id is not None else 2**62
        self.model.closed_below = min(self.outstanding, default=ahead)

    def work(self) -> None:
        """Let the receiver do a step."""
        answer = self.model.work()
        if answer is not None:
            self.take(answer)

    def lose_an_answer(self) -> None:
        """Let the receiver do a step and the producer not hear of it: it sends again some time."""
        self.model.work()

    def take(self, answer: Answer) -> None:
        """Take an outcome; what was answered before, or lost with its link, is nobody's."""
        waiting = self.conflicts if answer.frame.number else self.outstanding
        if waiting.get(answer.frame.id) is not answer.frame:
            return
        del waiting[answer.frame.id]
        kind, detail = ("FAIL", answer.error) if answer.error else ("ACK", answer.frame.level)
        self.book.settle(answer.frame.id, kind, detail, self.now_ns())
        self.mark()

    def resend(self) -> None:
        """Send again all that has no outcome, as over a new link."""
        for frame in self.outstanding.values():
            self.model.take(frame)

    def conflict(self) -> None:
        """Send other content under an id that is acknowledged: it must be refused."""
        acked = [one for one in self.book.acked(SURVIVES_KILLS) if len(self.book.sent[one]) == 1]
        if acked and not self.power:  # at level written a power loss may take the first one
            message_id = self.chance.choice(acked)
            self.conflicts[message_id] = self.frame(message_id, "written", 1)
            self.model.take(self.conflicts[message_id])

    # -- readers and faults -----------------------------------------------------------------------------------------

    def read(self) -> None:
        """Let one reader of a group take or acknowledge something."""
        if self.model.core_up:
            self.chance.choice(self.readers).turn(self.chance)

    def look(self) -> None:
        """Ask for an id, and for the last one."""
        if not self.model.core_up:
            return
        ahead = self.next_id or max(self.book.sent, default=1)
        self.asker.ask(self.chance.randint(1, ahead))
        self.lasts.look()

    def kill_receiver(self) -> None:
        """End the receiver."""
        self.kills.append(Kill("receiver", self.now_ns()))
        self.model.kill_receiver()

    def kill_core(self) -> None:
        """End the core; its readers know nothing of that but that it does not answer."""
        self.kills.append(Kill("core", self.now_ns()))
        self.model.kill_core()

    def kill_worker(self) -> None:
        """End a worker with what it holds; another one takes its place."""
        worker = self.chance.choice(self.readers[1:])
        worker.held.clear()
        if self.model.core_up:
            self.model.drop_worker(worker.name)

    def lose_power(self) -> None:
        """End everything."""
        if self.power:
            self.kills.append(Kill("power", self.now_ns()))
            self.model.lose_power()
            self.lasts.forget()

    def heal(self) -> None:
        """Start again what is down."""
        if not self.model.receiver_up:
            self.model.restart_receiver()
            self.resend()
        if not self.model.core_up:
            self.model.restart_core()

    # -- a run ------------------------------------------------------------------------------------------------------

    def run(self) -> Evidence:
        """Do random things until all is sent, then heal, finish, and read everything."""
        actions: list[Callable[[], None]] = [getattr(self, name) for name in self.weights]
        totals = list(itertools.accumulate(self.weights.values()))
        while self.next_id is not None:
            self.model.pass_time()
            self.chance.choices(actions, cum_weights=totals)[0]()
        self.settle()
        return self.evidence()

    def settle(self) -> None:
        """Heal for good and get every outcome."""
        self.heal()
        rounds = 0
        while (self.outstanding or self.conflicts) and rounds < PATIENCE:
            rounds += 1
            self.resend()
            for frame in self.conflicts.values():
                self.model.take(frame)
            for _ in range(len(self.model.under_way) * len(self.model.STEPS)):
                self.model.pass_time()
                self.work()
        left = bool(self.outstanding or self.conflicts)
        self.probes.append(Probe("every frame has its outcome", PATIENCE, None if left else float(rounds)))
        self.model.finished = True
        if self.model.open:
            self.model.close_file(self.model.open)
        for reader in self.readers:
            self.probes.append(reader.drain())

    def evidence(self) -> Evidence:
        """Read everything anew, and put together what was seen."""
        fresh = GroupReader(self.model, self.now_ns, Way.ORDERED, "fresh", "fresh", final=True)
        fresh.drain()
        everything = Asker(self.model, self.now_ns, final=True)
        for message_id in self.book.sent:
            everything.ask(message_id)
        self.lasts.look()
        after = self.model.resources()
        return Evidence(
            self.book,
            (
                *(reader.reading() for reader in (*self.readers, fresh, self.asker, everything)),
                offline(self.model, self.now_ns()),
                self.lasts.reading(final=True),
            ),
            ledger=ServerLedger(
                self.model.counted[0], self.model.counted[1], max((row.id for row in self.model.rows), default=0)
            ),
            kills=tuple(self.kills),
            probes=tuple(self.probes),
            resources=tuple(Resource(name, number, after[name]) for name, number in self.before.items()),
            survivors=SURVIVES_POWER_LOSS if self.power else SURVIVES_KILLS,
            forgotten_acks_s=SAVE_TICKS,
        )


def simulate(
    seed: int,
    model: type[Model] = Model,
    *,
    messages: int = MESSAGES,
    sizes: Weights = MODEL_SIZES,
    power: bool | None = None,
    without: Collection[str] = (),
) -> Evidence:
    """Run one schedule and return what was seen; in every fourth one the power may fail, unless `power` says."""
    lossy = seed % 4 == 0 if power is None else power
    return Simulation(seed, model, messages=messages, sizes=sizes, power=lossy, without=without).run()


def simulations(seeds: range, model: type[Model] = Model) -> Iterator[tuple[int, list[str]]]:
    """Yield (seed, what was violated as text) of every run that was not clean."""
    for seed in seeds:
        report = check(simulate(seed, model))
        if report.violations:
            yield seed, list(map(str, report.violations))
