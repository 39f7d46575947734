"""Faults on services of our own: kills at random moments under load, and what must come back to where it was."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Mapping, Sequence
from typing import Final

from asapo.errors import DeadlineExceeded
from asapo.testing.checker.evidence import Probe, Resource
from asapo.testing.checker.run import Run
from asapo.testing.launch import LocalServices

BROKER: Final = "broker"
BOUNDED: Final = {"receiver": 64 + 16, "broker": 16}
"""Descriptors that a service may take later and keep: 64 segments of a data server, databases of threads that asked."""
THREADS: Final = 4
"""Threads that start when they are first needed."""
STALLED_S: Final = 10.0
"""A service is back within less than two seconds on an idle machine; on a busy one it may take some more."""


def process_numbers(pid: int) -> dict[str, int]:
    """Return how many descriptors and threads a process has; empty where the system does not say."""
    try:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return {}
    return {"descriptors": descriptors, "threads": threads}


def numbers_of(services: LocalServices, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the numbers of each service."""
    return {name: process_numbers(services.pid(name)) for name in names}


def compare(before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]]) -> list[Resource]:
    """Return what I9 looks at."""
    found = []
    for name, numbers in before.items():
        bound = BOUNDED["broker" if name == BROKER else "receiver"]
        for what, number in numbers.items():
            tolerance = bound if what == "descriptors" else THREADS
            found.append(Resource(f"{what} of {name}", number, after[name][what], tolerance))
    return found


def run_under_kills(
    run: Run, services: LocalServices, victims: Sequence[str], rounds: int, *, seed: int, most_acks: int = 30
) -> int:
    """Let a started run go to its end while services are killed in turn at random moments; return the kills in time.

    Kills that come after the last frame do not count: nothing was under way any more.
    """
    chance = random.Random(seed)
    names = sorted({*victims})
    in_time = 0
    before: dict[str, dict[str, int]] = {}
    for name in itertools.islice(itertools.cycle(victims), rounds):
        try:
            run.wait_acked(chance.randint(1, most_acks))
        except DeadlineExceeded as exc:
            run.probes.append(Probe(f"acknowledgements go on, but for {exc}", run.patience_s, None))
            break
        before = before or numbers_of(services, names)
        in_time += run.sending
        run.note_kill("core" if name == BROKER else "receiver")
        services.kill(name)
        run.timed(f"ingest after the death of {name}", STALLED_S, lambda n=name: services.restart(n))  # type: ignore[misc]
    run.finish()
    if before:
        run.resources += compare(before, numbers_of(services, names))
    return in_time
