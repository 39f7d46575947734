"""A simulated detector: sends the frames of a pool at a rate, with faults on request."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from asapo_produce.detectors.faults import Faults, Kind, Run
from asapo_produce.detectors.frames import BLOCK_BYTES, FramePool, largest_divisor
from asapo_produce.detectors.ledger import Ledger
from asapo_produce.detectors.pacing import Pacer
from asapo_produce.detectors.sink import NullSink, Sink

FIRST_TRAIN: Final = 10_000
"""Train id of the first train; real ones are of the order of 10^9."""
ENDLESS: Final = 2**62
CONFLICT_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What to send."""

    stream: str = "default"
    n_frames: int = 0
    """Ids 1 to this; 0 goes on until it is stopped."""
    rate_hz: float = 0.0
    """Frames per second, skipped ones included; 0 is as fast as possible."""
    pulses: int = 1
    """Frames of one train: they are due together, and carry train_id and pulse_id; 1 for no trains."""
    faults: Faults = field(default_factory=Faults)


@dataclass(slots=True)
class Report:
    """What was done."""

    fates: Counter[str] = field(default_factory=Counter)
    """`Kind` to number of messages or ids."""
    reordered: int = 0
    """Ids sent after a higher one."""
    highest: int = 0
    """Highest id sent."""


def block_of(pulses: int, frame_bytes: int) -> int:
    """Return how many frames to send in one call: a whole train, or an equal part of one that is large."""
    return largest_divisor(pulses, BLOCK_BYTES // max(1, frame_bytes))


class Simulator:
    """Sends one stream. `sink` is a Producer, `pool` was made with `block_of` frames a block."""

    def __init__(self, sink: Sink, pool: FramePool, simulation: Simulation, *, ledger: Ledger, pacer: Pacer) -> None:
        self._sink = sink
        self._pool = pool
        self._what = simulation
        self._ledger = ledger
        self._pacer = pacer
        self._last: Any = None
        self.report = Report()

    def run(self, *, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Send everything; outcomes come to the ledger."""
        what, ledger = self._what, self._ledger
        send = {
            Kind.SEND: self._send,
            Kind.SKIP: self._skip,
            Kind.REPEAT: self._repeat,
            Kind.CONFLICT: self._conflict,
        }
        for run in self.runs():
            if what.rate_hz:
                self._pacer.wait_until(run.tick // what.pulses * what.pulses / what.rate_hz)
            self.report.fates[run.kind] += run.n
            send[run.kind](run)
            if on_progress is not None:
                on_progress(ledger.sent, ledger.nbytes)

    def runs(self) -> Iterable[Run]:
        """Yield what will be done."""
        return self._what.faults.runs(self._what.n_frames or ENDLESS, self._pool.block)

    def _send(self, run: Run) -> None:
        report = self.report
        if run.first < report.highest:
            report.reordered += run.n
        report.highest = max(report.highest, run.first + run.n - 1)
        if run.n == 1:
            self._last = self._one(run.first, self._pool.frame(run.first))
            return
        ids = range(run.first, run.first + run.n)
        frames = self._pool.frames(run.first, run.n)
        settled = self._ledger.expect(run.n, frames.nbytes)
        metas = [self.meta(i) for i in ids]
        self._last = self._sink.send_batch(frames, ids=ids, metas=metas, stream=self._what.stream, callback=settled)

    def _skip(self, run: Run) -> None:
        """Send nothing."""

    def _repeat(self, run: Run) -> None:
        self._one(run.first, self._pool.frame(run.first))

    def _conflict(self, run: Run) -> None:
        # With several receivers the later of two could win; only the first is what the pool says.
        self._last.exception(CONFLICT_WAIT_S)
        self._one(run.first, self._pool.other_frame(run.first))

    def _one(self, message_id: int, frame: Any) -> Any:
        settled = self._ledger.expect(1, frame.nbytes)
        return self._sink.send(
            frame, id=message_id, meta=self.meta(message_id), stream=self._what.stream, callback=settled
        )

    def meta(self, message_id: int) -> str:
        """Return the metadata of a message."""
        pulses = self._what.pulses
        if pulses == 1:
            return self._pool.meta(message_id)
        train, pulse = divmod(message_id - 1, pulses)
        return self._pool.meta(message_id, f'"train_id":{FIRST_TRAIN + train},"pulse_id":{pulse},')


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How fast frames can be made when nobody takes them."""

    frames_per_s: float
    bytes_per_s: float
    """Bytes named per second; they are prepared ones, not made anew."""


class _TimeUp(Exception):  # noqa: N818 - not an error
    """Ends a measurement."""


def measure_ceiling(
    pool: FramePool, simulation: Simulation, *, for_s: float, clock: Callable[[], float] = time.perf_counter
) -> Ceiling:
    """Run the same work without a receiver and without waiting, and return its rate."""
    endless = Simulation(stream=simulation.stream, pulses=simulation.pulses, faults=simulation.faults)
    ledger = Ledger(clock=clock)
    simulator = Simulator(NullSink(), pool, endless, ledger=ledger, pacer=Pacer())
    began_s = clock()

    def stop_in_time(frames: int, nbytes: int) -> None:
        if clock() - began_s >= for_s:
            raise _TimeUp

    with contextlib.suppress(_TimeUp):
        simulator.run(on_progress=stop_in_time)
    elapsed_s = clock() - began_s
    return Ceiling(ledger.sent / elapsed_s, ledger.nbytes / elapsed_s)
