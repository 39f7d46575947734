"""`asapo query`: messages by their metadata."""

from __future__ import annotations

import argparse
from typing import Any

from asapo.errors import UnknownStream, WrongInput
from asapo_work.cli.get import add_file_arguments, deliver
from asapo_work.cli.place import Place, Site, add_common_arguments, stream_place, take_url, unknown
from asapo_work.cli.show import note, parts_of, printable, say, say_json, show_message
from asapo_work.consumer import Consumer
from asapo_work.queries import Found

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
    parser.add_argument(
        "--keys", default="", metavar="KEY,KEY", help="of the metadata only these keys, for example score,sample.name"
    )
    parser.add_argument("--count", action="store_true", help="say how many messages the query selects, and show none")
    parser.add_argument(
        "--explain", action="store_true", help="say which index serves the query and what is looked at, and run nothing"
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
            try:
                if args.count:
                    _show_count(consumer.count(words[1], stream=place.stream), as_json=args.json)
                elif args.explain:
                    _show_plan(consumer.explain(words[1], stream=place.stream), as_json=args.json)
                else:
                    _show_messages(args, place, _found(args, consumer, words[1], place.stream))
            except UnknownStream:
                raise unknown(site, place) from None
    finally:
        site.close()
    return 0


def _found(args: argparse.Namespace, consumer: Consumer, text: str, stream: str) -> Found:
    keys = [key.strip() for key in args.keys.split(",")] if args.keys else None
    resolve = "origin" if args.origin else ""
    return consumer.query(text, stream=stream, limit=args.limit, keys=keys, resolve=resolve)


def _show_messages(args: argparse.Namespace, place: Place, found: Found) -> None:
    messages = list(parts_of(found))
    if found.more:
        note(f"{args.limit} messages, there may be more: --limit sets how many are shown")
    elif not messages:
        note(f"nothing in {place} fulfils the query")
    if args.get:
        deliver(messages, args, args.get)
    else:
        for message in messages:
            show_message(message, as_json=args.json)


def _show_count(count: int, *, as_json: bool) -> None:
    if as_json:
        say_json({"count": count})
    else:
        say(str(count))


def _show_plan(plan: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say_json(plan)
        return
    none = "none serves this query: declare a key (sorted_keys serve finished streams), or narrow it by _id"
    kind = "ids" if plan["index"] == "id" else f"key {plan['index']}"
    say(f"index: {kind if plan['index'] else none}")
    say(f"looks at: {plan['rows']} of {plan['rows_total']} messages at most")
    say(f"sorts: {'yes, all that are selected' if plan['sorts'] else 'no, ends at the limit'}")
    for line in plan["plan"]:
        say(f"  {printable(line)}")
