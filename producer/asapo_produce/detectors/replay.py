"""Sends recordings again, at their own speed, at a given rate, or as fast as possible."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from asapo.errors import WrongInput
from asapo_produce.detectors.ledger import Ledger
from asapo_produce.detectors.pacing import Pacer
from asapo_produce.detectors.readers import Item, Recording, StreamEnd, StreamMeta
from asapo_produce.detectors.sink import Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """How to send."""

    stream: str = ""
    """Name of the stream; empty: as the recording says."""
    speed: float = 0.0
    """1 is as recorded, 2 twice as fast; 0 does not look at the times."""
    rate_hz: float = 0.0
    """Frames per second; 0 is as fast as possible."""
    loops: int = 1
    """How often to send everything; ids go on counting."""
    finish: bool = True
    """Whether streams are finished at the end."""
    timeout_s: float = 60.0
    """How long to wait at the end while not one acknowledgement comes."""

    def __post_init__(self) -> None:
        if self.speed and self.rate_hz:
            raise WrongInput(f"speed {self.speed} and rate {self.rate_hz} Hz: give one of them")
        if self.loops < 1 or self.speed < 0 or self.rate_hz < 0:
            raise WrongInput("loops, speed and rate: expected at least 1, at least 0 and at least 0")


@dataclass(slots=True)
class ReplayReport:
    """What was sent."""

    streams: dict[str, int] = field(default_factory=dict)
    """Stream to number of messages."""
    paced: bool = False
    """Whether times of the recording, or a rate, were kept."""


class Replay:
    """Sends recordings one after the other. `sink` is a Producer."""

    def __init__(self, sink: Sink, settings: ReplaySettings, *, ledger: Ledger, pacer: Pacer) -> None:
        self._sink = sink
        self._settings = settings
        self._ledger = ledger
        self._pacer = pacer
        self._highest: dict[tuple[str, int], int] = {}
        self._base: dict[tuple[str, int], int] = {}
        self._first_due_ns: int | None = None
        self._sent = 0
        self._loop_began_s = 0.0
        self.report = ReplayReport()

    def run(self, recordings: Sequence[Recording], *, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Send everything; outcomes come to the ledger."""
        for loop in range(self._settings.loops):
            ends = self._once(recordings, on_progress)
            # Recorded ids of the next loop are moved above those of this one.
            self._base = dict(self._highest)
            self._first_due_ns = None
            self._loop_began_s = self._pacer.elapsed_s()
            if loop == self._settings.loops - 1 and self._settings.finish:
                self._ledger.wait_settled(self._settings.timeout_s)
                for end in ends:
                    self._sink.finish_stream(
                        end.stream, next_stream=end.next_stream, timeout_s=self._settings.timeout_s
                    )

    def _once(self, recordings: Sequence[Recording], on_progress: Callable[[int, int], None] | None) -> list[StreamEnd]:
        """Send everything once; return the streams that are at their end, in order."""
        ends: list[StreamEnd] = []
        own: list[str] = []
        for recording in recordings:
            for item in recording.items(self._settings.stream):
                if isinstance(item, StreamEnd):
                    ends.append(item)
                    continue
                if isinstance(item, StreamMeta):
                    self._sink.set_stream_meta(item.stream, item.meta, timeout_s=self._settings.timeout_s)
                    continue
                if not recording.ends_itself and item.stream not in own:
                    own.append(item.stream)
                self._take(item)
                if on_progress is not None:
                    on_progress(self._ledger.sent, self._ledger.nbytes)
        chain = [StreamEnd(name, after) for name, after in itertools.zip_longest(own, own[1:], fillvalue="")]
        return [*chain, *ends]

    def _take(self, item: Item) -> None:
        ids = self._number(item)
        for start, stop in self._parts(item):
            self._wait(item, start)
            self._send(item, ids[start:stop], start, stop)
            self._sent += stop - start
        streams = self.report.streams
        streams[item.stream] = streams.get(item.stream, 0) + len(item)

    def _number(self, item: Item) -> Sequence[int]:
        lane = (item.stream, item.substream)
        highest = self._highest.get(lane, 0)
        ids: Sequence[int]
        if item.ids is None:
            ids = range(highest + 1, highest + 1 + len(item))
        else:
            base = self._base.get(lane, 0)
            ids = [base + i for i in item.ids] if base else item.ids
        self._highest[lane] = max(highest, ids[-1])
        return ids

    def _parts(self, item: Item) -> Iterator[tuple[int, int]]:
        """Yield what is sent at one moment: everything, or each frame when frames have moments of their own."""
        timed = self._settings.speed and item.acquired_ns is not None
        if item.together or not (self._settings.rate_hz or timed):
            yield 0, len(item)
        else:
            yield from ((k, k + 1) for k in range(len(item)))

    def _wait(self, item: Item, start: int) -> None:
        settings = self._settings
        if settings.rate_hz:
            self.report.paced = True
            self._pacer.wait_until(self._sent / settings.rate_hz)
            return
        due_ns = item.due_ns
        if due_ns is None and item.acquired_ns is not None:
            due_ns = item.acquired_ns[start]
        if not settings.speed or due_ns is None:
            return
        self.report.paced = True
        if self._first_due_ns is None:
            self._first_due_ns = due_ns
        self._pacer.wait_until(self._loop_began_s + (due_ns - self._first_due_ns) / 1e9 / settings.speed)

    def _send(self, item: Item, ids: Sequence[int], start: int, stop: int) -> None:
        frames = item.frames[start:stop]
        n = stop - start
        nbytes = frames.nbytes if hasattr(frames, "nbytes") else sum(len(frame) for frame in frames)
        more: dict[str, Any] = {"stream": item.stream, "callback": self._ledger.expect(n, nbytes)}
        if item.substream:
            more.update(substream=item.substream, dataset_size=item.dataset_size)
        if item.format is not None and item.format.dtype:
            more.update(codec=item.format.codec, shape=item.format.shape, dtype=item.format.dtype)
        elif item.format is not None:
            more.update(codec=item.format.codec)
        times = item.acquired_ns[start:stop] if item.acquired_ns is not None else None
        origins = item.origins[start:stop] or None
        if n == 1:
            more.update(acquired_ns=None if times is None else times[0], origin=None if origins is None else origins[0])
            self._sink.send(frames[0], id=ids[0], meta=item.metas[start], **more)
        else:
            more.update(acquired_ns=times, origins=origins)
            self._sink.send_batch(frames, ids=ids, metas=item.metas[start:stop], **more)
