"""The product's role processes: a producer and a worker that use nothing but the public API.

Run as `python -m benchmarks.product ROLE URL`.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asapo import Consumer, Producer
from asapo.errors import StreamFinished
from benchmarks.frames import read_every_byte, ring, sums
from benchmarks.measure import percentile
from benchmarks.roles import answer, rounds

BEAMTIME = "bench"
SOURCE = "det"


@functools.lru_cache(maxsize=1)
def kept_ring(size: int) -> list[NDArray[np.uint8]]:
    """Return the frames to send: made once, as by the baseline, because making them is no part of sending."""
    return ring(size)


def send_frames(producer: Producer, facts: dict[str, Any]) -> dict[str, Any]:
    """Send n frames of one size, one message each."""
    frames = kept_ring(facts["size"])
    handles = []
    started_s = time.monotonic()
    for i in range(facts["n"]):
        handles.append(producer.send(frames[i % len(frames)], id=i + 1, stream=facts["stream"]))
    producer.flush(120.0)
    acked_s = time.monotonic()
    for handle in handles:
        handle.result(0.0)
    return {"started_s": started_s, "acked_s": acked_s}


def send_trains(producer: Producer, facts: dict[str, Any]) -> dict[str, Any]:
    """Send trains of small frames with metadata of their own, at `rate_hz` frames a second or as fast as possible."""
    size, pulses, n = facts["size"], facts["pulses"], facts["n"]
    frames = kept_ring(size * pulses)
    started_s = time.monotonic()
    first = None
    for train in range(n // pulses):
        if facts.get("rate_hz"):
            wait_s = started_s + train * pulses / facts["rate_hz"] - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
        metas = [{"train_id": 10_000 + train, "pulse_id": p, "energy_kev": 9.3 + p % 7 / 10} for p in range(pulses)]
        batch = frames[train % len(frames)].reshape(pulses, size)
        first = producer.send_batch(
            batch, ids=range(train * pulses + 1, (train + 1) * pulses + 1), metas=metas, stream=facts["stream"]
        )
    producer.flush(120.0)
    acked_s = time.monotonic()
    assert first is not None
    first.result(0.0)
    return {"started_s": started_s, "acked_s": acked_s, "failed": producer.stats.failed}


def send_paced(producer: Producer, facts: dict[str, Any]) -> dict[str, Any]:
    """Send n frames at a rate; the time of each `send` call travels in the metadata."""
    frames = kept_ring(facts["size"])
    started_s = time.monotonic()
    for i in range(facts["n"]):
        wait_s = started_s + i / facts["rate_hz"] - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        producer.send(frames[i % len(frames)], id=i + 1, stream=facts["stream"], meta={"sent_ns": time.monotonic_ns()})
    producer.flush(60.0)
    return {"started_s": started_s, "acked_s": time.monotonic()}


def producer_role(url: str) -> None:
    """Serve rounds: {do, stream, size, n, ...}."""
    kinds = {"frames": send_frames, "trains": send_trains, "paced": send_paced}
    producers: dict[bool, Producer] = {}
    for facts in rounds():
        pack = facts.get("pack", True)
        if pack not in producers:
            producers[pack] = Producer(
                url, beamtime=BEAMTIME, source=SOURCE, pack=pack, transport=facts.get("transport", "tcp")
            )
        producer = producers[pack]
        result = kinds[facts["do"]](producer, facts)
        producer.finish_stream(facts["stream"])
        answer(**result)
    for producer in producers.values():
        producer.close()


def _messages(consumer: Consumer, facts: dict[str, Any]) -> Iterator[Any]:
    for batch in consumer.stream(
        group="bench", stream=facts["stream"], batch=facts.get("batch", 16), timeout_s=60.0, follow=None
    ):
        yield from batch


def read_frames(consumer: Consumer, facts: dict[str, Any]) -> dict[str, Any]:
    """Read a stream in order, every byte of every frame; check order and content."""
    expected = sums(ring(facts["size"]))
    count = 0
    answer(waiting=True)
    for message in _messages(consumer, facts):
        found = read_every_byte(message.raw)
        count += 1
        if message.id != count or found != expected[(count - 1) % len(expected)]:
            return {"error": f"frame {count} came as {message.id} or was changed"}
    if count != facts["n"]:
        return {"error": f"{facts['n'] - count} of {facts['n']} frames are missing"}
    return {"ended_s": time.monotonic()}


def read_trains(consumer: Consumer, facts: dict[str, Any]) -> dict[str, Any]:
    """Read a stream of trains in order: every id once, metadata that fits the id, first word of every frame right."""
    size, pulses = facts["size"], facts["pulses"]
    firsts = np.concatenate([frame.reshape(pulses, size)[:, :8] for frame in ring(size * pulses)]).view(np.uint64)[:, 0]
    expected = firsts.tolist()
    count = 0
    answer(waiting=True)
    for batch in consumer.stream(group="bench", stream=facts["stream"], batch=256, timeout_s=60.0, follow=None):
        for message in batch:
            count += 1
            if (
                message.id != count
                or int.from_bytes(message.raw[:8], "little") != expected[(count - 1) % len(expected)]
            ):
                return {"error": f"frame {count} came as {message.id} or was changed"}
        if message.meta["pulse_id"] != (count - 1) % pulses:
            return {"error": f"frame {count} has the metadata {message.meta_text}"}
    if count != facts["n"]:
        return {"error": f"{facts['n'] - count} of {facts['n']} frames are missing"}
    return {"ended_s": time.monotonic()}


def read_paced(consumer: Consumer, facts: dict[str, Any]) -> dict[str, Any]:
    """Read one message after the other; return the times from `send` to here, ms."""
    taken_ms = []
    answer(waiting=True)
    for message in consumer.stream(group="bench", stream=facts["stream"], timeout_s=60.0, follow=None, prefetch=True):
        taken_ms.append((time.monotonic_ns() - message.meta["sent_ns"]) / 1e6)
    taken_ms = taken_ms[facts.get("skip", 0) :]
    return {"p50_ms": percentile(taken_ms, 50), "p99_ms": percentile(taken_ms, 99), "max_ms": max(taken_ms),
            "count": len(taken_ms), "ended_s": time.monotonic()}  # fmt: skip


def get_next(consumer: Consumer, facts: dict[str, Any]) -> dict[str, Any]:
    """Ask for messages that are there: one by one (times of the calls), or in batches with prefetch (rate)."""
    if facts["batch"] == 1:
        taken_ms = []
        for _ in range(facts["n"]):
            started_ns = time.perf_counter_ns()
            consumer.get_next(facts["group"], stream=facts["stream"])
            taken_ms.append((time.perf_counter_ns() - started_ns) / 1e6)
        return {"p50_ms": percentile(taken_ms, 50), "p99_ms": percentile(taken_ms, 99), "sum_s": sum(taken_ms) / 1e3,
                "ended_s": time.monotonic()}  # fmt: skip
    started_s = time.perf_counter()
    count = 0
    for batch in consumer.stream(
        group=facts["group"], stream=facts["stream"], batch=facts["batch"], timeout_s=30.0, follow=None
    ):
        count += len(batch)
    if count != facts["n"]:
        return {"error": f"{count} messages instead of {facts['n']}"}
    return {"sum_s": time.perf_counter() - started_s}


def worker_role(url: str, access: Literal["auto", "map", "fetch"] = "auto") -> None:
    """Serve rounds: {do, stream, size, n, ...}."""
    kinds = {"frames": read_frames, "trains": read_trains, "paced": read_paced, "get_next": get_next}
    for facts in rounds():
        # A consumer of its own for each round: its maps would keep the memory of files that the round deletes.
        with Consumer(url, beamtime=BEAMTIME, source=SOURCE, access=access) as consumer:
            try:
                result = kinds[facts["do"]](consumer, facts)
            except StreamFinished:
                result = {"error": "the stream ended early"}
        answer(**result)


if __name__ == "__main__":
    {"producer": producer_role, "worker": worker_role}[sys.argv[1]](*sys.argv[2:])
