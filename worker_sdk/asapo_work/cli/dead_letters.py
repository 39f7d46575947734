"""`asapo dead-letters`: messages that a group gave up."""

from __future__ import annotations

import argparse
import dataclasses

from asapo.errors import WrongInput
from asapo_work.cli.get import span_of
from asapo_work.cli.place import Place, Site, add_common_arguments, stream_place, take_url
from asapo_work.cli.show import note, printable, say, say_json, time_text
from asapo_work.consumer import Consumer
from asapo_work.groups import DeadLetter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(
        parser, "SOURCE/STREAM GROUP [ID|FROM-TO ...]", "the stream, the group, and which messages (default: all)"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--requeue", action="store_true", help="give the messages out again, attempts counted anew")
    action.add_argument("--drop", action="store_true", help="forget them: the group does not get these messages again")
    parser.add_argument("--all", action="store_true", help="with --requeue or --drop, and no ids: all dead letters")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of each")


def run(args: argparse.Namespace) -> int:
    """List dead letters, or give them out again, or forget them."""
    site = Site(take_url(args), args.timeout_s)
    try:
        words = [""] * bool(args.source) + args.words
        if len(words) < 2:
            raise WrongInput(f"found {len(args.words)} arguments: expected SOURCE/STREAM and the name of a group")
        place, group, ranges = stream_place(args, site, words[0]), words[1], [span_of(word) for word in words[2:]]
        with site.consumer(place) as consumer:
            letters = [
                one
                for one in consumer.dead_letters(group, stream=place.stream)
                if not ranges or any(low <= one.id <= high for low, high in ranges)
            ]
            if args.requeue or args.drop:
                if not ranges and not args.all:
                    raise WrongInput("which dead letters? Name their ids, or all of them by --all")
                _settle(args, consumer, place, group, letters)
            else:
                _show(args, place, group, letters)
    finally:
        site.close()
    return 0


def _settle(args: argparse.Namespace, consumer: Consumer, place: Place, group: str, letters: list[DeadLetter]) -> None:
    settle = consumer.requeue_dead_letters if args.requeue else consumer.drop_dead_letters
    count = settle(group, letters, stream=place.stream)
    if args.json:
        say_json({"requeued" if args.requeue else "dropped": count})
    else:
        say(f"{count} {'messages are given out again' if args.requeue else 'dead letters are forgotten'}")


def _show(args: argparse.Namespace, place: Place, group: str, letters: list[DeadLetter]) -> None:
    if args.json:
        for letter in letters:
            say_json(dataclasses.asdict(letter))
        return
    if not letters:
        note(f"group {printable(group)!r} of {place} has no such dead letters")
    for letter in letters:
        when = time_text(letter.failed_ns) if letter.failed_ns else "-"
        worker = f"  [{printable(letter.worker)}]" if letter.worker else ""
        say(f"{letter.id:>8}  {when}  {letter.attempts} attempts  {printable(letter.reason)}{worker}")
        for line in letter.traceback.splitlines() if args.traceback else ():
            say(f"          {printable(line)}")
