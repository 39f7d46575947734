"""Starting service processes and keeping them alive: each is one command that prints a ready line."""

from __future__ import annotations

import json
import logging
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from asapo.errors import AsapoError

log = logging.getLogger(__name__)

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 15.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0
STEADY_S: Final = 30.0
"""A process that lived this long is restarted without a pause."""


class ServiceFailed(AsapoError):
    """A service did not become ready; field `service`."""

    code = "service_failed"


@dataclass(slots=True)
class Service:
    """One process: `asapo COMMAND --supervised` with its settings on stdin."""

    name: str
    command: list[str]
    """Sub-command and options, for example ["receiver"]."""
    settings: dict[str, Any]
    pin: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _ready: {}
    """Settings to keep for a restart, from the ready line: ports that were free ones become fixed."""
    ready: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    restarts: int = 0

    def start(self) -> dict[str, Any]:
        """Start the process and wait for its ready line.

        Raises
        ------
        ServiceFailed
            If it ends or stays silent for 30 s.
        """
        argv = [sys.executable, "-m", "asapo", *self.command, "--supervised"]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process, self.started_s = process, time.monotonic()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(self.settings).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            log.warning("%s ended before it read its settings", self.name)
        line = self._first_line(process)
        if line is None:
            self.stop()
            raise ServiceFailed(
                f"{self.name} did not become ready (exit status {process.returncode}); its log lines above say why",
                service=self.name,
            )
        self.ready = json.loads(line)
        self.settings.update(self.pin(self.ready))
        return self.ready

    def _first_line(self, process: subprocess.Popen[bytes]) -> bytes | None:
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def pump() -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    lines.put(line)
            lines.put(b"")

        threading.Thread(target=pump, name=f"asapo-out-{self.name}", daemon=True).start()
        try:
            return lines.get(timeout=READY_TIMEOUT_S) or None
        except queue.Empty:
            return None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the process: first asked, then killed."""
        process = self.process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                log.warning("%s does not stop, killing it", self.name)
                process.kill()
                process.wait()
        if process.stdin is not None:
            try:
                process.stdin.close()
            except OSError:
                log.debug("%s closed its stdin before", self.name)


class Supervisor:
    """Keeps services alive: one that ends is started again, with growing pauses when it ends at once."""

    def __init__(self) -> None:
        self.services: list[Service] = []
        self._stopping = threading.Event()

    def start(self, service: Service) -> dict[str, Any]:
        """Start a service and take care of it from now on; return its ready line."""
        ready = service.start()
        self.services.append(service)
        return ready

    def stop(self) -> None:
        """Ask `run` to end. Any thread, or a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Watch until `stop`, then end all services, the last started first."""
        while not self._stopping.wait(0.05):
            for service in self.services:
                if service.process is not None and service.process.poll() is not None:
                    self._restart(service)
        self.end()

    def end(self) -> None:
        """End all services, the last started first."""
        for service in reversed(self.services):
            service.stop()

    def _restart(self, service: Service) -> None:
        assert service.process is not None
        log.error("%s ended with status %s, starting it again", service.name, service.process.returncode)
        service.stop()
        service.restarts += 1
        if time.monotonic() - service.started_s > STEADY_S:
            service.pause_s = FIRST_PAUSE_S
        elif self._stopping.wait(service.pause_s):
            return
        service.pause_s = min(LONGEST_PAUSE_S, service.pause_s * 2)
        try:
            service.start()
        except ServiceFailed as exc:
            log.critical("%s", exc)
