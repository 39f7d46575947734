"""`asapo get`: messages by id, or the last one; told about, or written to files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from asapo.errors import Gap, UnknownStream, WrongInput
from asapo.models import check_id
from asapo.progress import Progress
from asapo_work.cli.files import FORMATS, STDOUT, Folder, write_stdout
from asapo_work.cli.place import Place, Site, add_common_arguments, stream_place, take_url, unknown
from asapo_work.cli.scan import scan
from asapo_work.cli.show import (
    message_facts,
    parts_of,
    payload_text,
    printable,
    say,
    say_json,
    size_text,
    time_text,
    value_facts,
)
from asapo_work.consumer import Consumer
from asapo_work.message import Message

SHOWN_BYTES = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, "SOURCE/STREAM ID|FROM-TO", "the stream, and the ids to get")
    parser.add_argument("--last", action="store_true", help="get the message with the highest id")
    parser.add_argument("-o", "--output", default="", metavar="DIR",
                        help="write files into this folder; - writes one payload to stdout")  # fmt: skip
    add_file_arguments(parser)


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how files are written."""
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="npy",
        help="npy: arrays as NumPy files; raw: the bytes as they are stored (default: npy)",
    )
    parser.add_argument("--meta", action="store_true", help="write metadata, as JSON, beside each file")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--access",
        choices=("auto", "map", "fetch"),
        default="auto",
        help="map payloads from this host's files, or fetch them from the data server (default: auto)",
    )
    parser.add_argument("--verify", action="store_true", help="compare the checksum of every payload")


def run(args: argparse.Namespace) -> int:
    """Get messages; without -o tell about them."""
    site = Site(take_url(args), args.timeout_s)
    try:
        named = bool(args.source)
        path, ids = ("", args.words) if named else (args.words[0] if args.words else "", args.words[1:])
        spans = [span_of(text) for text in ids]
        if not spans and not args.last:
            raise WrongInput("no message named: give ids such as 5 or 7-9 after SOURCE/STREAM, or --last")
        place = stream_place(args, site, path)
        with site.consumer(place, access=args.access, verify=args.verify) as consumer:
            try:
                messages = list(_messages(consumer, place, spans, last=args.last))
            except UnknownStream:
                raise unknown(site, place) from None
            deliver(messages, args, args.output)
    finally:
        site.close()
    return 0


def span_of(text: str) -> tuple[int, int]:
    """Return first and last id of `5` or `7-9`."""
    first, mark, last = text.partition("-")
    if not (first.isascii() and first.isdigit()) or (mark and not (last.isascii() and last.isdigit())):
        raise WrongInput(f"{text!r}: expected a message id such as 5, or a range such as 7-9")
    span = check_id(int(first)), check_id(int(last or first))
    if span[0] > span[1]:
        raise WrongInput(f"{text!r}: expected the lower id first")
    return span


def _messages(consumer: Consumer, place: Place, spans: Sequence[tuple[int, int]], *, last: bool) -> Iterator[Message]:
    """Return what is asked for: a single id must be there, of a range whatever is there."""
    for first, end in spans:
        if first == end:
            yield from parts_of(consumer.get_by_id([first], stream=place.stream))
            continue
        found = False
        for message in scan(consumer, place, after=first - 1, upto=end):
            found = True
            yield message
        if not found:
            raise Gap(f"{place} has no message from {first} to {end}", message_id=first, id_max=0)
    if last:
        yield from parts_of([consumer.get_last(stream=place.stream)])


def deliver(messages: list[Message], args: argparse.Namespace, output: str) -> None:
    """Write messages to the folder (or stdout) that was asked for, or tell about them."""
    if output == STDOUT:
        write_stdout(messages, args.format)
        return
    if not output:
        for message in _one_by_one(messages):
            _tell(message, as_json=args.json)
        return
    folder = Folder(output, form=args.format, force=args.force, meta=args.meta)
    folder.refuse_present(messages)
    total, nbytes = len(messages), 0
    with Progress("writing", total) as progress:
        for n, message in enumerate(_one_by_one(messages), 1):
            path = folder.write(message)
            nbytes += message.size
            progress.update(n, nbytes)
            if args.json:
                say_json({**message_facts(message), "file": str(path)})
            else:
                say(str(path))


def _one_by_one(messages: list[Message]) -> Iterator[Message]:
    """Return messages so that each one's bytes are freed before the next is read."""
    messages.reverse()
    while messages:
        yield messages.pop()


def _tell(message: Message, *, as_json: bool) -> None:
    array = message.data if message.format.dtype else None
    values = value_facts(array)
    if as_json:
        say_json({**message_facts(message), "values": values})
        return
    part = f", part {message.substream} of {message.dataset_size}" if message.dataset_size else ""
    say(f"{Place(message.beamtime, message.source, message.stream)} message {message.id}{part}")
    say(f"  acquired  {time_text(message.acquired_ns)}")
    say(f"  payload   {payload_text(message)}, {size_text(message.size)}")
    if values:
        say("  values    " + ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None))
    elif array is None and message.size:
        start = bytes(message.raw[:SHOWN_BYTES])
        say(f"  begins    {start.hex(' ')}  {printable(start.decode('ascii', 'replace'))}")
    if message.origin is not None:
        origin = message.origin
        say(f"  origin    {Place('', origin.source, origin.stream)} message {origin.message_id}")
    say(f"  metadata  {printable(message.meta_text)}")
