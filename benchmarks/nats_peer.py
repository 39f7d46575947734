"""NATS JetStream as a peer: publisher and reader processes. Run as `python -m benchmarks.nats_peer ROLE PORT`."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import nats
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from benchmarks.frames import read_every_byte, ring, sums
from benchmarks.roles import answer, rounds

IN_FLIGHT = 64
"""Publishes whose acks are outstanding; the client's own asynchronous publish."""
FETCH = 16
"""Messages asked for at once by the reader."""


async def publish(facts: dict[str, Any], context: Any) -> dict[str, Any]:
    """Publish n messages, each acknowledged by the server after it was stored."""
    frames = [frame.tobytes() for frame in ring(facts["size"])]
    await context.add_stream(StreamConfig(name=facts["stream"], subjects=[facts["stream"]], storage=StorageType.FILE))
    answer(ready=True)
    await asyncio.to_thread(sys.stdin.readline)
    window = asyncio.Semaphore(IN_FLIGHT)
    started_s = time.monotonic()

    async def one(payload: bytes) -> None:
        try:
            await context.publish(facts["stream"], payload, timeout=60)
        finally:
            window.release()

    async with asyncio.TaskGroup() as tasks:
        for i in range(facts["n"]):
            await window.acquire()
            tasks.create_task(one(frames[i % len(frames)]))
    return {"started_s": started_s}


async def read(facts: dict[str, Any], context: Any) -> dict[str, Any]:
    """Read n messages in order, every byte of each, and acknowledge them."""
    expected = sums(ring(facts["size"]))
    config = ConsumerConfig(ack_policy=AckPolicy.ALL, max_ack_pending=4 * FETCH)
    subscription = await context.pull_subscribe(facts["stream"], durable="reader", config=config)
    answer(ready=True)
    count = 0
    while count < facts["n"]:
        messages = await subscription.fetch(min(FETCH, facts["n"] - count), timeout=60)
        for message in messages:
            if read_every_byte(message.data) not in expected:
                return {"error": f"message {count + 1} was changed"}
            count += 1
        await messages[-1].ack_sync()
    ended_s = time.monotonic()
    await context.delete_stream(facts["stream"])
    return {"ended_s": ended_s}


async def serve(kind: str, port: str) -> None:
    """Serve rounds over one connection."""
    client = await nats.connect(f"nats://127.0.0.1:{port}", pending_size=256 * 1024 * 1024)
    context = client.jetstream(timeout=60, publish_async_max_pending=IN_FLIGHT)
    steps = {"publisher": publish, "reader": read}
    lines = rounds()
    while (facts := await asyncio.to_thread(next, lines, None)) is not None:
        answer(**await steps[kind](facts, context))
    await client.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
