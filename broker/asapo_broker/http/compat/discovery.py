"""Where the services are, which versions they speak, and new group ids."""

from __future__ import annotations

import re
import secrets
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

from asapo.ask import Asker
from asapo.compat.documents import receivers_body, version_body
from asapo.compat.requests import CreateGroup, FindReceivers, FindService, ShowVersion
from asapo.wire.events import ListReceivers
from asapo_broker.http.compat.answer import Answer

RECEIVER_SCHEME: Final = "asapo-tcp://"
"""Begins the address under which a receiver takes what producers of ASAP::O send."""
_ADDRESS: Final = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}\Z|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}\Z", re.ASCII)


class Discovery:
    """Answers requests about services."""

    def __init__(self, core: Asker) -> None:
        self._core = core

    def receivers(self, request: FindReceivers) -> Answer:
        """List the receivers that take what producers of ASAP::O send; without any, these wait and ask again."""
        answer = self._core.ask(ListReceivers)
        assert isinstance(answer, dict)
        addresses = [address for receiver in answer["receivers"] for address in receiver["addresses"]]
        ours = [address.removeprefix(RECEIVER_SCHEME) for address in addresses if address.startswith(RECEIVER_SCHEME)]
        return Answer(receivers_body(ours))

    def service(self, request: FindService, host: str) -> Answer:
        """Tell the address of a service: all of them are this one, under the name by which the client reached it."""
        if not _ADDRESS.match(host):
            return Answer(b"Host: expected host:port", HTTPStatus.BAD_REQUEST)
        return Answer(host.encode())

    def version(self, request: ShowVersion) -> Answer:
        """Tell what we speak, and whether the client is served."""
        return Answer(version_body(version("asapo"), request.protocol))

    def new_group(self, request: CreateGroup) -> Answer:
        """Return a group id that nobody has."""
        return Answer(secrets.token_hex(10).encode())
