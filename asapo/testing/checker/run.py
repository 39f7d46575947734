"""A check on real services: a producer and readers as processes, then final readers, then the verdict.

>>> with Run(url, folder, Content(1, "s"), messages=1000) as run:        # doctest: +SKIP
...     run.start()
...     run.wait_acked(200)
...     ...                                                              # kill something
...     run.finish()
...     check(run.evidence()).require()
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from asapo import Consumer
from asapo.errors import AsapoError, DeadlineExceeded
from asapo.models import StreamRef
from asapo.testing.checker.book import Book, book_path, read_book
from asapo.testing.checker.content import Content
from asapo.testing.checker.evidence import Evidence, Kill, Probe, Reading, Resource, ServerLedger, Way
from asapo.testing.checker.offline import read_offline
from asapo.testing.checker.readers import Reader, ReadSettings
from asapo.testing.checker.reading_log import read_log
from asapo.testing.checker.sender import SendSettings

PRODUCER: Final = "producer"
LOOK_S: Final = 0.02
PATIENCE_S: Final = 120.0
COUNTED_S: Final = 5.0
"""How long the receivers' counters may be behind."""
TAKEN: Final = "asapo_receiver_messages_total"
REFUSED: Final = "asapo_receiver_refused_total"


class Run:
    """One stream, its producer, and its readers: an ordered one, workers, the last message, single ids.

    Parameters
    ----------
    url : str
        Address of the services.
    folder : path
        For the journal of the producer and the logs of the readers.
    content : Content
        What is sent; its stream must not exist.
    beamtime, source : str
        Where it is sent to.
    messages : int
        How many frames.
    workers : int
        Workers of one group.
    patience_s : float, unit s
        How long the services may need for whatever it is, kills included.
    lease_s : float, unit s
        Lease of the readers; what a killed one held comes again after that, if not before.
    send : keyword arguments
        Further fields of `SendSettings`.
    """

    def __init__(
        self, url: str, folder: str | Path, content: Content, *, messages: int, beamtime: str = "asapo-selfcheck",
        source: str = "checker", workers: int = 2, patience_s: float = PATIENCE_S, lease_s: float = 60.0, **send: Any,
    ) -> None:  # fmt: skip
        self.url = url
        self.folder = Path(folder)
        self.content = content
        self.ref = StreamRef(beamtime, source, content.stream)
        self.patience_s = patience_s
        self._lease_s = lease_s
        self.kills: list[Kill] = []
        self.probes: list[Probe] = []
        self.resources: list[Resource] = []
        self._send = SendSettings(
            url, beamtime, source, str(self.folder), messages, **{"patience_s": patience_s, **send}
        )
        self._readers = [self._reader(Way.ORDERED, "ordered", "ordered")]
        self._readers += [self._reader(Way.WORKER, f"w{n + 1}", "work", access=("auto", "fetch")[n % 2])
                          for n in range(workers)]  # fmt: skip
        self._readers += [self._reader(Way.LAST, "last"), self._reader(Way.BY_ID, "ids", access="fetch")]
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._counted_before = (0, 0)

    def _reader(self, way: Way, name: str, group: str = "", **more: Any) -> ReadSettings:
        named = f"{group}-{self.content.stream}" if group else ""
        return ReadSettings(
            self.url, self.ref.beamtime, self.ref.source, self.ref.stream, str(self.folder / f"{name}.read"), way,
            name, named, **{"patience_s": self.patience_s, "lease_s": self._lease_s, "seed": self.content.seed, **more},
        )  # fmt: skip

    # -- processes --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start readers and producer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._counted_before = self._counters()
        for reader in self._readers:
            self._spawn(reader.name, "read", dataclasses.asdict(reader))
        self.start_producer()

    def start_producer(self) -> None:
        """Start the producer, or start it again after a kill: it sends what has no outcome."""
        self._spawn(PRODUCER, "send", {**dataclasses.asdict(self._send), "content": self.content.facts()})

    def _spawn(self, name: str, what: str, settings: dict[str, Any]) -> None:
        argv = [sys.executable, "-m", "asapo.testing.checker.programs", what, json.dumps(settings)]
        with open(self.folder / f"{name}.out", "a") as out:
            self._processes[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True)

    def kill(self, name: str) -> None:
        """End a program of ours by SIGKILL: `producer`, `ordered`, `w1`, ..."""
        self.note_kill("producer" if name == PRODUCER else "worker")
        self._processes[name].kill()
        self._processes[name].wait()

    def note_kill(self, component: str) -> None:
        """Note that the test is about to kill something: receiver, core, producer, worker or power."""
        self.kills.append(Kill(component, time.monotonic_ns()))

    def restart_reader(self, name: str) -> str:
        """Start another reader in the place of one that was killed; return its name."""
        reader = next(one for one in self._readers if one.name == name)
        number = len(self._readers)
        again = dataclasses.replace(reader, log=f"{reader.log}.{number}", name=f"{name.partition('.')[0]}.{number}")
        self._readers.append(again)
        self._spawn(again.name, "read", dataclasses.asdict(again))
        del self._processes[name]
        return again.name

    def acked(self) -> int:
        """Return how many acknowledgements the producer has written down."""
        path = book_path(self.folder, self.content.stream)
        return path.read_bytes().count(b"\nACK ") if path.exists() else 0

    def wait_acked(self, more: int) -> None:
        """Wait until `more` further frames are acknowledged, or the producer has ended.

        Raises
        ------
        DeadlineExceeded
            If they are not within `patience_s`.
        """
        wanted = self.acked() + more
        producer = self._processes[PRODUCER]
        self._wait(lambda: self.acked() >= wanted or producer.poll() is not None, f"{more} more acknowledgements")

    @property
    def sending(self) -> bool:
        """Whether the producer still has frames to send or to hear of."""
        return self.acked() < self._send.messages and self._processes[PRODUCER].poll() is None

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + self.patience_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise DeadlineExceeded(f"checker: no {what} within {self.patience_s:g} s", after_s=self.patience_s)
            time.sleep(LOOK_S)

    def timed(self, what: str, allowed_s: float, action: Callable[[], object]) -> None:
        """Do something that brings a service back, and wait for the next acknowledgement: a probe of I8."""
        began_s = time.monotonic()
        action()
        took_s: float | None
        try:
            self.wait_acked(1)
            took_s = time.monotonic() - began_s
        except DeadlineExceeded:
            took_s = None
        self.probes.append(Probe(what, allowed_s, took_s))

    def finish(self) -> None:
        """Wait until the stream is finished and every reader has come to its end; those who do not are violations.

        A long run may take its time: programs are ended when nothing has moved for twice `patience_s`.
        """
        allowed_s = 2 * self.patience_s
        longest_s, moved_s, before = 0.0, time.monotonic(), -1
        while any(process.poll() is None for process in self._processes.values()) and longest_s <= allowed_s:
            if (progress := self._progress()) != before:
                before, moved_s = progress, time.monotonic()
            longest_s = max(longest_s, time.monotonic() - moved_s)
            time.sleep(LOOK_S)
        for name, process in self._processes.items():
            if process.poll() is None:
                process.kill()
            took_s = longest_s if process.wait() == 0 else None
            self.probes.append(Probe(f"progress of program {name}, and its end", allowed_s, took_s))

    def _progress(self) -> int:
        """Return a number that grows as frames are acknowledged and as groups are given some.

        Those who ask again and again, whether there is something new or not, do not count.
        """
        groups = [Path(reader.log) for reader in self._readers if reader.group]
        paths = [book_path(self.folder, self.content.stream), *groups]
        return sum(path.stat().st_size for path in paths if path.exists())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    # -- evidence ---------------------------------------------------------------------------------------------------

    def evidence(self, *, tiers: Sequence[str | Path] = (), **more: Any) -> Evidence:
        """Read everything anew and return all that was seen.

        Parameters
        ----------
        tiers : paths
            Tiers that can be read here without services, each a folder of beamtimes; none leaves that reader out.
        more : fields of Evidence
            For example `survivors`, `forgotten_acks_s`.
        """
        path = book_path(self.folder, self.content.stream)
        book = read_book(path) if path.exists() else Book(self.content)
        for reader, ids in self._final_readers(book):
            try:
                Reader(reader).run(ids)
            except AsapoError as exc:
                self.probes.append(Probe(f"reader {reader.name} ends, but for {exc}", self.patience_s, None))
        logs = sorted(self.folder.glob("*.read*"))
        readings: list[Reading] = [read_log(path) for path in logs]
        if tiers:
            readings.append(_united([read_offline(tier, self.ref) for tier in tiers]))
        return Evidence(
            book, tuple(readings), ledger=self._ledger(book), kills=tuple(self.kills), probes=tuple(self.probes),
            resources=tuple(self.resources), **more,
        )  # fmt: skip

    def _final_readers(self, book: Book) -> list[tuple[ReadSettings, list[int]]]:
        return [
            (self._reader(Way.ORDERED, "fresh", f"fresh-{os.getpid()}", final=True, batch=100), []),
            (self._reader(Way.BY_ID, "all-ids", final=True, access="fetch"), sorted(book.sent)),
            (self._reader(Way.LAST, "last-of-all", final=True), []),
        ]

    def _consumer(self) -> Consumer:
        return Consumer(self.url, beamtime=self.ref.beamtime, source=self.ref.source, timeout_s=self.patience_s)

    def _ledger(self, book: Book) -> ServerLedger | None:
        try:
            with self._consumer() as consumer:
                info = consumer.stream_info(stream=self.ref.stream)
        except AsapoError:  # the readers have met it, too
            return None
        taken: int | None = None
        refused: int | None = None
        if not any(kill.component in ("receiver", "power") for kill in self.kills):
            failed = sum(one.outcome == "FAIL" for tries in book.sent.values() for one in tries)
            taken, refused = self._counted(info["n_messages"], failed)
        return ServerLedger(
            info["n_messages"], info["n_bytes"], info["id_max"], info["finished"], info["last_id"], taken, refused
        )

    def _counted(self, taken: int, refused: int) -> tuple[int, int]:
        """Return what receivers took and refused since the start; they tell it every second, so it may come later."""
        deadline_s = time.monotonic() + COUNTED_S
        while True:
            now = self._counters()
            found = now[0] - self._counted_before[0], now[1] - self._counted_before[1]
            if (found[0] >= taken and found[1] >= refused) or time.monotonic() > deadline_s:
                return found
            time.sleep(LOOK_S)

    def _counters(self) -> tuple[int, int]:
        """Return what all receivers together say that they took and refused; they tell the broker."""
        with self._consumer() as consumer:
            metrics = [each for one in consumer.receivers() for each in one["load"].get("metrics", ())]
        taken, refused = (sum(value for name, _, value in metrics if name == wanted) for wanted in (TAKEN, REFUSED))
        return int(taken), int(refused)


def _united(readings: list[Reading]) -> Reading:
    """Return one offline reading of several tiers: a frame lies on one of them."""
    first = readings[0]
    return dataclasses.replace(
        first,
        seen=tuple(one for reading in readings for one in reading.seen),
        errors=tuple(one for reading in readings for one in reading.errors),
    )
