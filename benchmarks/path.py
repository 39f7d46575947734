"""One round of the path: the product, the baseline, and the unit costs that the baseline must not exceed by much."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from asapo.testing.launch import LocalServices
from benchmarks.frames import read_every_byte, ring
from benchmarks.measure import GB, WARM_MORE_BYTES, CpuMeter, warm_memory
from benchmarks.product import BEAMTIME, SOURCE
from benchmarks.roles import Role


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one design gave."""

    gb_per_s: float
    cpu_s_per_gb: dict[str, float]
    """CPU seconds per GB by process."""

    @property
    def cpu_sum(self) -> float:
        """All processes together."""
        return sum(self.cpu_s_per_gb.values())


class ProductPath:
    """Producer → receiver → index → core → worker, each a process; services live through all rounds."""

    def __init__(self, folder: Path, *, access: str = "auto", transport: str = "tcp", **services: Any) -> None:
        self.services = LocalServices(folder / "product", **services).__enter__()
        self._transport = transport
        self._producer = Role("product", "producer", self.services.native)
        self._worker = Role("product", "worker", self.services.native, access)
        self._round = 0

    def pids(self) -> dict[str, int]:
        """Return the process ids of everything that works for a frame."""
        return {
            "producer": self._producer.pid,
            "receiver": self.services.pid("r1"),
            "core": self.services.pid("broker"),
            "worker": self._worker.pid,
        }

    def run(self, size: int, n: int) -> Round:
        """Send n frames of `size` bytes; the round ends when the worker has read every byte of the last."""
        warm_memory(self.services.data_dir, 2 * size * n + WARM_MORE_BYTES)
        answers, cpu = self.round("frames", size=size, n=n)
        seconds = answers["ended_s"] - answers["started_s"]
        return Round(size * n / GB / seconds, {name: s / (size * n / GB) for name, s in cpu.items()})

    def round(self, do: str, **facts: Any) -> tuple[dict[str, Any], dict[str, float]]:
        """Run producer and worker once on a new stream; return their answers and the CPU seconds by process."""
        self._round += 1
        stream = f"{do}-{self._round}"
        facts = {"do": do, "stream": stream, "transport": self._transport, **facts}
        assert self._worker.ask(**facts)["waiting"]
        meter = CpuMeter(self.pids())
        meter.start()
        sent = self._producer.ask(**facts)
        read = self._worker.hear()
        cpu = meter.stop()
        self._forget(stream)
        return {**sent, **read}, cpu

    def _forget(self, stream: str) -> None:
        """Delete the round's payloads, so that every round writes new files into the same memory."""
        shutil.rmtree(self.services.data_dir / "beamline" / BEAMTIME / SOURCE / stream, ignore_errors=True)

    def ask_worker(self, **facts: Any) -> dict[str, Any]:
        """Let the worker do something without the producer."""
        return self._worker.ask(**facts)

    def ask_producer(self, **facts: Any) -> dict[str, Any]:
        """Let the producer do something without the worker."""
        return self._producer.ask(transport=self._transport, **facts)

    def ask_under_load(self, load: dict[str, Any], **facts: Any) -> dict[str, Any]:
        """Let the worker do something while the producer sends a stream; the load must outlast it."""
        self._producer.tell(transport=self._transport, **load)
        found = self._worker.ask(**facts)
        acked_s = self._producer.hear()["acked_s"]
        assert found["ended_s"] < acked_s, f"the load ended {found['ended_s'] - acked_s:.1f} s before the worker"
        self._forget(load["stream"])
        return found

    def close(self) -> None:
        """End all processes."""
        self._producer.__exit__(None, None, None)
        self._worker.__exit__(None, None, None)
        self.services.stop()


class BaselinePath:
    """Sender → receiver → reader over two sockets and one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sender = Role("baseline", "sender")
        self._receiver = Role("baseline", "receiver")
        self._reader = Role("baseline", "reader")
        self._round = 0

    def run(self, size: int, n: int) -> Round:
        """Send n frames of `size` bytes; the round ends when the reader has read every byte of the last."""
        warm_memory(self._folder, 2 * size * n + WARM_MORE_BYTES)
        self._round += 1
        path = self._folder / f"baseline-{self._round}"
        with open(path, "wb") as file:
            os.ftruncate(file.fileno(), size * n)
        facts = {"size": size, "n": n, "path": str(path)}
        ports = self._receiver.ask(**facts)
        self._reader.ask(**facts, notify_port=ports["notify_port"])
        meter = CpuMeter({"sender": self._sender.pid, "receiver": self._receiver.pid, "reader": self._reader.pid})
        meter.start()
        sent = self._sender.ask(**facts, port=ports["port"])
        self._receiver.hear()
        read = self._reader.hear()
        cpu = meter.stop()
        path.unlink()
        seconds = read["ended_s"] - sent["started_s"]
        return Round(size * n / GB / seconds, {name: s / (size * n / GB) for name, s in cpu.items()})

    def close(self) -> None:
        """End all processes."""
        for role in (self._sender, self._receiver, self._reader):
            role.__exit__(None, None, None)


def unit_costs(folder: Path, size: int, n: int) -> dict[str, float]:
    """Return the CPU seconds per GB of each step that nobody can leave out, measured alone in this process."""
    frames = ring(size)
    gigabytes = size * n / GB
    costs: dict[str, float] = {}

    def timed(name: str, step: Any) -> None:
        started_s = time.process_time()
        step()
        costs[name] = (time.process_time() - started_s) / gigabytes

    warm_memory(folder, 2 * size * n + WARM_MORE_BYTES)
    path = folder / "unit-costs"
    with open(path, "w+b", buffering=0) as file:
        timed("checksum", lambda: [xxhash.xxh3_64_intdigest(frames[i % len(frames)].data) for i in range(n)])
        timed("socket", lambda: _through_socket(frames, size, n))
        timed("pwrite", lambda: [os.pwrite(file.fileno(), frames[i % len(frames)].data, i * size) for i in range(n)])
        timed("map", lambda: _through_map(file.fileno(), size, n))
    path.unlink()
    return costs


def _through_socket(frames: list[Any], size: int, n: int) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    left = socket.create_connection(server.getsockname())
    right, _ = server.accept()

    def send() -> None:
        for i in range(n):
            left.sendall(frames[i % len(frames)].data)

    thread = threading.Thread(target=send)
    thread.start()
    memory = [bytearray(size) for _ in range(max(2, min(32, 64_000_000 // size)))]
    for i in range(n):
        right.recv_into(memory[i % len(memory)], size, socket.MSG_WAITALL)
    thread.join()
    for end in (left, right, server):
        end.close()


def _through_map(file: int, size: int, n: int) -> None:
    view = memoryview(mmap.mmap(file, 0, prot=mmap.PROT_READ))
    for i in range(n):
        read_every_byte(view[i * size : (i + 1) * size])
