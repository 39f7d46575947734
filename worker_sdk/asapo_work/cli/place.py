"""What the reading commands have in common: the services' address, and which beamtime, source and stream is meant."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote

from asapo.ask import Asker
from asapo.errors import ConnectFailed, DeadlineExceeded, TransportError, UnknownStream, WrongInput
from asapo.models import StreamRef, check_name
from asapo.wire.events import ListReceivers
from asapo_work.consumer import Consumer

DEFAULT_URL: Final = "asapo://127.0.0.1:8400"
ANSWER_S: Final = 10.0
"""How long the services may take for an answer."""
SHOWN_NAMES: Final = 8
"""Names listed when the one that was asked for does not exist."""

_URL: Final = re.compile(r"[a-z]+://\S+\Z")
_ESCAPE: Final = re.compile(r"%(?=[0-9A-Fa-f]{2})|/")


@dataclass(frozen=True, slots=True)
class Place:
    """What a path such as BEAMTIME/SOURCE/STREAM names; what it leaves out is empty."""

    beamtime: str = ""
    source: str = ""
    stream: str = ""

    def __str__(self) -> str:
        return "/".join(map(shown_name, filter(None, (self.beamtime, self.source, self.stream))))


def add_common_arguments(parser: argparse.ArgumentParser, words: str, words_help: str) -> None:
    """Declare the options that all reading commands share; `words` is how their other arguments are shown."""
    parser.add_argument("words", nargs="*", metavar=words, help=f"{words_help}; a URL may stand before it")
    parser.add_argument("--url", default="", help=f"address of the services (default: $ASAPO_URL, else {DEFAULT_URL})")
    parser.add_argument(
        "--beamtime", default="", help="beamtime (default: $ASAPO_BEAMTIME, else the only one there is)"
    )
    parser.add_argument("--source", default="", help="data source, exactly as it is named")
    parser.add_argument("--stream", default="", help="stream, exactly as it is named (default: default)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=ANSWER_S,
        metavar="S",
        dest="timeout_s",
        help=f"longest wait for an answer, seconds (default: {ANSWER_S:g})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def take_url(args: argparse.Namespace) -> str:
    """Return the services' address, taking it out of `args.words` when it stands there."""
    words: list[str] = args.words
    if words and _URL.match(words[0]):
        if args.url:
            raise WrongInput(f"two addresses, {args.url!r} and {words[0]!r}: expected one")
        return words.pop(0)
    return args.url or os.environ.get("ASAPO_URL", "") or DEFAULT_URL


def parse_path(text: str) -> list[str]:
    """Return the names in a path; `%2F` stands for a slash within a name.

    >>> parse_path("det/run%2F1")
    ['det', 'run/1']
    """
    names = [unquote(part, errors="strict") if "%" in part else part for part in text.split("/")]
    if not all(names) or len(names) > 3:
        raise WrongInput(f"{text!r}: expected BEAMTIME/SOURCE/STREAM or its end; write %2F for a slash within a name")
    return names


def shown_name(name: str) -> str:
    """Return a name as paths on the command line have it; blanks and letters of all scripts stay as they are.

    >>> shown_name("run/1 a"), shown_name("50%"), shown_name("50%20")
    ('run%2F1 a', '50%', '50%2520')
    """
    name = _ESCAPE.sub(lambda found: quote(found[0], safe=""), name)
    return "".join(char if char.isprintable() else quote(char, safe="") for char in name)


class Site:
    """The services behind one address, and what they hold. Fails at once when nobody listens there."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._asker = Asker(url, timeout_s=timeout_s)

    def listing(self) -> dict[str, Any]:
        """Return the receivers that are alive and the beamtimes.

        Raises
        ------
        ConnectFailed
            If the services are not there.
        """
        try:
            answer = self._asker.ask(ListReceivers)
        except DeadlineExceeded as exc:
            raise ConnectFailed(f"{exc.message}; is this the address of a broker, and is it well?") from exc
        except TransportError as exc:
            raise ConnectFailed(
                f"no services at {self.url} ({exc.message}); start them with `asapo up`, or give their address: "
                "as first argument, by --url or in ASAPO_URL",
                address=self.url,
            ) from exc
        return answer if isinstance(answer, dict) else {}

    def beamtimes(self) -> list[str]:
        """Return the beamtimes that hold something."""
        return list(self.listing().get("beamtimes", ()))

    def consumer(self, place: Place, **settings: Any) -> Consumer:
        """Return a consumer of the place's beamtime."""
        return Consumer(self.url, beamtime=place.beamtime, source=place.source, timeout_s=self.timeout_s, **settings)

    def close(self) -> None:
        """End the link."""
        self._asker.close()


