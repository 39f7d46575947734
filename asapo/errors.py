"""Every error a caller of asapo can meet: one tree, with stable codes and fields instead of prose to parse."""

from __future__ import annotations

from typing import Any, ClassVar


class AsapoError(Exception):
    """Root of the tree.

    Attributes
    ----------
    code : str
        Stable name of the error; it travels on the wire and never changes meaning.
    retriable : bool
        True when the same call may succeed later without anything being changed by the caller.
    fields : dict of str to JSON value
        The facts of this error (sizes, ids, limits), also available as attributes.
    """

    code: ClassVar[str] = "asapo_error"
    retriable: ClassVar[bool] = False

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        super().__init__(message or self.code)
        self.message = message or self.code
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the fields when the error crosses a process border by the standard library's own means."""
        return _rebuild, (type(self), self.message, self.fields)


def _rebuild(kind: type[AsapoError], message: str, fields: dict[str, Any]) -> AsapoError:
    return kind(message, **fields)


class ConfigError(AsapoError):
    """A setting is unknown, has the wrong type, or is out of range; names key, value and what was expected."""

    code = "config_error"


class ProtocolError(AsapoError):
    """Somebody broke the wire protocol."""

    code = "protocol_error"


class LocalProtocolError(ProtocolError):
    """We broke it: a defect of this program."""

    code = "local_protocol_error"


class RemoteProtocolError(ProtocolError):
    """The peer broke it; its link is dropped and others are served on."""

    code = "remote_protocol_error"


class UnsupportedVersion(ProtocolError):
    """The peer or a file speaks a major version we do not know; fields `ours`, `theirs`."""

    code = "unsupported_version"


class TransportError(AsapoError):
    """The way to the peer failed."""

    code = "transport_error"
    retriable = True


class ConnectFailed(TransportError):
    """No connection could be made; field `address`."""

    code = "connect_failed"


class LinkLost(TransportError):
    """The connection was lost; field `address`."""

    code = "link_lost"


class DeadlineExceeded(TransportError):
    """No answer in time; field `after_s`."""

    code = "deadline_exceeded"


class RdmaUnavailable(TransportError):
    """RDMA was asked for, but pyverbs or a device is missing."""

    code = "rdma_unavailable"
    retriable = False


class Backpressure(AsapoError):
    """The receiving side is slower than the sender."""

    code = "backpressure"
    retriable = True


class QueueFull(Backpressure):
    """The bounded send queue has no room; fields `queued_bytes`, `limit_bytes`."""

    code = "queue_full"


class AccessError(AsapoError):
    """The caller may not do this."""

    code = "access_error"


class TokenRejected(AccessError):
    """The token is not valid."""

    code = "token_rejected"


class TokenExpired(AccessError):
    """The token was valid once."""

    code = "token_expired"


class BeamtimeForbidden(AccessError):
    """The token does not cover this beamtime."""

    code = "beamtime_forbidden"


class RequestError(AsapoError):
    """The request itself is wrong."""

    code = "request_error"


class WrongInput(RequestError):
    """A value is not acceptable; the message names the thing, the value, what was expected and the next step."""

    code = "wrong_input"


class DuplicateId(RequestError):
    """The id exists with other content; field `message_id`. The first content stays."""

    code = "duplicate_id"


class DuplicateFile(RequestError):
    """Another message has a file of this path; fields `path`, `message_id`. The first content stays."""

    code = "duplicate_file"


class OfflineUnsupported(RequestError):
    """A folder that was opened offline cannot do this; field `feature`."""

    code = "offline_unsupported"


class StorageError(AsapoError):
    """Bytes could not be stored or read."""

    code = "storage_error"


class DiskFull(StorageError):
    """No room on the tier; field `free_bytes`."""

    code = "disk_full"
    retriable = True


class QuotaExceeded(DiskFull):
    """No room left of what the facility gives a beamtime; fields `beamtime`, `limit_bytes`, `used_bytes`."""

    code = "quota_exceeded"


class OutOfMemory(StorageError):
    """The service has no memory for this now; nothing of it was done, and what it does for others goes on."""

    code = "out_of_memory"
    retriable = True


class ChecksumMismatch(StorageError):
    """Stored bytes are not the bytes that were sent; fields `expected`, `found`."""

    code = "checksum_mismatch"


class DamagedFile(StorageError):
    """A file is damaged; fields `path`, `offset`."""

    code = "damaged_file"


class UnsafePath(StorageError):
    """A link, or something that is no folder, lies in the way of a file on the tier; field `path`."""

    code = "unsafe_path"


class IndexUnavailable(StorageError):
    """The metadata index does not answer; nothing is acknowledged until it does."""

    code = "index_unavailable"
    retriable = True


class DeliveryError(AsapoError):
    """Delivery or its bookkeeping was misused."""

    code = "delivery_error"


class LeaseLost(DeliveryError):
    """The message was given to somebody else meanwhile; field `message_ids`."""

    code = "lease_lost"


class StreamBusy(DeliveryError):
    """A live session numbers this stream: give ids or a substream. Or it is to be deleted: finish it first."""

    code = "stream_busy"
    retriable = True


class GroupMismatch(DeliveryError):
    """The group exists with another filter or order; fields `group`, `expected`, `found`."""

    code = "group_mismatch"


class UnknownGroup(DeliveryError):
    """Nothing is known of the group: it never read the stream, or was deleted; fields `group`, `source`, `stream`."""

    code = "unknown_group"


class PayloadChanged(DeliveryError):
    """The buffer was changed between `send` and its release; nothing was stored."""

    code = "payload_changed"


class StreamState(AsapoError):
    """Not a fault but an answer about the stream."""

    code = "stream_state"


class NothingYet(StreamState):
    """There is nothing to read now; field `id_max`."""

    code = "nothing_yet"
    retriable = True


class StreamFinished(StreamState):
    """Everything was read and the stream is finished; fields `id_max`, `next_stream`."""

    code = "stream_finished"


class UnknownStream(StreamState):
    """No such stream; fields `stream`, `source`."""

    code = "unknown_stream"
    retriable = True


class Gap(StreamState):
    """No message has this id, and none will; fields `message_id`, `id_max`."""

    code = "gap"


class PartialDataset(StreamState):
    """The dataset is not complete; fields `have`, `dataset_size`."""

    code = "partial_dataset"


def _walk(kind: type[AsapoError]) -> dict[str, type[AsapoError]]:
    found = {kind.code: kind}
    for child in kind.__subclasses__():
        found |= _walk(child)
    return found


BY_CODE: dict[str, type[AsapoError]] = _walk(AsapoError)
"""Wire code to class; an unknown code (a newer peer) becomes `AsapoError`."""


def known(exc: AsapoError | MemoryError, what: str) -> AsapoError:
    """Return an error as one of ours; `what` could not be done."""
    if isinstance(exc, AsapoError):
        return exc
    return OutOfMemory(f"no memory to {what}; give the service more, or send less at once: it may work later")


def from_wire(code: str, message: str, fields: dict[str, Any]) -> AsapoError:
    """Rebuild an error that a peer reported."""
    return BY_CODE.get(code, AsapoError)(message, **fields)


def to_wire(error: AsapoError) -> dict[str, Any]:
    """Return the map by which an error travels: code, message, fields."""
    return {"code": error.code, "message": error.message, "fields": error.fields}
