"""Names of messages whose producer gave none: a path that says which message it is."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from asapo.errors import WrongInput
from asapo.models import check_id, check_name

_NAME: Final = re.compile(r"processed/([^/]+)/([^/]+)/([0-9]{1,19})(?:_([0-9]{1,10}))?\Z", re.ASCII)
KINDS: Final = ("processed/", "raw/")
"""A path that a producer of ASAP::O gave begins with one of them."""


class Named(NamedTuple):
    """The message that a name means."""

    source: str
    stream: str
    message_id: int
    substream: int


def exposed_name(named: Named) -> str:
    """Return the name of a message.

    >>> exposed_name(Named("det/1", "run1", 7, 2))
    'processed/det%2F1/run1/7_2'
    """
    part = f"_{named.substream}" if named.substream else ""
    return f"processed/{quote(named.source, safe='')}/{quote(named.stream, safe='')}/{named.message_id}{part}"


def read_name(name: str) -> Named:
    """Return the message that `exposed_name` named so.

    Raises
    ------
    WrongInput
        If it is no such name: another file is never meant.
    """
    found = _NAME.match(name)
    if found is None:
        raise WrongInput(f"file {name!r:.100}: expected the name of a message as its metadata give it")
    source, stream, message_id, substream = found.groups()
    try:
        names = [unquote_to_bytes(part).decode() for part in (source, stream)]
    except UnicodeDecodeError:
        raise WrongInput(f"file {name!r:.100}: expected UTF-8, percent-encoded") from None
    return Named(
        check_name("source", names[0]), check_name("stream", names[1]), check_id(int(message_id)), int(substream or 0)
    )
