"""Long runs: nothing grows, and what comes last is as quick as what came first (F29, F30, and the 20 minutes' soak)."""

import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from asapo import Consumer, Producer
from asapo.testing.checker.local import process_numbers
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import BEAMTIME, PATIENCE_S, consumer_of, producer_of
from tests.faults.rounds import ratio_of
from tests.faults.test_raw_connections import resident_bytes

pytestmark = [pytest.mark.soak, pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(3600)]

MIB = 1024 * 1024
FRAME = bytes(range(256)) * 4


def slope(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Return how much a number grows per hour, by the straight line that fits best."""
    return statistics.linear_regression(times_s, values).slope * 3600


@dataclass
class Watched:
    """Memory, descriptors and threads of services over time."""

    services: LocalServices
    names: Sequence[str]
    times_s: list[float] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=dict)

    def look(self, now_s: float) -> None:
        """Take one sample."""
        self.times_s.append(now_s)
        for name in self.names:
            pid = self.services.pid(name)
            found = {"MiB": resident_bytes(pid) / MIB, **process_numbers(pid)}
            for what, number in found.items():
                self.numbers.setdefault(f"{name} {what}", []).append(float(number))

    def slopes(self) -> dict[str, float]:
        """Return the growth of each number per hour over the second half: the first fills caches."""
        half = len(self.times_s) // 2
        return {name: slope(self.times_s[half:], values[half:]) for name, values in self.numbers.items()}


class Pacer(threading.Thread):
    """Sends frames of 1 MiB at a rate, five hundred to a stream, and reads each stream when it is finished."""

    def __init__(self, services: LocalServices, rate_hz: float) -> None:
        super().__init__(name="pacer", daemon=True)
        self._services = services
        self._rate_hz = rate_hz
        self.ending = threading.Event()
        self.sent = self.read = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Send and read until `ending` is set."""
        try:
            self._work()
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            self.error = exc

    def _work(self) -> None:
        frame = bytes(MIB)
        began_s = time.monotonic()
        with producer_of(self._services) as producer, consumer_of(self._services, verify=False) as consumer:
            for stream in map(str, itertools.count()):
                for _ in range(500):
                    producer.send(frame, stream=stream)
                    self.sent += 1
                    self.ending.wait(max(0.0, began_s + self.sent / self._rate_hz - time.monotonic()))
                producer.finish_stream(stream)
                lists = consumer.stream(group="g", stream=stream, batch=50, timeout_s=PATIENCE_S, follow=None)
                self.read += sum(len(memoryview(message.raw)) == MIB for some in lists for message in some)
                _forget(self._services, stream)
                if self.ending.is_set():
                    return


def _forget(services: LocalServices, stream: str) -> None:
    """Remove what was read: a disk has an end, this test has not."""
    for path in (services.data_dir / "beamline" / BEAMTIME / "det" / stream).glob("*.seg"):
        path.unlink()


def _rate_hz(services: LocalServices, n: int = 300) -> float:
    """Return how many frames of 1 MiB per second are stored and acknowledged when nobody holds back."""
    with producer_of(services, source="rate") as producer:
        frame = bytes(MIB)
        producer.send(frame).result(PATIENCE_S)
        began_s = time.monotonic()
        for _ in range(n):
            producer.send(frame)
        producer.flush(PATIENCE_S)
        return n / (time.monotonic() - began_s)


def test_nothing_grows_while_frames_come_at_seven_tenths_of_the_rate(tmp_path: Path, soak_share: float) -> None:
    length_s = max(20.0, 1200 * soak_share)
    with LocalServices(tmp_path, log_level="error", segment_bytes=64 * MIB) as services:
        # The reading takes its part of the machine, so the rate with both is measured as a third of that without.
        rate_hz = 0.7 * _rate_hz(services) / 3
        watched = Watched(services, ["r1", "broker"])
        pacer = Pacer(services, rate_hz)
        pacer.start()
        began_s = time.monotonic()
        while (now_s := time.monotonic() - began_s) < length_s and pacer.is_alive():
            watched.look(now_s)
            pacer.ending.wait(length_s / 200)
        pacer.ending.set()
        pacer.join(2 * PATIENCE_S)
    slopes = watched.slopes()
    print(f"\n{length_s:.0f} s at {rate_hz:.0f} Hz of 1 MiB, {pacer.sent} sent, {pacer.read} read")
    for name, values in watched.numbers.items():
        print(f"{name:24} first {values[0]:8.1f} last {values[-1]:8.1f} slope {slopes[name]:+8.2f} per hour")
    if pacer.error is not None:
        raise pacer.error
    assert pacer.read == pacer.sent
    for name, values in watched.numbers.items():
        # By the second half caches are full: 1 of 20 on top of that would show.
        assert max(values[len(values) // 2 :]) <= 1.05 * values[len(values) // 2] + 16, f"{name} grows: {values[::20]}"


def _send_small(producer: Producer, n: int = 20_000) -> float:
    """Send messages of 1 kB as fast as it goes; return the rate in Hz."""
    began_s = time.monotonic()
    for _ in range(n):
        producer.send(FRAME)
    producer.flush(PATIENCE_S)
    return n / (time.monotonic() - began_s)


def test_a_million_small_frames_come_as_fast_at_the_end_whoever_does_not_read(
    tmp_path: Path, soak_share: float
) -> None:
    n = max(100_000, round(1_000_000 * soak_share))
    with (
        LocalServices(tmp_path / "old", log_level="error") as services,
        producer_of(services) as producer,
        Consumer(services.native, beamtime=BEAMTIME, source="det", timeout_s=PATIENCE_S) as idle,
    ):
        producer.send(FRAME).result(PATIENCE_S)
        held = idle.get_next("never reads on", lease_s=3600.0)
        _send_small(producer)  # caches fill
        before = {name: resident_bytes(services.pid(name)) for name in ("r1", "broker")}
        rates_hz = [_send_small(producer, n // 10) for _ in range(10)]
        grown = {name: resident_bytes(services.pid(name)) - was for name, was in before.items()}
        ratio = _old_to_fresh(producer, tmp_path / "fresh")
        shown = {name: round(nbytes / MIB) for name, nbytes in grown.items()}
        print(f"\n{n} messages of 1 kB, tenths in Hz: {[round(rate) for rate in rates_hz]}; grown MiB: {shown}; "
              f"rate beside that of fresh services: {ratio:.2f}")  # fmt: skip
        assert idle.get_last().id > 20_000 + n
        idle.acknowledge(held, group="never reads on")
        assert idle.get_next("never reads on").id == 2
    assert grown["broker"] < 400 * MIB, "a group that does not read costs memory without a bound"
    assert grown["r1"] < 400 * MIB
    assert ratio > 0.9, f"{rates_hz}: it became slower"


def _old_to_fresh(old: Producer, folder: Path) -> float:
    """Return the rate of a long stream beside that of services which have just begun, measured in turn."""
    with LocalServices(folder, log_level="error") as services, producer_of(services) as fresh:
        _send_small(fresh)
        return ratio_of(lambda: _send_small(old), lambda: _send_small(fresh), at_least=0.9, rounds=5, most=15)
