"""Poisoned frames and poisoned workers: a message that nobody can bear is given up, everybody else goes on."""

from __future__ import annotations

import itertools
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from asapo import Consumer, Producer
from asapo.errors import LeaseLost, StreamFinished
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import PATIENCE_S, consumer_of, producer_of, wait_until
from tests.e2e.programs import next_line, program
from tests.faults.rounds import ratio_of

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]

WORKER = Path(__file__).with_name("poison_worker.py")
MOST = 3
"""Deliveries of a message."""
FRAMES = 60
POISON = 17


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("poison"), session_timeout_s=1.0) as running:
        yield running


def fill(services: LocalServices, stream: str, count: int = FRAMES) -> None:
    with producer_of(services) as producer:
        producer.send_batch([bytes([number % 251]) * 100 for number in range(count)], stream=stream)
        producer.finish_stream(stream)


def run_workers(services: LocalServices, stream: str, how: str, count: int) -> list[list[str]]:
    """Let workers loose on a stream; return what each printed once one of them has come to the end."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(program(WORKER, services.native, stream, how, POISON, MOST)) for _ in range(count)
        ]
        for worker in workers:
            assert next_line(worker) == "ready"
        lines: list[list[str]] = [[] for _ in workers]
        listeners = [
            threading.Thread(target=_listen, args=(worker, said)) for worker, said in zip(workers, lines, strict=True)
        ]
        for worker, listener in zip(workers, listeners, strict=True):
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            listener.start()
        wait_until(lambda: any("finished" in said for said in lines), "a worker has come to the end")
        for worker, listener in zip(workers, listeners, strict=True):
            worker.kill()
            listener.join(PATIENCE_S)
    return lines


def _listen(worker: subprocess.Popen[str], lines: list[str]) -> None:
    while line := next_line(worker):
        lines.append(line)


REASONS = {
    "kill": "its worker died or was cut off",
    "stop": "its worker died or was cut off",
    "raise": r".*PoisonError: frame 17",
    "leak": "MemoryError",
    "hang": "user code did not come back within 2 s",
}


@pytest.mark.parametrize(
    "how", ["kill", "raise", "hang", *(pytest.param(how, marks=pytest.mark.soak) for how in ("stop", "leak"))]
)
def test_a_frame_that_ends_every_worker_is_given_up_and_the_stream_goes_on(services: LocalServices, how: str) -> None:
    fill(services, how)
    lines = run_workers(services, how, how, MOST + 1)
    at = Counter(line for said in lines for line in said if line.startswith("at"))
    done = {int(line.split()[1]) for said in lines for line in said if line.startswith("done")}
    assert at[f"at {POISON}"] == MOST
    assert done == set(range(1, FRAMES + 1)) - {POISON}, "other messages are not affected"
    assert sum("finished" in said for said in lines) == 1
    with consumer_of(services) as consumer:
        (letter,) = consumer.dead_letters("g", stream=how)
        (group,) = consumer.groups(stream=how)
    assert (letter.id, letter.attempts) == (POISON, MOST)
    assert re.fullmatch(REASONS[how], letter.reason)
    assert ("in work\n" in letter.traceback) == (how in ("raise", "leak", "hang"))
    assert (group.lag, group.dead_letters) == (0, 1)


def test_a_worker_that_acknowledges_twice_changes_nothing(services: LocalServices) -> None:
    fill(services, "twice", 20)
    with consumer_of(services) as careless, consumer_of(services) as other:
        for _ in range(10):
            message = careless.get_next("g", stream="twice", max_attempts=MOST)
            careless.acknowledge(message, group="g")
            careless.acknowledge(message.id, group="g", stream="twice")
        held = other.get_next("g", n=5, stream="twice", max_attempts=MOST)
        with pytest.raises(LeaseLost):
            careless.acknowledge(held[0].id, group="g", stream="twice")
        (group,) = other.groups(stream="twice")
        assert (group.floor, group.held, group.lag) == (10, 5, 10)


def test_a_worker_that_never_acknowledges_keeps_only_what_it_has(services: LocalServices) -> None:
    fill(services, "never", 20)
    with consumer_of(services) as other:
        with consumer_of(services) as hoarder:
            held = {message.id for message in hoarder.get_next("g", n=5, stream="never", max_attempts=MOST)}
            found = other.get_next("g", n=20, stream="never", max_attempts=MOST)
            assert len(found) == 15
            other.acknowledge(found, group="g")
            (group,) = other.groups(stream="never")
            assert (group.held, group.waiting, group.lag) == (5, 0, 5)
        again: set[int] = set()
        while len(again) < 5:  # one suspect after the other
            message = other.get_next("g", stream="never", max_attempts=MOST)
            again.add(message.id)
            other.acknowledge(message, group="g")
        assert again == held
        with pytest.raises(StreamFinished):
            other.get_next("g", stream="never", max_attempts=MOST)


WORK_S = 0.02
"""What user code takes for a frame, waiting: on a machine of two cores the workers do not compete for them."""


def _good(consumer: Consumer, stream: str, ends_s: float, counts: list[int]) -> None:
    count = 0
    for _ in consumer.stream(group="g", stream=stream, max_attempts=MOST, timeout_s=PATIENCE_S):
        time.sleep(WORK_S)
        count += 1
        if time.monotonic() > ends_s:
            break
    counts.append(count)


def no_tens(message_id: int) -> None:
    if message_id % 10 == 0:
        raise ValueError(message_id)


def _bad(consumer: Consumer, stream: str, ends_s: float) -> None:
    """Raise on every tenth frame, begin anew, and keep some frames for good."""
    while time.monotonic() < ends_s:
        try:
            for message in consumer.stream(group="g", stream=stream, max_attempts=MOST, timeout_s=PATIENCE_S):
                time.sleep(WORK_S)
                no_tens(message.id)
        except ValueError:
            consumer.get_next("g", stream=stream, max_attempts=MOST)


def _rate(services: LocalServices, stream: str, bad: int, seconds: float) -> float:
    """Return frames a second of one of three good workers, beside so many bad ones."""
    with Producer(services.native, beamtime="bt", source="det") as producer:
        producer.send_batch([b"x"] * round(2 * (3 + bad) * seconds / WORK_S), stream=stream)
    counts: list[int] = []
    with ExitStack() as stack:
        consumers = [stack.enter_context(consumer_of(services)) for _ in range(3 + bad)]
        ends_s = time.monotonic() + seconds
        threads = [threading.Thread(target=_good, args=(one, stream, ends_s, counts)) for one in consumers[:3]]
        threads += [threading.Thread(target=_bad, args=(one, stream, ends_s)) for one in consumers[3:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sum(counts) / len(counts) / seconds


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_bad_workers_do_not_slow_the_others_down(services: LocalServices, soak_share: float) -> None:
    seconds = max(2.0, 15 * soak_share)
    streams = map("rate {}".format, itertools.count())
    held = ratio_of(
        lambda: _rate(services, next(streams), 1, seconds),
        lambda: _rate(services, next(streams), 0, seconds),
        at_least=0.9,
    )
    print(f"rate of good workers beside a bad one: {held:.3f} of that without it")  # noqa: T201 - kept in the log
    assert held > 0.9
