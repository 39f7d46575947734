"""`asapo groups`: how far groups are."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from asapo.errors import UnknownGroup, WrongInput
from asapo_work.cli.place import (
    Place,
    Site,
    add_common_arguments,
    beamtime_of,
    named_once,
    parse_path,
    take_url,
    unknown,
)
from asapo_work.cli.show import age_text, note, printable, say, say_json, table
from asapo_work.groups import GroupInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(
        parser, "[BEAMTIME/]SOURCE[/STREAM]", "whose groups; those of the whole beamtime when left out"
    )
    parser.add_argument("--group", default="", metavar="NAME", help="only the groups of this name")
    parser.add_argument(
        "--delete", action="store_true", help="let the broker forget --group of SOURCE/STREAM: position, dead letters"
    )


def run(args: argparse.Namespace) -> int:
    """Show a line for each group and stream; with --delete forget one."""
    site = Site(take_url(args), args.timeout_s)
    try:
        place = _place(args, site)
        with site.consumer(place) as consumer:
            if args.delete:
                if not (args.group and place.stream):
                    raise WrongInput("--delete needs --group NAME and SOURCE/STREAM: groups are deleted one by one")
                consumer.delete_group(args.group, stream=place.stream)
                if args.json:
                    say_json({"deleted": args.group, **dataclasses.asdict(place)})
                else:
                    say(f"group {printable(args.group)!r} of {place} is forgotten; a new read begins it at the start")
                return 0
            if place.source and not consumer.streams():
                raise unknown(site, place)
            found = consumer.groups(stream=place.stream or None)
    finally:
        site.close()
    found = [one for one in found if args.group in ("", one.group)]
    if args.group and not found:
        raise UnknownGroup(f"no group {args.group!r} in {place}; `asapo groups` shows all", group=args.group)
    _show(args, place, found)
    return 0


def _place(args: argparse.Namespace, site: Site) -> Place:
    """Return what is named: a beamtime, a source or a stream."""
    if len(args.words) > 1:
        raise WrongInput(f"{' '.join(args.words)}: expected one path, [BEAMTIME/]SOURCE[/STREAM]")
    given = parse_path(args.words[0]) if args.words else []
    names = given if len(given) == 3 else ["", *given, "", ""][:3]
    beamtime, source, stream = named_once(args, *names)
    place = Place(beamtime_of(site, beamtime), source, stream)
    if stream and not source:
        raise WrongInput(f"stream {stream!r} without its source: expected SOURCE/STREAM")
    return place


def _show(args: argparse.Namespace, place: Place, found: list[GroupInfo]) -> None:
    if args.json:
        for one in found:
            say_json({"beamtime": place.beamtime, **dataclasses.asdict(one)})
    elif not found:
        note(f"no group has read from {place} yet")
    else:
        head = ["GROUP", "STREAM", "LAG", "UNREAD", "HELD", "WAITING", "OLDEST", "DEAD", "POSITION", "WORKERS"]
        for line in table(head, [_row(place, one) for one in found], left=2):
            say(line)


def _row(place: Place, one: GroupInfo) -> list[str]:
    kind: dict[bool, str] = {True: "", False: " (arrival)"}
    numbers: list[Any] = [one.lag, one.unread, one.held, one.waiting]
    return [
        printable(one.group),
        str(Place(place.beamtime, one.source, one.stream)),
        *map(str, numbers),
        age_text(one.oldest_s) if one.held else "-",
        str(one.dead_letters),
        f"{one.position}{kind[one.ordered]}",
        str(len(one.workers)),
    ]
