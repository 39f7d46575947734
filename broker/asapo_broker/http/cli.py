"""`asapo http`."""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
from pathlib import Path
from typing import Final

import uvicorn

from asapo import logs
from asapo.ask import Asker
from asapo.errors import ConfigError, ConnectFailed
from asapo.service import add_service_arguments, end_with_threads, say_ready, stop_on_signal, supervised_settings
from asapo.transport.registry import is_loopback
from asapo_broker.http.app import make_app
from asapo_broker.http.compat.app import CompatApp
from asapo_broker.http.one_write import OneWriteProtocol

KEEP_ALIVE_S: Final = 60
"""Clients of ASAP::O keep one connection, and pause between two calls."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--broker", default="asapo://127.0.0.1:8400", help="address of the broker")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (loopback only)")
    parser.add_argument("--port", type=int, default=8401, help="port to listen on, 0 for a free one (default: 8401)")
    parser.add_argument(
        "--state", type=Path, default=Path("asapo-data/state"), help="local folder for what groups of ASAP::O have read"
    )
    add_service_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    given = {"broker": args.broker, "host": args.host, "port": args.port, "state_dir": args.state}
    given |= supervised_settings(args)
    logs.configure(level=args.log_level, as_json=args.log_json, service="http")
    listener = _listener(given["host"], given["port"])
    core = Asker(given["broker"])
    app = CompatApp(make_app(core), core=core, url=given["broker"], state_dir=Path(given["state_dir"]).absolute())
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
            timeout_keep_alive=KEEP_ALIVE_S,
            http=OneWriteProtocol,
        )  # fmt: skip
    )
    stopped = threading.Event()

    def stop() -> None:
        server.should_exit = True
        stopped.set()

    thread = threading.Thread(target=_serve, args=(server, listener), name="asapo-http")
    end_with_threads()
    stop_on_signal(stop, supervised=args.supervised)
    thread.start()
    host, port = listener.getsockname()[:2]
    say_ready({"http": f"http://{host}:{port}"})
    while not stopped.wait(0.5) and thread.is_alive():
        pass
    server.should_exit = True
    thread.join()
    app.close()
    core.close()
    return 0


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run uvicorn beside the main thread, which keeps the signals."""
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(server.serve(sockets=[listener]))


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _listener(host: str, port: int) -> socket.socket:
    if not is_loopback(host):
        raise ConfigError(
            f"host {host!r}: only loopback addresses such as 127.0.0.1 are served, because nobody is authorised yet",
            key="host",
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as exc:
        raise ConnectFailed(f"cannot listen on {host}:{port}: {exc}; choose another port, or 0 for a free one") from exc
