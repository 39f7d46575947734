"""The end-to-end test of `asapo doctor --selftest`: a few small messages through the real path and back."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from asapo.doctor import FAILED, OK, SKIPPED, WARNING, Check
from asapo.errors import AsapoError, StorageError
from asapo.hostinfo import boot_id
from asapo_produce import Producer
from asapo_work.consumer import Consumer
from asapo_work.message import Message

BEAMTIME: Final = "asapo-selftest"
SOURCE: Final = "doctor"
MESSAGES: Final = 10
SHAPE: Final = (64, 128)
CLOCKS_APART_S: Final = 0.1


def selftest_checks(url: str, timeout_s: float) -> Iterator[Check]:
    """Send, take as a worker, read back mapped and fetched, compare. Every run leaves one small finished stream."""
    stream = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(4).hex()}"
    frames = np.random.default_rng(1).integers(0, 2**16, (MESSAGES, *SHAPE), dtype=np.uint16)
    try:
        rounds, messages = _round_trips(url, stream, frames, timeout_s)
    except AsapoError as exc:
        step = "the checks above say which service is away" if exc.retriable else "look at the services' log lines"
        yield Check("selftest", FAILED, f"{exc.code}: {exc.message}", step)
        return
    yield _delivered(stream, rounds, messages, frames)
    for access in ("map", "fetch"):
        yield _read_back(url, stream, frames, access, timeout_s)
    yield _clocks(rounds, messages)


def _round_trips(
    url: str, stream: str, frames: Any, timeout_s: float
) -> tuple[list[tuple[int, int, int]], list[Message]]:
    """Send the messages one after the other; return (sent, acknowledged, taken) in ns for each, and what came."""
    rounds, messages = [], []
    with (
        Producer(url, beamtime=BEAMTIME, source=SOURCE, request_timeout_s=timeout_s, retry_s=timeout_s) as producer,
        Consumer(url, beamtime=BEAMTIME, source=SOURCE, timeout_s=timeout_s) as consumer,
    ):
        for number, frame in enumerate(frames, 1):
            sent_ns = time.time_ns()
            producer.send(frame, id=number, stream=stream, meta={"number": number}).result(timeout_s)
            acknowledged_ns = time.time_ns()
            message = consumer.get_next("doctor", stream=stream)
            rounds.append((sent_ns, acknowledged_ns, time.time_ns()))
            consumer.acknowledge(message, group="doctor")
            messages.append(message)
        producer.finish_stream(stream, timeout_s=timeout_s)
    return rounds, messages


def _delivered(stream: str, rounds: list[tuple[int, int, int]], messages: list[Message], frames: Any) -> Check:
    if [message.meta for message in messages] != [{"number": n} for n in range(1, len(frames) + 1)]:
        found = f"{BEAMTIME}/{SOURCE}/{stream} came as {[message.meta for message in messages]}"
        return Check("selftest", FAILED, found, "report this: order or metadata are wrong")
    acknowledged_ms = statistics.median((acked - sent) / 1e6 for sent, acked, _ in rounds)
    taken_ms = statistics.median((taken - sent) / 1e6 for sent, _, taken in rounds)
    found = (
        f"{len(messages)} messages in {BEAMTIME}/{SOURCE}/{stream}: acknowledged after {acknowledged_ms:.1f} ms, "
        f"in a worker's hands after {taken_ms:.1f} ms (median)"
    )
    return Check("selftest", OK, found)


def _read_back(url: str, stream: str, frames: Any, access: Any, timeout_s: float) -> Check:
    """Compare what is read by one way with what was sent."""
    name = f"selftest {access}"
    consumer = Consumer(url, beamtime=BEAMTIME, source=SOURCE, timeout_s=timeout_s, access=access, verify=True)
    try:
        with consumer:
            messages = consumer.get_by_id(list(range(1, len(frames) + 1)), stream=stream)
            hosts = {receiver["boot_id"] for receiver in consumer.receivers()}
            if access == "map" and hosts != {boot_id()}:
                return Check(name, SKIPPED, "receivers on other hosts: nothing to map")
            same = all(np.array_equal(message.data, frame) for message, frame in zip(messages, frames, strict=True))
    except StorageError as exc:
        step = "payloads are fetched instead" if access == "map" else "readers on other hosts get nothing"
        return Check(name, WARNING if access == "map" else FAILED, exc.message, step)
    except AsapoError as exc:
        return Check(name, FAILED, f"{exc.code}: {exc.message}", "look at the services' log lines")
    if not same:
        return Check(name, FAILED, "what was read differs from what was sent", "report this, with the stream's files")
    return Check(name, OK, f"{len(messages)} payloads, each equal to what was sent")


def _clocks(rounds: list[tuple[int, int, int]], messages: list[Message]) -> Check:
    """Compare the receiver's clock with ours: its ingest time must lie between sending and acknowledgement."""
    apart_s = 0.0
    for (sent_ns, acknowledged_ns, _), message in zip(rounds, messages, strict=True):
        early_s, late_s = (sent_ns - message.stored_ns) / 1e9, (message.stored_ns - acknowledged_ns) / 1e9
        apart_s = max(apart_s, early_s, late_s)
    found = f"receivers' clocks differ from ours by {apart_s * 1e3:.1f} ms beyond what the path takes"
    if apart_s > CLOCKS_APART_S:
        return Check("selftest clocks", WARNING, found, "have all hosts keep time by NTP or PTP; order is not affected")
    return Check("selftest clocks", OK, found)
