"""What a producer of ASAP::O asks of a receiver, read from the header of its request."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias

from asapo.compat.jsontext import decode_object
from asapo.compat.metadata import MetadataMode, metadata_mode
from asapo.compat.structs import MAX_TEXT_BYTES, Opcode, RequestHeader
from asapo.compat.version import CLIENT_PROTOCOL, DATA_SERVER, check_version
from asapo.errors import WrongInput
from asapo.models import MAX_ID, check_name

FINISH_NAME: Final = b"asapo_finish_stream"
"""File name that makes of a metadata-only message the mark of a finished stream."""
NO_NEXT_STREAM: Final = "asapo_no_next"
BEAMTIME_META_NAME: Final = b"beamtime_global.meta"
MAX_SUBSTREAM: Final = 2**31 - 1
SEPARATOR: Final = "§"


class IngestMode(enum.IntFlag):
    """What becomes of a message; bits that are not named here are refused."""

    TRANSFER_DATA = 1
    METADATA_ONLY = 2
    STORE_FILE = 4
    INDEX = 8
    RAW_TO_CORE = 16
    """Files of a `raw` producer go to the core storage instead of the beamline's."""


DEFAULT_MODE: Final = IngestMode.TRANSFER_DATA | IngestMode.STORE_FILE | IngestMode.INDEX
"""13."""
CACHE_ONLY_MODE: Final = IngestMode.TRANSFER_DATA | IngestMode.INDEX
"""9."""
_ALL_BITS: Final = 31


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message, or one part of a dataset."""

    message_id: int
    """0: the receiver gives the next one."""
    name: str
    """Path under which the producer wants the message to be known."""
    stream: str
    mode: IngestMode
    data_bytes: int
    """Bytes that follow the metadata; 0 without bit 0, whatever the header says."""
    meta_bytes: int
    substream: int = 0
    dataset_size: int = 0

    @property
    def indexed(self) -> bool:
        """Whether it becomes a message that readers find."""
        return bool(self.mode & IngestMode.INDEX) or self.mode == IngestMode.METADATA_ONLY

    @property
    def cached(self) -> bool:
        """Whether its bytes are kept for the data server."""
        return bool(self.mode & IngestMode.TRANSFER_DATA)

    @property
    def stored(self) -> bool:
        """Whether its bytes become a file."""
        return self.cached and bool(self.mode & IngestMode.STORE_FILE)


@dataclass(frozen=True, slots=True)
class FinishStream:
    """No message above `last_id` will come; the metadata that follow name the next stream (`read_next_stream`)."""

    stream: str
    last_id: int
    meta_bytes: int


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """A metadata document of the beamtime, or of one stream, follows."""

    stream: str
    """Empty: the beamtime."""
    mode: MetadataMode
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Authorize:
    """Credentials follow, to be read by `credentials.read_credentials`."""

    meta_bytes: int


@dataclass(frozen=True, slots=True)
class GetBuffer:
    """A consumer asks the data server for the bytes of a message."""

    buffer_id: int
    data_bytes: int
    """What the consumer takes for the size of the payload: another one is answered by "no data"."""
    reader: tuple[str, ...]
    """Instance, step, beamtime, source, stream of the consumer; empty when it does not tell."""


ReceiverRequest: TypeAlias = Transfer | FinishStream | SetMetadata | Authorize | GetBuffer


def body_bytes(header: RequestHeader) -> tuple[int, int]:
    """Return the bytes of metadata and of data that follow this header, also when the request is refused.

    An answer that comes before the client has sent them is never seen by it.

    Raises
    ------
    WrongInput
        If the opcode is not known: what follows cannot be told, so the connection ends.
    """
    match header.op_code:
        case Opcode.TRANSFER_DATA | Opcode.TRANSFER_DATASET:
            # With metadata only, data_size is the length of the user's buffer, which is not sent.
            return header.meta_size, header.data_size if header.custom[0] & IngestMode.TRANSFER_DATA else 0
        case Opcode.AUTHORIZE:
            return header.meta_size, 0
        case Opcode.TRANSFER_METADATA:
            return 0, header.data_size
        case Opcode.STREAM_INFO | Opcode.LAST_STREAM | Opcode.GET_BUFFER | Opcode.DELETE_STREAM | Opcode.GET_METADATA:
            return 0, 0
    raise WrongInput(f"opcode {header.op_code}: expected 2 to 10")


def read_request(header: RequestHeader) -> ReceiverRequest:
    """Return what is asked for.

    Raises
    ------
    UnsupportedVersion
        If the client speaks a newer protocol than we do (error code 4).
    WrongInput
        If something in the header is not acceptable, or clients of 25.3.0 ask the broker for it (error code 3).
    """
    ours = DATA_SERVER if header.op_code == Opcode.GET_BUFFER else CLIENT_PROTOCOL
    check_version(header.api_version.decode("ascii", "replace"), ours)
    meta_bytes, data_bytes = body_bytes(header)
    match header.op_code:
        case Opcode.AUTHORIZE:
            return Authorize(meta_bytes)
        case Opcode.TRANSFER_METADATA:
            return SetMetadata(_metadata_stream(header), metadata_mode(header.custom[1]), data_bytes)
        case Opcode.GET_BUFFER:
            return GetBuffer(header.data_id, header.data_size, _reader(header.stream))
        case Opcode.TRANSFER_DATA if header.message == FINISH_NAME and header.custom[0] == IngestMode.METADATA_ONLY:
            if not 1 <= header.data_id <= MAX_ID:
                raise WrongInput(f"finish mark with id {header.data_id}: expected the last id + 1, from 1 to 2**63 - 1")
            return FinishStream(_stream(header.stream), header.data_id - 1, meta_bytes)
        case Opcode.TRANSFER_DATA | Opcode.TRANSFER_DATASET:
            return _transfer(header, meta_bytes, data_bytes)
    raise WrongInput(
        f"{Opcode(header.op_code).name.lower().replace('_', ' ')} asked of a receiver: clients of release 25.3.0 ask "
        "the broker; use that release"
    )


def _transfer(header: RequestHeader, meta_bytes: int, data_bytes: int) -> Transfer:
    if header.data_id > MAX_ID:
        raise WrongInput(f"message id {header.data_id}: expected 0 (the next one) to 2**63 - 1")
    substream = dataset_size = 0
    if header.op_code == Opcode.TRANSFER_DATASET:
        substream, dataset_size = header.custom[1:]
        if not 1 <= substream <= MAX_SUBSTREAM or not 1 <= dataset_size <= MAX_SUBSTREAM:
            raise WrongInput(
                f"part {substream} of a dataset of {dataset_size}: expected both from 1 to {MAX_SUBSTREAM}"
            )
        if not header.data_id:
            raise WrongInput("part of a dataset without an id: expected 1 or more, the same for all of its parts")
    return Transfer(
        header.data_id,
        _whole_text("file name", header.message),
        _stream(header.stream),
        ingest_mode(header.custom[0], data_bytes),
        data_bytes,
        meta_bytes,
        substream,
        dataset_size,
    )


def ingest_mode(bits: int, data_bytes: int) -> IngestMode:
    """Return the mode of a message.

    Raises
    ------
    WrongInput
        If a bit is unknown, if it is both with and without data or neither, if nothing would become of it, or if data
        are promised and empty.
    """
    mode = IngestMode(bits & _ALL_BITS)
    with_data = bool(mode & IngestMode.TRANSFER_DATA)
    if bits != mode:
        raise WrongInput(f"ingest mode {bits}: expected a sum of 1, 2, 4, 8, 16")
    if with_data == bool(mode & IngestMode.METADATA_ONLY):
        raise WrongInput(f"ingest mode {bits}: expected exactly one of 1 (with data) and 2 (metadata only)")
    if with_data and not mode & (IngestMode.STORE_FILE | IngestMode.INDEX):
        raise WrongInput(
            f"ingest mode {bits}: expected 4 (file) or 8 (index) beside 1, else nothing becomes of the data"
        )
    if with_data and not data_bytes:
        raise WrongInput(f"ingest mode {bits} with 0 bytes: expected data; use mode 2 or 10 for metadata only")
    return mode


def read_next_stream(metadata: bytes) -> str:
    """Return the next stream that the metadata of a finish mark name; empty when there is none.

    Raises
    ------
    WrongInput
        If it is no JSON object, or the name is no name.
    """
    name = decode_object("metadata of the finish mark", metadata).get("next_stream", NO_NEXT_STREAM)
    if name in ("", NO_NEXT_STREAM):
        return ""
    return check_name("next stream", name)


def _metadata_stream(header: RequestHeader) -> str:
    """Return the stream that a metadata document belongs to; the file name says the same."""
    if not header.stream:
        if header.message != BEAMTIME_META_NAME:
            raise WrongInput(
                f"metadata {header.message!r:.60} without a stream: expected the name {BEAMTIME_META_NAME.decode()}"
            )
        return ""
    return _stream(header.stream)


def _stream(raw: bytes) -> str:
    return check_name("stream", _whole_text("stream", raw))


def _whole_text(what: str, raw: bytes) -> str:
    """Return the text of a field. One that fills it was cut by the client, so two names may have become the same."""
    if len(raw) >= MAX_TEXT_BYTES:
        raise WrongInput(
            f"{what} {raw[:40]!r}... of {len(raw)} bytes: expected at most {MAX_TEXT_BYTES - 1}, because clients cut "
            "longer ones without a word; shorten it"
        )
    if not raw:
        raise WrongInput(f"{what}: found no text, expected a name")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise WrongInput(f"{what} {raw[:40]!r}: expected UTF-8") from None


def _reader(raw: bytes) -> tuple[str, ...]:
    """Return who reads, for statistics only: nothing is wrong with any text."""
    return tuple(raw.decode("utf-8", "replace").split(SEPARATOR)) if raw else ()
