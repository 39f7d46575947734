"""The `asapo` command: each room owns its sub-commands and is imported only when one of them is asked for."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from asapo.errors import AsapoError, ConfigError, WrongInput, to_wire

COMMANDS: Final = {
    "up": ("asapo.up", "start all services on this machine"),
    "receiver": ("asapo_receive.cli", "run one receiver"),
    "broker": ("asapo_broker.cli", "run the delivery core"),
    "http": ("asapo_broker.http.cli", "run the HTTP front"),
    "simulate": ("asapo_produce.detectors.simulate_cli", "send frames like a detector"),
    "replay": (
        "asapo_produce.detectors.replay_cli",
        "send recorded data: HDF5, NeXus, European XFEL runs, image files",
    ),
    "ls": ("asapo_work.cli.ls", "list beamtimes, sources and streams"),
    "tail": ("asapo_work.cli.tail", "show messages as they arrive"),
    "get": ("asapo_work.cli.get", "fetch messages by id or the last one"),
    "query": ("asapo_work.cli.query", "find messages by their metadata"),
    "groups": ("asapo_work.cli.groups", "show how far groups are, or delete one"),
    "dead-letters": (
        "asapo_work.cli.dead_letters",
        "list messages that a group gave up, give them out again, or drop them",
    ),
    "seek": ("asapo_work.cli.seek", "let a group go on at another place of its stream"),
    "delete": ("asapo_work.cli.delete", "delete a stream: messages, files, groups"),
    "stages": ("asapo_work.cli.stages", "show what analysis stages do"),
    "reindex": ("asapo.reindex", "make indexes anew from the journals"),
    "verify": ("asapo.verify", "compare every payload of a folder with its checksum"),
    "doctor": ("asapo_work.cli.doctor", "check this installation and the services it reaches"),
    "selfcheck": (
        "asapo.testing.checker.cli",
        "prove that nothing sent here is lost, doubled, changed or out of order",
    ),
}
"""Sub-command to (module with `add_arguments(parser)` and `run(args) -> exit status`, help line)."""

EXTRA_OF: Final = {"asapo_receive": "server", "asapo_broker": "server", "asapo": "server", "asapo_produce": "replay"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; return 0 when it did its work, 1 when it failed, 2 when it was called wrongly."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130


def _run(argv: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no failure
    chosen = next((word for word in argv if not word.startswith("-")), "")
    parser = argparse.ArgumentParser(
        prog="asapo", description="Detector streaming: from detector to storage to analysis."
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            try:
                room = importlib.import_module(module)
            except ModuleNotFoundError as exc:
                return _missing(name, module, exc)
            room.add_arguments(sub)
            sub.set_defaults(run=room.run)
    args, rest = parser.parse_known_args(argv)
    # argparse takes words of an open number in one go only: here they may stand on both sides of an option.
    if not hasattr(args, "words") or any(word.startswith("-") for word in rest):
        args = parser.parse_args(argv)
    else:
        args.words += rest
    return _guarded(args)


def _guarded(args: argparse.Namespace) -> int:
    try:
        status = args.run(args)
        sys.stdout.flush()
    except AsapoError as exc:
        return _fail(args, exc)
    except BrokenPipeError:
        # The reader of our output left, for example `| head`: no fault, and nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status)


def _fail(args: argparse.Namespace, error: AsapoError) -> int:
    if getattr(args, "json", False):
        sys.stdout.write(json.dumps({"error": to_wire(error)}, default=str) + "\n")
    sys.stderr.write(f"asapo {args.command}: {error.message}\n")
    return 2 if isinstance(error, (ConfigError, WrongInput)) else 1


def _missing(name: str, module: str, error: ModuleNotFoundError) -> int:
    extra = EXTRA_OF.get(module.split(".")[0], "")
    hint = f"; install it with: pip install 'asapo[{extra}]'" if extra else ""
    sys.stderr.write(f"asapo {name}: the Python module {error.name!r} is missing{hint}\n")
    return 2


class _ShowVersion(argparse.Action):
    """Looks the version up when it is asked for: that costs a service a fifth of its start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.exit(0, _version() + "\n")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"asapo {version('asapo')}"
    except PackageNotFoundError:
        return "asapo (not installed)"
