"""Our errors as clients of ASAP::O understand them: HTTP status and code of the receiver."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from asapo.compat.structs import ErrorCode
from asapo.errors import (
    AccessError,
    AsapoError,
    Backpressure,
    DeliveryError,
    IndexUnavailable,
    LocalProtocolError,
    PartialDataset,
    PayloadChanged,
    ProtocolError,
    RequestError,
    StreamBusy,
    StreamFinished,
    StreamState,
    TransportError,
    UnsafePath,
    UnsupportedVersion,
)

_STATUS: Final[tuple[tuple[type[AsapoError], HTTPStatus], ...]] = (
    (UnsupportedVersion, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    # 403 would read as "try again later".
    (AccessError, HTTPStatus.UNAUTHORIZED),
    (RequestError, HTTPStatus.BAD_REQUEST),
    (PartialDataset, HTTPStatus.PARTIAL_CONTENT),
    (StreamState, HTTPStatus.CONFLICT),
    (Backpressure, HTTPStatus.SERVICE_UNAVAILABLE),
    (TransportError, HTTPStatus.SERVICE_UNAVAILABLE),
    (IndexUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (StreamBusy, HTTPStatus.SERVICE_UNAVAILABLE),
    (LocalProtocolError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (ProtocolError, HTTPStatus.BAD_REQUEST),
    (DeliveryError, HTTPStatus.BAD_REQUEST),
)
_CODES: Final[tuple[tuple[type[AsapoError], ErrorCode], ...]] = (
    (UnsupportedVersion, ErrorCode.NOT_SUPPORTED),
    (AccessError, ErrorCode.AUTHORIZATION),
    (RequestError, ErrorCode.WRONG_REQUEST),
    (StreamBusy, ErrorCode.INTERNAL),
    # The bytes changed on their way: sent again they may arrive whole.
    (PayloadChanged, ErrorCode.INTERNAL),
    (DeliveryError, ErrorCode.WRONG_REQUEST),
    (StreamFinished, ErrorCode.WRONG_REQUEST),
    (StreamState, ErrorCode.NO_DATA),
    (LocalProtocolError, ErrorCode.INTERNAL),
    (ProtocolError, ErrorCode.WRONG_REQUEST),
    (UnsafePath, ErrorCode.WRONG_REQUEST),
)


def http_status(error: AsapoError) -> HTTPStatus:
    """Return the status of an answer that tells `error`; what cannot be told is 500, which clients try again."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def error_code(error: AsapoError) -> ErrorCode:
    """Return the code by which a receiver refuses; those that clients try again are for what may pass."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ErrorCode.INTERNAL)
