"""`asapo seek`: let a group go on at another place."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime
from typing import Any, Final

from asapo.errors import WrongInput
from asapo_work.cli.place import Site, add_common_arguments, stream_place, take_url
from asapo_work.cli.show import EPOCH, printable, say, say_json

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, "SOURCE/STREAM GROUP", "the stream and the group")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--start", action="store_true", help="the first message: the group does everything again")
    target.add_argument("--end", action="store_true", help="behind the last message: only what comes from now on")
    target.add_argument("--id", type=int, metavar="ID", help="this message")
    target.add_argument(
        "--time",
        metavar="WHEN",
        help="the first message acquired since 2026-01-31T08:00 (UTC), or 90s, 10m, 2h, 1d ago",
    )
    target.add_argument("--fraction", type=float, metavar="F", help="behind this fraction of the stream, 0 to 1")


def run(args: argparse.Namespace) -> int:
    """Move a group; what its workers hold is given again, or is done, as the place says."""
    site = Site(take_url(args), args.timeout_s)
    try:
        words = [""] * bool(args.source) + args.words
        if len(words) != 2:
            raise WrongInput(f"found {len(args.words)} arguments: expected SOURCE/STREAM and the name of a group")
        place, group = stream_place(args, site, words[0]), words[1]
        with site.consumer(place) as consumer:
            position = consumer.seek(group, stream=place.stream, **_target(args))
    finally:
        site.close()
    if args.json:
        say_json({"group": group, "position": position})
    else:
        say(f"group {printable(group)!r} of {place} goes on at {position}")
    return 0


def _target(args: argparse.Namespace) -> dict[str, Any]:
    if args.start or args.end:
        return {"to": "start" if args.start else "end"}
    if args.time is not None:
        return {"time_ns": time_ns(args.time, time.time_ns())}
    return {"id": args.id} if args.id is not None else {"fraction": args.fraction}


def time_ns(text: str, now_ns: int) -> int:
    """Return a time in ns since the Unix epoch.

    >>> time_ns("90s", 10**12), time_ns("1970-01-01T00:00:01.5", 0), time_ns("1970-01-01T01:00+01:00", 0)
    (910000000000, 1500000000, 0)
    """
    ago = _AGO.fullmatch(text)
    if ago:
        return max(0, now_ns - round(float(ago[1]) * SECONDS[ago[2]] * 1e9))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise WrongInput(
            f"time {text!r}: expected 2026-01-31T08:00:00 (UTC without a zone), or 90s, 10m, 2h, 1d"
        ) from None
    since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH
    if since.days < 0:
        raise WrongInput(f"time {text!r}: expected one after 1970")
    return (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000
