"""`asapo up`: all services on this machine, one command, no configuration needed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import xxhash

from asapo import logs
from asapo.config import LOG_LEVELS, MAX_RECEIVERS, Config, load_config
from asapo.errors import ConfigError, ConnectFailed, StorageError
from asapo.service import stop_on_signal
from asapo.supervise import Service, ServiceStopped, Supervisor

_SOCKET: Final = re.compile(r"asapo-(\d+)-[0-9a-f]{8}-r\d+\.sock\Z", re.ASCII)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--port", type=int, help="port of the native protocol, 0 for a free one (default: 8400)")
    parser.add_argument("--http-port", type=int, help="port of the HTTP front, 0 for a free one (default: 0)")
    parser.add_argument("--data", type=Path, help="folder for data and state (default: ./asapo-data)")
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument("--receivers", type=int, help="receiver processes (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON when ready")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="default: info")


def merged(args: argparse.Namespace) -> Config:
    """Return the configuration with the command line's options on top."""
    config = load_config(args.config)
    broker, receiver = config.broker, config.receiver
    if args.port is not None:
        broker = dataclasses.replace(broker, port=_port("--port", args.port))
    if args.http_port is not None:
        broker = dataclasses.replace(broker, http_port=_port("--http-port", args.http_port))
    if args.receivers is not None:
        if not 1 <= args.receivers <= MAX_RECEIVERS:
            raise ConfigError(f"--receivers {args.receivers}: expected 1 to {MAX_RECEIVERS}", key="receiver.count")
        receiver = dataclasses.replace(receiver, count=args.receivers)
    return dataclasses.replace(
        config,
        broker=broker,
        receiver=receiver,
        data_dir=os.path.abspath(args.data or config.data_dir),
        log_level=args.log_level or config.log_level,
    )


def _port(option: str, value: int) -> int:
    if not 0 <= value <= 65535:
        raise ConfigError(f"{option} {value}: expected 0 (a free port) to 65535", key=option)
    return value


def core_service(config: Config) -> Service:
    """Describe the delivery core."""
    settings = {
        "listen": f"tcp://127.0.0.1:{config.broker.port or '*'}",
        "state_dir": _state(config),
        "session_timeout_s": config.receiver.session_timeout_s,
        "query_limit_s": config.broker.query_limit_s,
        "query_rows": config.broker.query_rows,
        "query_threads": config.broker.query_threads,
    }
    return Service(
        "broker", ["broker", "--log-level", config.log_level], settings, pin=lambda ready: {"listen": ready["native"]}
    )


def receiver_service(config: Config, number: int, broker: str) -> Service:
    """Describe receiver `number` (from 1)."""
    given = dataclasses.asdict(config.receiver)
    del given["count"]
    settings = {
        "receiver_id": f"r{number}",
        "data_dir": str(Path(config.data_dir, "beamline")),
        "state_dir": _state(config),
        "broker": broker,
        "declared_keys": list(config.declared_keys),
        "sorted_keys": list(config.sorted_keys),
        "listen": ["tcp://127.0.0.1:*", f"ipc://{_socket(config, number)}"],
        **given,
    }
    return Service(f"receiver r{number}", ["receiver", "--log-level", config.log_level], settings, pin=_pin_receiver)


def http_service(config: Config, broker: str) -> Service:
    """Describe the HTTP front."""
    settings = {"host": "127.0.0.1", "port": config.broker.http_port, "broker": broker, "state_dir": _state(config)}
    return Service(
        "http", ["http", "--log-level", config.log_level], settings,
        pin=lambda ready: {"port": int(str(ready["http"]).rpartition(":")[2])},
    )  # fmt: skip


def _pin_receiver(ready: Mapping[str, Any]) -> dict[str, Any]:
    return {"listen": ready["addresses"], "data_listen": ready["data_address"]}


def _state(config: Config) -> str:
    return str(Path(config.data_dir, "state"))


def _socket(config: Config, number: int) -> Path:
    """Return a short path for a Unix socket, because the system allows 107 bytes; no other run takes the same."""
    folder = xxhash.xxh3_64_hexdigest(config.data_dir.encode("utf-8", "surrogateescape"))[:8]
    return _runtime_dir() / f"asapo-{os.getpid()}-{folder}-r{number}.sock"


def _runtime_dir() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")


def run(args: argparse.Namespace) -> int:
    """Start everything, say where it is, run until a signal comes."""
    config = merged(args)
    logs.configure(level=config.log_level, service="up")
    supervisor = Supervisor()
    stop_on_signal(supervisor.stop, supervised=False)
    with DataFolder(config.data_dir):
        for port in (config.broker.port, config.broker.http_port):
            _check_free(port)
        _remove_stale_sockets()
        try:
            facts = _start(supervisor, config)
        except ServiceStopped:
            return 0
        else:
            sys.stdout.write((json.dumps(facts) if args.json else _greeting(facts, config)) + "\n")
            sys.stdout.flush()
            supervisor.run()
        finally:
            supervisor.end()
            for number in range(1, config.receiver.count + 1):
                _socket(config, number).unlink(missing_ok=True)  # a receiver that was killed leaves it behind
    return 0


def _start(supervisor: Supervisor, config: Config) -> dict[str, str]:
    """Start the core, then all others side by side; return the addresses."""
    native = supervisor.start(core_service(config))["native"].replace("tcp://", "asapo://")
    receivers = [receiver_service(config, number, native) for number in range(1, config.receiver.count + 1)]
    *_, http = supervisor.start_all([*receivers, http_service(config, native)])
    return {"native": native, "http": http["http"], "data": config.data_dir}


class DataFolder:
    """The folder for data and state: made, writable, and ours as long as we run."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._file = -1

    def __enter__(self) -> DataFolder:
        import fcntl

        lock = self._path / "up.lock"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise StorageError(
                f"data folder {self._path} cannot be written: {exc.strerror}; choose another one by --data",
                path=str(self._path),
            ) from exc
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise StorageError(
                f"data folder {self._path} is in use by a running `asapo up` (process {holder}, lock on {lock}); "
                "stop that one, or choose another folder by --data",
                path=str(lock),
            ) from None
        os.truncate(self._file, 0)
        os.pwrite(self._file, b"%d\n" % os.getpid(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _check_free(port: int) -> None:
    """Raise ConnectFailed when somebody listens on this port, before anything is started."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as exc:
            raise ConnectFailed(
                f"cannot listen on 127.0.0.1:{port}: {exc.strerror}; choose another port, or 0 for a free one, by "
                "--port or --http-port",
                address=f"tcp://127.0.0.1:{port}",
            ) from exc


def _remove_stale_sockets() -> None:
    """Remove the sockets of our own earlier runs whose processes were all killed."""
    for path in _runtime_dir().glob("asapo-*-r*.sock"):
        found = _SOCKET.match(path.name)
        with contextlib.suppress(OSError):
            facts = path.lstat()
            ours = stat.S_ISSOCK(facts.st_mode) and facts.st_uid == os.getuid()
            if found and ours and _is_dead(path, int(found[1])):
                path.unlink()


def _is_dead(path: Path, pid: int) -> bool:
    """Say whether nobody listens on a Unix socket, and its maker is gone (else it may be about to listen)."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def _greeting(facts: Mapping[str, str], config: Config) -> str:
    return (
        f"asapo is up with {config.receiver.count} receiver(s); Ctrl-C stops it\n"
        f"  producers and workers  {facts['native']}\n"
        f"  health and metrics     {facts['http']}/health  {facts['http']}/metrics\n"
        f"  data                   {facts['data']}"
    )
