"""What is sent back to a client of ASAP::O."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from asapo.compat.documents import NoMessage
from asapo.compat.jsontext import encode


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body; the body of an error is what the user reads."""

    body: bytes | memoryview = b""
    status: HTTPStatus = HTTPStatus.OK


def json_answer(document: Any) -> Answer:
    """Return a document."""
    return Answer(encode(document))


def no_message_answer(found: NoMessage) -> Answer:
    """Return why there is no message."""
    return Answer(found.encode(), HTTPStatus.CONFLICT)
