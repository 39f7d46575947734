"""Versions as the clients of ASAP::O write them, and which of them we serve."""

from __future__ import annotations

import re
from typing import Final

from asapo.errors import UnsupportedVersion, WrongInput

CLIENT_PROTOCOL: Final = "v0.7"
"""Of producer and consumer, in discovery, in the broker's paths and in the header of the receiver."""
DISCOVERY: Final = "v0.1"
AUTHORIZER: Final = "v0.2"
FILE_TRANSFER: Final = "v0.2"
DATA_SERVER: Final = "v0.1"

_VERSION: Final = re.compile(r"v([0-9]{1,4})\.([0-9]{1,3})\Z", re.ASCII)
_MINORS: Final = 1000


def version_number(text: object) -> int:
    """Return `vMAJOR.MINOR` as one number that can be compared.

    Raises
    ------
    WrongInput
        If it is no such text.

    >>> version_number("v0.7") < version_number("v0.11") < version_number("v1.0")
    True
    """
    found = _VERSION.match(text) if isinstance(text, str) else None
    if found is None:
        raise WrongInput(f"version {text!r:.40}: expected vMAJOR.MINOR such as {CLIENT_PROTOCOL}")
    return int(found[1]) * _MINORS + int(found[2])


def is_served(theirs: str, ours: str = CLIENT_PROTOCOL) -> bool:
    """Tell whether a peer of version `theirs` can be served: it is not newer than we are.

    Raises
    ------
    WrongInput
        If it is no version.
    """
    return version_number(theirs) <= version_number(ours)


def check_version(theirs: str, ours: str = CLIENT_PROTOCOL) -> None:
    """Raise UnsupportedVersion when the peer is newer than we are, WrongInput when it says no version at all."""
    if not is_served(theirs, ours):
        raise UnsupportedVersion(
            f"ASAP::O protocol {theirs}: this server speaks {ours} and older; use a client of release 25.3.0",
            ours=ours,
            theirs=theirs,
        )
