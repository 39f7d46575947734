"""`asapo broker`."""

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
from asapo_broker.settings import CoreSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--listen", metavar="URL", default="tcp://127.0.0.1:8400",
        help="where consumers and receivers connect to; port * takes a free one (default: tcp://127.0.0.1:8400)",
    )  # fmt: skip
    parser.add_argument(
        "--state", type=Path, default=Path("asapo-data/state"), help="local folder for indexes and cursors"
    )
    add_service_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the delivery core until a signal comes."""
    given = {"listen": args.listen, "state_dir": args.state} | supervised_settings(args)
    given["state_dir"] = Path(given["state_dir"]).absolute()
    settings = CoreSettings(**given)
    logs.configure(level=args.log_level, as_json=args.log_json, service="broker")
    tune_malloc()
    from asapo_broker.core import Core

    core = Core(settings)
    end_with_threads()
    stop_on_signal(core.stop, supervised=args.supervised)
    settle_memory()
    core.serve(ready=lambda: say_ready({"native": core.address}))
    return 0
