"""`asapo tail`: the newest messages, and those that come."""

from __future__ import annotations

import argparse
import re
import time
from typing import Any, Final

from asapo.errors import TransportError, UnknownStream, WrongInput
from asapo_work.cli.place import Place, Site, add_common_arguments, stream_place, take_url, unknown
from asapo_work.cli.scan import scan
from asapo_work.cli.show import note, parts_of, show_message
from asapo_work.consumer import Consumer

POLL_S: Final = 0.2
"""Pause between two looks at a stream that is followed."""
_QUOTED: Final = re.compile(r"'(?:[^']|'')*'|`(?:[^`]|``)*`")
_ENDING: Final = re.compile(r"(?<![\w.])(order\s+by|limit)\b", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, "SOURCE/STREAM", "the stream to show, also BEAMTIME/SOURCE/STREAM")
    parser.add_argument(
        "-n", type=int, default=10, metavar="N", dest="count", help="messages to begin with (default: 10)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the stream is finished, or Ctrl-C")
    parser.add_argument("--where", default="", metavar="QUERY", help="only messages whose metadata fulfil this")


def run(args: argparse.Namespace) -> int:
    """Show the newest messages of a stream; with -f also those that arrive, without being one of a group."""
    if not 0 <= args.count <= 10_000:
        raise WrongInput(f"-n {args.count}: expected 0 to 10000")
    if _ENDING.search(_QUOTED.sub("''", args.where)):
        raise WrongInput("--where: tail shows messages by id; leave ORDER BY and LIMIT out, or use `asapo query`")
    site = Site(take_url(args), args.timeout_s)
    try:
        if len(args.words) > 1:
            raise WrongInput(f"{' '.join(args.words)}: expected one stream, SOURCE/STREAM")
        place = stream_place(args, site, args.words[0] if args.words else "")
        with site.consumer(place) as consumer:
            tail = Tail(consumer, place, where=args.where, as_json=args.json)
            if not args.follow:
                try:
                    tail.begin(args.count)
                except UnknownStream:
                    raise unknown(site, place) from None
            else:
                tail.follow(site, args.count)
    finally:
        site.close()
    return 0


class Tail:
    """Shows messages of a stream, each once.

    The stream is read by id: every look asks for the ids above the last watermark (R7), because at and above it ids may
    still come in between, and leaves out those that were shown. What arrives below the watermark, although its sender
    had declared that it would not, is not shown here (a group gets it, flagged late).
    """

    def __init__(self, consumer: Consumer, place: Place, *, where: str, as_json: bool) -> None:
        self._consumer = consumer
        self._place = place
        self._where = where
        self._as_json = as_json
        self._head = -1
        self._settled = 0
        """Every id up to this one is done with."""
        self._seen: set[tuple[int, int]] = set()
        """(id, substream) of what was shown above that."""

    def begin(self, count: int) -> dict[str, Any]:
        """Show the newest `count` messages and return what is known of the stream."""
        info = self._describe()
        if self._where:  # alone, so that a complaint about it counts its characters right
            self._consumer.query(self._where, stream=self._place.stream, limit=1)
        window = scan(self._consumer, self._place, where=self._where, after=max(0, info["closed_below"] - 1))
        self._seen = {(message.id, message.substream) for message in window}
        newest = f"{self._where} ORDER BY _id DESC LIMIT {count}".strip()
        found = self._consumer.query(newest, stream=self._place.stream, limit=count) if count else []
        for message in sorted(parts_of(found), key=lambda message: (message.id, message.substream)):
            self._show(message)
        self._mark(info)
        return info

    def follow(self, site: Site, count: int) -> None:
        """Show what there is and what comes until the stream, and those that follow it, are finished."""
        info = self._patiently(site, lambda: self.begin(count))
        while True:
            if info["finished"]:
                if not info["next_stream"]:
                    note(f"{self._place} is finished at id {info['last_id']}")
                    return
                self._turn_to(info["next_stream"])
            else:
                time.sleep(POLL_S)
            info = self._patiently(site, self._look)

    def _patiently(self, site: Site, look: Any) -> dict[str, Any]:
        """Repeat a look until the stream is there and the services answer."""
        said = ""
        while True:
            try:
                return look()  # type: ignore[no-any-return]
            except (UnknownStream, TransportError) as exc:
                if not said:
                    note(said := self._why(site, exc))
            time.sleep(POLL_S)

    def _why(self, site: Site, error: UnknownStream | TransportError) -> str:
        """Say what we wait for."""
        if isinstance(error, TransportError):
            return f"{error.message}; trying on"
        try:
            return f"{unknown(site, self._place).message}; waiting for it"
        except TransportError as exc:
            return f"{exc.message}; trying on"

    def _look(self) -> dict[str, Any]:
        """Show what is new."""
        info = self._describe()
        if info["head_seq"] != self._head:
            for message in scan(self._consumer, self._place, where=self._where, after=self._settled):
                if (message.id, message.substream) not in self._seen:
                    self._show(message)
            self._mark(info)
        return info

    def _describe(self) -> dict[str, Any]:
        return self._consumer.stream_info(stream=self._place.stream)

    def _show(self, message: Any) -> None:
        self._seen.add((message.id, message.substream))
        show_message(message, as_json=self._as_json)

    def _mark(self, info: dict[str, Any]) -> None:
        """Note how far we are, as known *before* the messages were read."""
        self._head = info["head_seq"]
        self._settled = max(self._settled, info["closed_below"] - 1)
        self._seen = {entry for entry in self._seen if entry[0] > self._settled}

    def _turn_to(self, stream: str) -> None:
        self._place = Place(self._place.beamtime, self._place.source, stream)
        self._head, self._settled, self._seen = -1, 0, set()
