"""`asapo query`: messages by their metadata."""

from __future__ import annotations

import argparse

from asapo.errors import UnknownStream, WrongInput
from asapo_work.cli.get import add_file_arguments, deliver
from asapo_work.cli.place import Site, add_common_arguments, stream_place, take_url, unknown
from asapo_work.cli.show import note, parts_of, show_message

LIMIT = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(
        parser,
        "SOURCE/STREAM QUERY",
        "the stream, and what to find, for example 'score > 0.5 ORDER BY score DESC LIMIT 10'",
    )
    parser.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help=f"most messages, at most 10000 (default: {LIMIT})"
    )
    parser.add_argument(
        "--origin", action="store_true", help="the messages that the found ones were computed from, instead of these"
    )
    parser.add_argument("--get", default="", metavar="DIR", help="write the messages found into this folder")
    add_file_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show the messages that a query selects; with --get write them to files."""
    site = Site(take_url(args), args.timeout_s)
    try:
        words = [""] * bool(args.source) + args.words
        if len(words) != 2:
            raise WrongInput(
                f"found {len(args.words)} arguments: expected SOURCE/STREAM and a query; put the query in quotes"
            )
        place = stream_place(args, site, words[0])
        with site.consumer(place, access=args.access, verify=args.verify) as consumer:
            resolve = "origin" if args.origin else ""
            try:
                found = consumer.query(words[1], stream=place.stream, limit=args.limit, resolve=resolve)
            except UnknownStream:
                raise unknown(site, place) from None
            messages = list(parts_of(found))
            if len(messages) == args.limit:
                note(f"{args.limit} messages, there may be more: --limit sets how many are shown")
            elif not messages:
                note(f"nothing in {place} fulfils the query")
            if args.get:
                deliver(messages, args, args.get)
            else:
                for message in messages:
                    show_message(message, as_json=args.json)
    finally:
        site.close()
    return 0
