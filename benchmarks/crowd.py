"""A process of many clients, each a consumer with a connection and a thread of its own.

Run as `python -m benchmarks.crowd URL`; one JSON line for each round: {stream, round, clients, groups, seconds, batch},
and when all have answered that they are connected, another one, upon which they begin.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asapo import Consumer
from asapo.errors import StreamFinished
from benchmarks.product import BEAMTIME, SOURCE
from benchmarks.roles import answer, rounds

SET_UP_S = 120.0
"""Longest wait until all clients of a process are connected."""


class Client:
    """Takes batch after batch for its group, acknowledging each with the next request."""

    def __init__(self, url: str, facts: dict[str, Any], group: str) -> None:
        self.group = group
        self.taken = 0
        self.taken_ms: list[float] = []
        self.error = ""
        self._consumer = Consumer(url, beamtime=BEAMTIME, source=SOURCE)
        self._facts = facts

    def run(self, connected: threading.Barrier, start: threading.Barrier) -> None:
        """Connect, wait for the others, take messages for the given time, leave."""
        try:
            with self._consumer:
                self._consumer.get_last(stream=self._facts["stream"])  # says hello, which is not measured
                connected.wait(SET_UP_S)
                start.wait(SET_UP_S)
                self._take(time.perf_counter() + self._facts["seconds"])
        except StreamFinished:
            self.error = f"group {self.group} has read the whole stream: the stock is too small"
        except Exception as exc:  # noqa: BLE001 - told to the harness
            self.error = repr(exc)
            connected.abort()

    def _take(self, until_s: float) -> None:
        batches = self._consumer.stream(
            group=self.group, stream=self._facts["stream"], batch=self._facts["batch"], prefetch=False,
            timeout_s=60.0, follow=None,
        )  # fmt: skip
        asked_s = time.perf_counter()
        for batch in batches:
            now_s = time.perf_counter()
            self.taken_ms.append((now_s - asked_s) * 1e3)
            self.taken += len(batch)
            if now_s >= until_s:
                return
            asked_s = time.perf_counter()
        raise StreamFinished("the stream ended")


def serve(url: str, facts: dict[str, Any], go: Callable[[], Any]) -> dict[str, Any]:
    """Run one round of all clients; return what each group took, and the times of the requests."""
    groups = [f"{facts['round']}-{number % facts['groups']}" for number in range(facts["clients"])]
    clients = [Client(url, facts, group) for group in groups]
    connected, start = threading.Barrier(len(clients) + 1), threading.Barrier(len(clients) + 1)
    threads = [threading.Thread(target=client.run, args=(connected, start)) for client in clients]
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):  # the client that broke it says why
        connected.wait(SET_UP_S)
        answer(connected=True)
        go()
        start.wait(SET_UP_S)
    started_s = time.perf_counter()
    for thread in threads:
        thread.join()
    errors = [client.error for client in clients if client.error]
    if errors:
        return {"error": f"{len(errors)} clients failed, the first: {errors[0]}"}
    taken = Counter[str]()
    for client in clients:
        taken[client.group] += client.taken
    return {
        "taken": taken,
        "seconds": time.perf_counter() - started_s,
        "taken_ms": [round(ms, 3) for client in clients for ms in client.taken_ms],
        "idlest": min(client.taken for client in clients),
    }


if __name__ == "__main__":
    lines = rounds()
    for round_facts in lines:
        answer(**serve(sys.argv[1], round_facts, lambda: next(lines)))
