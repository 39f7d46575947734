"""Starting service processes and keeping them alive: each is one command that prints a ready line."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
LOOK_S: Final = 0.05
"""How often ended processes, and the wish to stop, are looked for."""


class ServiceFailed(AsapoError):
    """A service did not become ready; field `service`."""

    code = "service_failed"


class ServiceStopped(ServiceFailed):
    """A service was not waited for any longer, because all are to stop."""

    code = "service_stopped"


@dataclass(slots=True)
class Service:
    """One process: `asapo COMMAND --supervised` with its settings on stdin."""

    name: str
    command: list[str]
    """Sub-command and options, for example ["receiver"]."""
    settings: dict[str, Any]
    module: str = "asapo"
    """Python module that runs the command; tests have one that adds faults."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside our own."""
    pin: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _ready: {}
    """Settings to keep for a restart, from the ready line: ports that were free ones become fixed."""
    ready: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    restart_s: float | None = None
    """When it is started again, monotonic clock; None while it runs."""
    restarts: int = 0

    def start(self, stopping: threading.Event | None = None) -> dict[str, Any]:
        """Start the process and wait for its ready line.

        Parameters
        ----------
        stopping : event, optional
            Ends the wait when it is set.

        Raises
        ------
        ServiceFailed
            If it ends or stays silent for 30 s.
        ServiceStopped
            If `stopping` was set meanwhile.
        """
        argv = [sys.executable, "-m", self.module, *self.command, "--supervised"]
        # A group of its own: a terminal's Ctrl-C reaches us only, and we end the services in order.
        group = None if sys.platform == "win32" else 0
        env = {**os.environ, **self.environment}
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=group, env=env)
        self.process, self.started_s = process, time.monotonic()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(self.settings).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            log.warning("%s ended before it read its settings", self.name)
        line = self._first_line(process, stopping)
        if line is None:
            self.stop()
            if stopping is not None and stopping.is_set():
                raise ServiceStopped(f"{self.name} was stopped while it started", service=self.name)
            raise ServiceFailed(
                f"{self.name} did not become ready (exit status {process.returncode}); the lines above say why",
                service=self.name,
            )
        self.ready = json.loads(line)
        self.settings.update(self.pin(self.ready))
        return self.ready

    def _first_line(self, process: subprocess.Popen[bytes], stopping: threading.Event | None) -> bytes | None:
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def pump() -> None:
            assert process.stdout is not None
            with process.stdout:
                lines.put(process.stdout.readline())
                for _ in process.stdout:  # nothing more is expected; a full pipe must not stop the service
                    continue

        threading.Thread(target=pump, name=f"asapo-out-{self.name}", daemon=True).start()
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s and not (stopping is not None and stopping.is_set()):
            try:
                return lines.get(timeout=LOOK_S) or None
            except queue.Empty:
                continue
        return None

    @property
    def ended(self) -> bool:
        """Whether it was started and has ended."""
        return self.process is not None and self.process.poll() is not None

    def ask_to_stop(self) -> None:
        """Send the signal that ends it in good order; does not wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

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
        self.services.append(service)
        return service.start(self._stopping)

    def start_all(self, services: Sequence[Service]) -> list[dict[str, Any]]:
        """Start services side by side and return their ready lines; if one fails, raise what it raised."""
        self.services.extend(services)
        with ThreadPoolExecutor(len(services), thread_name_prefix="asapo-start") as pool:
            return list(pool.map(lambda service: service.start(self._stopping), services))

    def stop(self) -> None:
        """Ask `run`, or a start that waits, to end. Any thread, or a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Watch until `stop`, then end all services."""
        while not self._stopping.wait(LOOK_S):
            now_s = time.monotonic()
            for service in self.services:
                if service.ended:
                    self._care(service, now_s)
        self.end()

    def end(self) -> None:
        """End all services, the last started first; those of one kind together."""
        waiting: list[Service] = []
        for service in reversed(self.services):
            if waiting and waiting[0].command != service.command:
                _stop_together(waiting)
                waiting = []
            waiting.append(service)
        _stop_together(waiting)

    def _care(self, service: Service, now_s: float) -> None:
        """Start an ended service again when its pause is over; the others are watched meanwhile."""
        assert service.process is not None
        if service.restart_s is None:
            log.error("%s ended with status %s, starting it again", service.name, service.process.returncode)
            if now_s - service.started_s > STEADY_S:
                service.pause_s = FIRST_PAUSE_S
            service.restart_s = now_s + service.pause_s
            service.pause_s = min(LONGEST_PAUSE_S, service.pause_s * 2)
        if now_s < service.restart_s:
            return
        service.stop()
        service.restart_s = None
        service.restarts += 1
        try:
            service.start(self._stopping)
        except ServiceStopped:
            return
        except ServiceFailed as exc:
            log.critical("%s", exc)


def _stop_together(services: Sequence[Service]) -> None:
    for service in services:
        service.ask_to_stop()
    for service in services:
        service.stop()
