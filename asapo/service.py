"""What every service process does alike: settings from stdin, a ready line on stdout, a clean end on a signal."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from asapo.errors import ConfigError

GC_NEW: Final = 50_000
"""New containers between two looks of the garbage collector at the young ones."""
GC_OLDER: Final = 20
THREAD_LOST: Final = 70
"""Exit status of a process that lost a thread: EX_SOFTWARE."""

log = logging.getLogger(__name__)


def add_service_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all service commands have."""
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON")
    parser.add_argument(
        "--supervised",
        action="store_true",
        help="read further settings as one JSON line from stdin, and stop when stdin ends",
    )


def supervised_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings a supervisor wrote to stdin (not to the command line, which everybody can read)."""
    if not args.supervised:
        return {}
    line = sys.stdin.readline()
    try:
        settings = json.loads(line)
    except ValueError:
        raise ConfigError(f"settings on stdin: expected one line of JSON, found {line[:60]!r}") from None
    if type(settings) is not dict:
        raise ConfigError(f"settings on stdin: expected a JSON object, found {type(settings).__name__}")
    return settings


def settle_memory() -> None:
    """Have the garbage collector look less often: units and rows form no cycles, and rows live long.

    With the thresholds of Python it comes after every 700 new containers, a few answers, and walks all windows now and
    then, while everybody waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_NEW, GC_OLDER, GC_OLDER)


def say_ready(facts: Mapping[str, Any]) -> None:
    """Print the line that whoever started us waits for."""
    sys.stdout.write(json.dumps({"ready": True, "pid": os.getpid(), **facts}) + "\n")
    sys.stdout.flush()


def stop_on_signal(stop: Callable[[], None], *, supervised: bool) -> None:
    """Call `stop` on SIGTERM or SIGINT, and when a supervisor's end of stdin is closed because it died."""

    def handler(_number: int, _frame: object) -> None:
        stop()

    signal.signal(signal.SIGTERM, handler)
    # A terminal's Ctrl-C reaches the whole group: the supervisor decides for its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN if supervised else handler)
    if supervised:
        threading.Thread(target=_watch_stdin, args=(stop,), name="asapo-stdin", daemon=True).start()


def end_with_threads() -> None:
    """Let this process end, as if it were killed, when one of its threads ends by an error that nobody expected.

    A service without one of its threads would take in and never answer. What it has acknowledged is safe, and whoever
    supervises it starts it again.
    """

    def end(lost: threading.ExceptHookArgs) -> None:
        name = lost.thread.name if lost.thread else "unknown"
        try:
            log.critical("thread %s failed, the process ends", name, exc_info=lost.exc_value)
        finally:
            os._exit(THREAD_LOST)

    threading.excepthook = end


def _watch_stdin(stop: Callable[[], None]) -> None:
    while sys.stdin.readline():
        pass
    stop()
