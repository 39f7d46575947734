"""Real services for a test: started on free ports, killed, restarted and ended by name.

>>> with LocalServices("/tmp/run") as services:          # doctest: +SKIP
...     producer = Producer(services.native, beamtime="demo", source="det")
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from asapo.config import Config
from asapo.supervise import Service
from asapo.testing.faults import VARIABLE
from asapo.up import core_service, http_service, receiver_service


class LocalServices:
    """One delivery core and any number of receivers on this machine, each a process of its own.

    Parameters
    ----------
    data_dir : path
        Folder for payloads and state; it is not removed.
    receivers : int
        Receivers r1 .. rn to start with.
    http : bool
        Start the HTTP front, too.
    log_level : str
        Level of the services' log lines on stderr.
    faults : map of service name to faults, optional
        Faults of the file operations of services, as `asapo.testing.faults.VARIABLE` takes them.
    stand_ins : map of service name to (module, environment), optional
        Python modules to run services with instead of `asapo`, with variables beside ours.
    receiver : keyword arguments
        Fields of `asapo.config.ReceiverConfig`.
    """

    def __init__(
        self, data_dir: str | Path, *, receivers: int = 1, http: bool = False, log_level: str = "warning",
        declared_keys: tuple[str, ...] = (), sorted_keys: tuple[str, ...] = (), faults: Mapping[str, str] | None = None,
        stand_ins: Mapping[str, tuple[str, Mapping[str, str]]] | None = None, **receiver: Any,
    ) -> None:  # fmt: skip
        base = Config()
        self._config = dataclasses.replace(
            base,
            data_dir=str(Path(data_dir).absolute()),
            log_level=log_level,
            declared_keys=declared_keys,
            sorted_keys=sorted_keys,
            broker=dataclasses.replace(base.broker, port=0),
            receiver=dataclasses.replace(base.receiver, **receiver),
        )
        self._first_receivers = receivers
        self._with_http = http
        self._stand_ins = {**(stand_ins or {}), **{name: _faulty(found) for name, found in (faults or {}).items()}}
        self._services: dict[str, Service] = {}
        self.native = ""
        """Address for producers and consumers."""
        self.http = ""

    @property
    def data_dir(self) -> Path:
        """Folder of payloads and state."""
        return Path(self._config.data_dir)

    def __enter__(self) -> LocalServices:
        try:
            core = self._add("broker", core_service(self._config))
            self.native = core.ready["native"].replace("tcp://", "asapo://")
            for _ in range(self._first_receivers):
                self.add_receiver()
            if self._with_http:
                self.http = self._add("http", http_service(self._config, self.native)).ready["http"]
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _add(self, name: str, service: Service) -> Service:
        self._services[name] = service
        if name in self._stand_ins:
            service.module, service.environment = self._stand_ins[name]
        service.start()
        return service

    def add_receiver(self) -> str:
        """Start one more receiver and return its name."""
        number = 1 + sum(name.startswith("r") for name in self._services)
        name = f"r{number}"
        self._add(name, receiver_service(self._config, number, self.native))
        return name

    def pid(self, name: str) -> int:
        """Return the process id of `broker`, `http`, or a receiver (`r1`, ...)."""
        process = self._services[name].process
        assert process is not None, f"{name} was never started"
        return process.pid

    def ready(self, name: str) -> dict[str, Any]:
        """Return what the service said in its ready line."""
        return self._services[name].ready

    def ended(self, name: str) -> bool:
        """Return True when a service has ended by itself, for example by a fault."""
        return self._services[name].ended

    def inject(self, name: str, faults: str) -> None:
        """Let a service work under faults from its next start on, as `asapo.testing.faults.VARIABLE` takes them."""
        service = self._services[name]
        service.module, service.environment = _faulty(faults)

    def cure(self, name: str) -> None:
        """Let a service work without faults, and as itself, from its next start on."""
        service = self._services[name]
        service.module, service.environment = "asapo", {}

    def change(self, name: str, **settings: Any) -> None:
        """Let a service work with other settings from its next start on, for example `beamtime_bytes=2**30`."""
        self._services[name].settings.update(settings)

    def kill(self, name: str) -> None:
        """End a service by SIGKILL."""
        service = self._services[name]
        if not service.ended:
            os.kill(self.pid(name), signal.SIGKILL)
        service.stop()

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Let a service stand still while the block runs, as on a host that hangs: its connections stay."""
        os.kill(self.pid(name), signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid(name), signal.SIGCONT)

    def end(self, name: str) -> int:
        """End a service in good order and return its exit status."""
        service = self._services[name]
        service.stop()
        assert service.process is not None
        return service.process.returncode

    def restart(self, name: str) -> None:
        """Start a service again where it was, with the ports it had."""
        self._services[name].start()

    def stop(self) -> None:
        """End all services, the last started first."""
        for service in reversed(self._services.values()):
            service.stop()


def _faulty(faults: str) -> tuple[str, dict[str, str]]:
    """Return module and environment of a service that runs under faults."""
    return "asapo.testing.faults", {VARIABLE: faults}
