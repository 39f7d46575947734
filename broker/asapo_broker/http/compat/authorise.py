"""Who may do what: the place where tokens will be looked at."""

from __future__ import annotations

import enum
import logging
from typing import Final, Protocol

from asapo.compat.requests import CompatRequest, DeleteStream

log = logging.getLogger(__name__)


class Right(enum.Enum):
    """What a request needs."""

    READ = "read"
    WRITE = "write"


WRITING: Final = (DeleteStream,)
"""Requests that change what is stored. Acknowledging is part of reading."""


class Authoriser(Protocol):
    """Decides on each request before it is carried out."""

    def check(self, request: CompatRequest, right: Right) -> None:
        """Return when the request's token gives this right on its beamtime.

        Raises
        ------
        AccessError
            If it does not; the client is answered 401.
        """


class AnyToken:
    """Takes every token: for a front that only this machine can reach."""

    def __init__(self) -> None:
        log.info("clients of ASAP::O: any token is accepted, because only this machine can connect")

    def check(self, request: CompatRequest, right: Right) -> None:
        """Return."""


def right_of(request: CompatRequest) -> Right:
    """Return what a request needs."""
    return Right.WRITE if isinstance(request, WRITING) else Right.READ