def stream_place(args: argparse.Namespace, site: Site, path: str) -> Place:
    """Return the stream that a path (or the options instead of it) names; beamtime and stream have defaults.

    Raises
    ------
    WrongInput
        If no source is named, or there is not exactly one beamtime and none is named.
    """
    given = parse_path(path) if path else []
    if len(given) == 1:
        given.append("")
    beamtime, source, stream = [*[""] * (3 - len(given)), *given]
    beamtime, source, stream = named_once(args, beamtime, source, stream)
    place = Place(beamtime_of(site, beamtime), source, stream or "default")
    if not place.source:
        raise WrongInput("no data source named: expected SOURCE/STREAM, for example det/run1; `asapo ls` shows them")
    StreamRef(place.beamtime, place.source, place.stream)
    return place


def beamtime_of(site: Site, named: str) -> str:
    """Return the beamtime that is named, by the environment if not otherwise; else the only one there is."""
    there = site.beamtimes()  # asked for in any case: says at once when there are no services
    return named or os.environ.get("ASAPO_BEAMTIME", "") or _only(there, site.url)


def named_once(args: argparse.Namespace, beamtime: str, source: str, stream: str) -> tuple[str, str, str]:
    """Return the names of a path with those of the options; the same thing named by both is a mistake."""
    names = []
    for kind, from_path in (("beamtime", beamtime), ("source", source), ("stream", stream)):
        option = getattr(args, kind)
        if option and from_path:
            raise WrongInput(f"two {kind}s, {option!r} by --{kind} and {from_path!r} in the path: expected one")
        names.append(option or from_path)
    return names[0], names[1], names[2]


def _only(beamtimes: list[str], url: str) -> str:
    if len(beamtimes) == 1:
        return beamtimes[0]
    if not beamtimes:
        raise UnknownStream(f"{url} holds no beamtime yet; send something first, for example by `asapo simulate`")
    raise WrongInput(f"several beamtimes ({_some(beamtimes)}): name one by --beamtime or BEAMTIME/SOURCE/STREAM")


def unknown(site: Site, place: Place) -> UnknownStream:
    """Return the error that says which name of a place does not exist, and which do."""
    beamtimes = site.beamtimes()
    if place.beamtime not in beamtimes:
        return _unknown("beamtime", place.beamtime, beamtimes, f"at {site.url}", place)
    with site.consumer(Place(place.beamtime)) as consumer:
        streams = consumer.streams(source="")
    sources = list(dict.fromkeys(entry["source"] for entry in streams))
    if place.source not in sources:
        where = f"in beamtime {shown_name(place.beamtime)}"
        if place.source in beamtimes:
            where += " (a path that begins with a beamtime has all three, BEAMTIME/SOURCE/STREAM)"
        return _unknown("source", place.source, sources, where, place)
    names = [entry["stream"] for entry in streams if entry["source"] == place.source]
    return _unknown("stream", place.stream, names, f"in {Place(place.beamtime, place.source)}", place)


def _unknown(kind: str, name: str, there: list[str], where: str, place: Place) -> UnknownStream:
    check_name(kind, name)
    close = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(shown_name, close))}? " if close else ""
    what = f"there is {_some(there)}" if there else "there is none yet"
    return UnknownStream(
        f"no {kind} {shown_name(name)!r} {where}: {hint}{what}",
        beamtime=place.beamtime,
        source=place.source,
        stream=place.stream,
        there=there[:100],
    )


def _some(names: Iterable[str]) -> str:
    names = [shown_name(name) for name in names]
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
