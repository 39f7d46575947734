"""`asapo delete`: delete a stream."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from asapo.errors import UnknownStream, WrongInput
from asapo_work.cli.place import Place, Site, add_common_arguments, stream_place, take_url, unknown
from asapo_work.cli.show import note, say, say_json, size_text
from asapo_work.consumer import Consumer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, "[BEAMTIME/]SOURCE/STREAM", "the stream to delete")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--force", action="store_true", help="also while producers write to it")
    parser.add_argument("--missing-ok", action="store_true", help="no error when there is no such stream")


def run(args: argparse.Namespace) -> int:
    """Delete a stream for good: messages, files, groups, dead letters."""
    site = Site(take_url(args), args.timeout_s)
    try:
        place = _place(args, site)
        with site.consumer(place) as consumer:
            there = _confirmed(args, consumer, place)
            if there is None:
                note("nothing was deleted")
                return 1
            if there:
                consumer.delete_stream(place.stream, force=args.force, missing_ok=args.missing_ok)
        if not there and not args.missing_ok:
            raise unknown(site, place)
    finally:
        site.close()
    if args.json:
        say_json({"deleted": there, **dataclasses.asdict(place)})
    else:
        say(f"{place} is deleted" if there else f"there is no stream {place}")
    return 0


def _place(args: argparse.Namespace, site: Site) -> Place:
    if len(args.words) > 1:
        raise WrongInput(f"{' '.join(args.words)}: expected one path, [BEAMTIME/]SOURCE/STREAM")
    named = args.words[0] if args.words else ""
    if not args.stream and "/" not in named:
        raise WrongInput(f"{named or 'no path'}: expected SOURCE/STREAM; a stream is deleted by its full name only")
    return stream_place(args, site, named)


def _confirmed(args: argparse.Namespace, consumer: Consumer, place: Place) -> bool | None:
    """Return whether there is something to delete; None when the user does not want it."""
    try:
        facts = consumer.stream_info(stream=place.stream)
    except UnknownStream:
        return False
    if args.yes or not sys.stdin.isatty():
        if not args.yes:
            raise WrongInput(
                f"{place} has {facts['n_messages']} messages: say --yes to delete them without being asked"
            )
        return True
    size = size_text(facts["n_bytes"])
    sys.stderr.write(f"delete {place}, {facts['n_messages']} messages, {size}, for good? [y/N] ")
    sys.stderr.flush()
    return True if sys.stdin.readline().strip().lower() in ("y", "yes") else None
