"""`asapo up`: all services on this machine, one command, no configuration needed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asapo import logs
from asapo.config import Config, load_config
from asapo.errors import ConfigError
from asapo.service import stop_on_signal
from asapo.supervise import Service, ServiceFailed, Supervisor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--port", type=int, help="port of the native protocol, 0 for a free one (default: 8400)")
    parser.add_argument("--http-port", type=int, help="port of the HTTP front, 0 for a free one (default: 0)")
    parser.add_argument("--data", type=Path, help="folder for data and state (default: ./asapo-data)")
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument("--receivers", type=int, help="receiver processes (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON when ready")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="default: info")


def merged(args: argparse.Namespace) -> Config:
    """Return the configuration with the command line's options on top."""
    config = load_config(args.config)
    broker, receiver = config.broker, config.receiver
    if args.port is not None:
        broker = dataclasses.replace(broker, port=_port("--port", args.port))
    if args.http_port is not None:
        broker = dataclasses.replace(broker, http_port=_port("--http-port", args.http_port))
    if args.receivers is not None:
        receiver = dataclasses.replace(receiver, count=args.receivers)
    if not 1 <= receiver.count <= 64:
        raise ConfigError(f"receivers = {receiver.count}: expected 1 to 64", key="receiver.count")
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
        "declared_keys": list(config.declared_keys),
        "session_timeout_s": config.receiver.session_timeout_s,
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
        "listen": ["tcp://127.0.0.1:*", f"ipc://{_socket(config, number)}"],
        **given,
    }
    return Service(f"receiver r{number}", ["receiver", "--log-level", config.log_level], settings, pin=_pin_receiver)


def http_service(config: Config, broker: str) -> Service:
    """Describe the HTTP front."""
    settings = {"host": "127.0.0.1", "port": config.broker.http_port, "broker": broker}
    return Service(
        "http", ["http", "--log-level", config.log_level], settings,
        pin=lambda ready: {"port": int(str(ready["http"]).rpartition(":")[2])},
    )  # fmt: skip


def _pin_receiver(ready: Mapping[str, Any]) -> dict[str, Any]:
    return {"listen": ready["addresses"], "data_listen": ready["data_address"]}


def _state(config: Config) -> str:
    return str(Path(config.data_dir, "state"))


def _socket(config: Config, number: int) -> Path:
    """Return a short path for a Unix socket: the system allows 107 bytes."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    return runtime / f"asapo-{os.getpid()}-r{number}.sock"


def run(args: argparse.Namespace) -> int:
    """Start everything, say where it is, run until a signal comes."""
    config = merged(args)
    logs.configure(level=config.log_level, service="up")
    supervisor = Supervisor()
    stop_on_signal(supervisor.stop, supervised=False)
    try:
        native = supervisor.start(core_service(config))["native"].replace("tcp://", "asapo://")
        for number in range(1, config.receiver.count + 1):
            supervisor.start(receiver_service(config, number, native))
        http = supervisor.start(http_service(config, native))["http"]
    except ServiceFailed:
        supervisor.end()
        raise
    facts = {"native": native, "http": http, "data": config.data_dir}
    text = json.dumps(facts) if args.json else _greeting(facts, config)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    supervisor.run()
    return 0


def _greeting(facts: Mapping[str, str], config: Config) -> str:
    return (
        f"asapo is up with {config.receiver.count} receiver(s); Ctrl-C stops it\n"
        f"  producers and workers  {facts['native']}\n"
        f"  health and metrics     {facts['http']}/health  {facts['http']}/metrics\n"
        f"  data                   {facts['data']}"
    )
