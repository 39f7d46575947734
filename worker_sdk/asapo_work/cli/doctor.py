"""`asapo doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator

from asapo.doctor import FAILED, OK, SKIPPED, WARNING, Check, host_checks
from asapo.errors import WrongInput
from asapo.transport import resolve
from asapo_work.cli.place import DEFAULT_URL, take_url
from asapo_work.cli.service_checks import service_checks
from asapo_work.cli.show import printable, say, say_json

TIMEOUT_S = 5.0
COLOURS = {OK: "32", WARNING: "33", FAILED: "31", SKIPPED: "2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "words", nargs="*", metavar="URL", help=f"the services (default: $ASAPO_URL, else {DEFAULT_URL})"
    )
    parser.add_argument("--url", default="", help="the same")
    parser.add_argument("--http", default=os.environ.get("ASAPO_HTTP", ""), metavar="URL",
                        help="address of the HTTP front (default: $ASAPO_HTTP)")  # fmt: skip
    parser.add_argument("--host-only", action="store_true", help="leave the services out")
    parser.add_argument("--selftest", action="store_true",
                        help="send a few messages in beamtime asapo-selftest and read them back")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", dest="timeout_s",
                        help=f"longest wait for one answer, seconds (default: {TIMEOUT_S:g})")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object for each check")


def run(args: argparse.Namespace) -> int:
    """Say what every check found as soon as it is known; 1 when one failed."""
    url = take_url(args)
    if args.words:
        raise WrongInput(f"{' '.join(args.words)}: expected an address such as {DEFAULT_URL}")
    resolve(url)
    counts = dict.fromkeys((OK, WARNING, FAILED, SKIPPED), 0)
    for check in _checks(args, url):
        counts[check.verdict] += 1
        if args.json:
            say_json(dataclasses.asdict(check))
        else:
            _show(check)
    if not args.json:
        say(", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n))
    return 1 if counts[FAILED] else 0


def _checks(args: argparse.Namespace, url: str) -> Iterator[Check]:
    yield from host_checks()
    if args.host_only:
        return
    broker = True
    for check in service_checks(url, args.http, args.timeout_s):
        broker = broker and not (check.name in ("broker", "receivers") and check.verdict == FAILED)
        yield check
    if not args.selftest:
        return
    if not broker:
        yield Check("selftest", SKIPPED, "not checked: services are missing")
        return
    from asapo_work.cli.selftest import selftest_checks

    yield from selftest_checks(url, args.timeout_s)


def _show(check: Check) -> None:
    verdict = f"{check.verdict:<7}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        verdict = f"\x1b[{COLOURS[check.verdict]}m{verdict}\x1b[0m"
    say(f"{verdict}  {check.name:<15}  {printable(check.found)}")
    if check.next_step:
        say(f"{'':<26}→ {printable(check.next_step)}")
