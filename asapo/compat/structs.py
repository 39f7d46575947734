"""The two structs of ASAP::O's TCP services: a request header of 2120 bytes, an answer of 1028 bytes.

Both are C structs of a 64-bit machine, little-endian. Text in them ends at the first NUL; what stands behind it is old
memory of the client and never looked at, and so is the padding.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from asapo.compat.version import CLIENT_PROTOCOL
from asapo.errors import WrongInput

Buffer: TypeAlias = bytes | bytearray | memoryview

_REQUEST: Final = struct.Struct("<B7xQQQ3Q1024s1024s10s6x")
_RESPONSE: Final = struct.Struct("<BxH1024s")
REQUEST_BYTES: Final = _REQUEST.size
"""2120."""
RESPONSE_BYTES: Final = _RESPONSE.size
"""1028."""
MAX_TEXT_BYTES: Final = 1023
"""Longest text in a struct; one more is the NUL."""
MAX_VERSION_BYTES: Final = 9
U64: Final = 2**64


class Opcode(enum.IntEnum):
    """What a request is; the numbers 4, 5, 9 and 10 come from clients before 25.3.0 only."""

    UNKNOWN = 1
    TRANSFER_DATA = 2
    TRANSFER_DATASET = 3
    STREAM_INFO = 4
    LAST_STREAM = 5
    GET_BUFFER = 6
    AUTHORIZE = 7
    TRANSFER_METADATA = 8
    DELETE_STREAM = 9
    GET_METADATA = 10


class ErrorCode(enum.IntEnum):
    """What a server answers."""

    OK = 0
    REAUTHORIZE = 1
    WARNING = 2
    """Delivered, with a word of warning."""
    WRONG_REQUEST = 3
    """Refused for good; the client tells its user."""
    NOT_SUPPORTED = 4
    """The client drops the request and tells nobody: only for protocols that are newer than ours."""
    NO_DATA = 5
    AUTHORIZATION = 6
    INTERNAL = 65535
    """The client tries again until its timeout."""


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """A request header as it lay in memory; what its fields mean depends on the opcode."""

    op_code: int
    data_id: int = 0
    data_size: int = 0
    meta_size: int = 0
    custom: tuple[int, int, int] = (0, 0, 0)
    message: bytes = b""
    """File name, without its NUL."""
    stream: bytes = b""
    api_version: bytes = field(default=CLIENT_PROTOCOL.encode())

    def __post_init__(self) -> None:
        if type(self.op_code) is not int or not 0 <= self.op_code <= 255:
            raise WrongInput(f"opcode {self.op_code!r}: expected an integer from 0 to 255")
        numbers = {"data_id": self.data_id, "data_size": self.data_size, "meta_size": self.meta_size}
        for name, value in (numbers | {f"custom[{n}]": value for n, value in enumerate(self.custom)}).items():
            if type(value) is not int or not 0 <= value < U64:
                raise WrongInput(f"{name} {value!r}: expected an integer from 0 to 2**64 - 1")
        for name, text, limit in (
            ("message", self.message, MAX_TEXT_BYTES),
            ("stream", self.stream, MAX_TEXT_BYTES),
            ("api_version", self.api_version, MAX_VERSION_BYTES),
        ):
            if type(text) is not bytes or len(text) > limit or b"\0" in text:
                raise WrongInput(f"{name} {text!r:.40}: expected at most {limit} bytes without NUL")


def encode_request(header: RequestHeader) -> bytes:
    """Return the 2120 bytes of a request header."""
    return _REQUEST.pack(
        header.op_code,
        header.data_id,
        header.data_size,
        header.meta_size,
        *header.custom,
        header.message,
        header.stream,
        header.api_version,
    )


def decode_request(data: Buffer) -> RequestHeader:
    """Read a request header.

    Raises
    ------
    WrongInput
        If it has not 2120 bytes, or a text does not end inside its field: this is no client of ASAP::O.
    """
    _check_length(data, REQUEST_BYTES, "request header")
    op_code, data_id, data_size, meta_size, *custom, message, stream, version = _REQUEST.unpack(data)
    return RequestHeader(
        op_code,
        data_id,
        data_size,
        meta_size,
        (custom[0], custom[1], custom[2]),
        _text("message", message),
        _text("stream", stream),
        _text("api_version", version),
    )


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: echo of the opcode, an error code, and a text for the user."""

    op_code: int
    error_code: int = ErrorCode.OK
    message: str = ""


def encode_response(response: Response) -> bytes:
    """Return the 1028 bytes of an answer; a longer text is cut between two characters, NUL in it becomes a blank."""
    text = response.message.replace("\0", " ").encode("utf-8", "replace")[:MAX_TEXT_BYTES]
    return _RESPONSE.pack(response.op_code, response.error_code, text.decode("utf-8", "ignore").encode())


def decode_response(data: Buffer) -> Response:
    """Read an answer.

    Raises
    ------
    WrongInput
        If it has not 1028 bytes, or its text does not end.
    """
    _check_length(data, RESPONSE_BYTES, "response")
    op_code, error_code, message = _RESPONSE.unpack(data)
    return Response(op_code, error_code, _text("message", message).decode("utf-8", "replace"))


def _check_length(data: Buffer, expected: int, what: str) -> None:
    if (found := memoryview(data).nbytes) != expected:
        raise WrongInput(f"{what} of {found} bytes: expected {expected}")


def _text(name: str, field_bytes: bytes) -> bytes:
    text, ended, _ = field_bytes.partition(b"\0")
    if not ended:
        raise WrongInput(f"{name}: expected text that ends by NUL within {len(field_bytes)} bytes")
    return text
