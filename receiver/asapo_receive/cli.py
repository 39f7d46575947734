"""`asapo receiver`."""

from __future__ import annotations

import argparse
from pathlib import Path

from asapo import logs
from asapo.service import (
    add_service_arguments,
    end_with_threads,
    say_ready,
    settle_memory,
    stop_on_signal,
    supervised_settings,
)
from asapo.transport.zeromq import tune_malloc
from asapo_receive.settings import ReceiverSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--id", default="r1", help="name of this receiver (default: r1)")
    parser.add_argument("--data", type=Path, default=Path("asapo-data/beamline"), help="folder for payloads")
    parser.add_argument("--state", type=Path, default=Path("asapo-data/state"), help="local folder for indexes")
    parser.add_argument("--broker", default="", help="address of the broker, for example asapo://127.0.0.1:8400")
    parser.add_argument(
        "--listen", action="append", metavar="URL", help="where producers connect to (default: tcp://127.0.0.1:*)"
    )
    add_service_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run a receiver until a signal comes."""
    given = {
        "receiver_id": args.id,
        "data_dir": args.data,
        "state_dir": args.state,
        "broker": args.broker,
        "listen": tuple(args.listen or ("tcp://127.0.0.1:*",)),
    } | supervised_settings(args)
    given["data_dir"], given["state_dir"] = Path(given["data_dir"]).absolute(), Path(given["state_dir"]).absolute()
    for name in ("listen", "declared_keys", "sorted_keys"):
        given[name] = tuple(given.get(name, ()))
    settings = ReceiverSettings(**given)
    logs.configure(level=args.log_level, as_json=args.log_json, service=settings.receiver_id)
    tune_malloc()
    from asapo_receive.service import Receiver

    receiver = Receiver(settings)
    settle_memory()
    end_with_threads()
    stop_on_signal(receiver.stop, supervised=args.supervised)
    receiver.serve(
        ready=lambda: say_ready({"receiver_id": settings.receiver_id, "addresses": receiver.addresses,
                                 "data_address": receiver.data_address})
    )  # fmt: skip
    return 0
