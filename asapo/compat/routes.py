"""The HTTP routes of ASAP::O as data, and what a request means as a frozen record.

A path is split at `/` first and its parts are decoded then: names of sources, streams and groups may hold `%2F`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from asapo.compat import version
from asapo.compat.credentials import DEFAULT_SOURCE, check_beamtime
from asapo.compat.documents import STREAM_FILTERS
from asapo.compat.ingest import MAX_SUBSTREAM
from asapo.compat.jsontext import decode_object
from asapo.compat.requests import (
    BY_ARRIVAL,
    BY_ID,
    Acknowledge,
    BeamtimeMetadata,
    ById,
    CompatRequest,
    CreateGroup,
    DeleteStream,
    FindReceivers,
    FindService,
    FolderToken,
    Last,
    LastAcknowledged,
    NegAcknowledge,
    Next,
    Parts,
    PersistStream,
    QueryMessages,
    Resend,
    SetMarker,
    ShowVersion,
    Size,
    Sources,
    StreamMetadata,
    Streams,
    TransferFile,
    Unacknowledged,
)
from asapo.compat.version import check_version
from asapo.errors import WrongInput
from asapo.models import MAX_ID, check_id, check_name

MAX_PATH_BYTES: Final = 8 * 1024
MAX_QUERY_BYTES: Final = 32 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
MAX_DELAY_MS: Final = 2**31 - 1
NO_GROUP: Final = "0"
_VERSION_PART: Final = re.compile(rb"v[0-9]{1,4}\.[0-9]{1,3}\Z")
_NUMBER: Final = re.compile(r"[0-9]{1,19}\Z", re.ASCII)


class _Parameters:
    """The parameters of a request; unknown ones are never looked at."""

    def __init__(self, query: bytes) -> None:
        self._values: dict[str, str] = {}
        for pair in query.split(b"&") if query else ():
            name, _, value = pair.partition(b"=")
            # As clients escape them: a plus is a plus.
            self._values.setdefault(_decoded("parameter", name), _decoded("parameter", value))

    def text(self, name: str, default: str = "") -> str:
        return self._values.get(name, default)

    def flag(self, name: str) -> bool:
        value = self.text(name, "false")
        if value not in ("true", "false"):
            raise WrongInput(f"{name}={value:.40}: expected true or false")
        return value == "true"

    def number(self, name: str, largest: int = MAX_ID, default: int = 0) -> int:
        return _number(name, self._values[name], largest) if name in self._values else default

    def has(self, name: str) -> bool:
        return name in self._values


@dataclass(frozen=True, slots=True)
class _Call:
    """A request on its way to its record: the parts of the path that are no constants, parameters, body."""

    parts: tuple[str, ...]
    given: _Parameters
    body: bytes

    @property
    def common(self) -> dict[str, Any]:
        """What all requests have."""
        return {"token": self.given.text("token")}

    @property
    def of_source(self) -> dict[str, Any]:
        """The same with beamtime and source, the first two parts. Where a stream would stand, clients write 0."""
        beamtime, source = self.parts[:2]
        return {
            **self.common,
            "beamtime": check_beamtime(beamtime),
            "source": check_name("source", source or DEFAULT_SOURCE),
        }

    @property
    def named(self) -> dict[str, Any]:
        """The same with the stream, the third part."""
        return {**self.of_source, "stream": check_name("stream", self.parts[2])}

    @property
    def grouped(self) -> dict[str, Any]:
        """The same with the group, the fourth part."""
        return {**self.named, "group": check_name("group", self.parts[3])}

    @property
    def dataset(self) -> Parts | None:
        """Which parts of a dataset are wanted."""
        if not self.given.flag("dataset"):
            return None
        return Parts(
            min_parts=self.given.number("minsize", MAX_SUBSTREAM),
            substream=self.given.number("substream", MAX_SUBSTREAM),
        )

    @property
    def protocol(self) -> str:
        """What the client speaks; checked where a newer one is refused."""
        return self.given.text("protocol", version.CLIENT_PROTOCOL)


# -- one for each route -------------------------------------------------------------------------------------------


def _receivers(call: _Call) -> CompatRequest:
    check_version(call.protocol)
    return FindReceivers(protocol=call.protocol)


def _service(name: str) -> Callable[[_Call], CompatRequest]:
    def make(call: _Call) -> CompatRequest:
        check_version(call.protocol)
        return FindService(**call.common, service=name, protocol=call.protocol)

    return make


def _version(call: _Call) -> CompatRequest:
    version.version_number(call.protocol)
    return ShowVersion(**call.common, protocol=call.protocol)


def _next(call: _Call) -> CompatRequest:
    by = call.given.text("id_key", BY_ID)
    if by not in (BY_ID, BY_ARRIVAL):
        raise WrongInput(f"id_key={by:.40}: expected {BY_ID} or {BY_ARRIVAL}")
    resend = None
    if call.given.flag("resend_nacks"):
        resend = Resend(
            delay_s=call.given.number("delay_ms", MAX_DELAY_MS) / 1000,
            attempts=call.given.number("resend_attempts", MAX_DELAY_MS),
        )
    return Next(**call.grouped, by=by, dataset=call.dataset, resend=resend)


def _last(call: _Call) -> CompatRequest:
    return Last(**call.named, dataset=call.dataset)


def _grouped_last(call: _Call) -> CompatRequest:
    return Last(**call.grouped, dataset=call.dataset)


def _by_id(call: _Call) -> CompatRequest:
    message_id = _number("message id", call.parts[3], MAX_ID)
    return ById(**call.named, message_id=check_id(message_id), dataset=call.dataset)


def _query(call: _Call) -> CompatRequest:
    return QueryMessages(**call.named, text=_decoded_body(call.body))


def _size(call: _Call) -> CompatRequest:
    datasets = ""
    if call.given.has("incomplete"):
        datasets = "all" if call.given.flag("incomplete") else "complete"
    return Size(**call.named, datasets=datasets)


def _streams(call: _Call) -> CompatRequest:
    given = call.given
    which = given.text("filter") or "all"
    if which not in STREAM_FILTERS:
        raise WrongInput(f"filter={which:.40}: expected one of {', '.join(STREAM_FILTERS)}")
    single = given.flag("single")
    first = given.text("from")
    if single:
        check_name("stream", first)
    return Streams(**call.of_source, first=first, which=which, single=single, last=given.flag("last"))


def _sources(call: _Call) -> CompatRequest:
    return Sources(**call.of_source)


def _message_operation(call: _Call) -> CompatRequest:
    fields = decode_object("body", call.body)
    message_id = check_id(_number("message id", call.parts[4], MAX_ID))
    operation = fields.get("Op")
    if operation == "ackmessage":
        return Acknowledge(**call.grouped, message_id=message_id)
    if operation == "negackmessage":
        given = fields.get("Params", {})
        delay_ms = given.get("DelayMs", 0) if type(given) is dict else None
        if type(delay_ms) is not int or not 0 <= delay_ms <= MAX_DELAY_MS:
            raise WrongInput(f"DelayMs {delay_ms!r:.40}: expected an integer from 0 to {MAX_DELAY_MS}")
        return NegAcknowledge(**call.grouped, message_id=message_id, delay_s=delay_ms / 1000)
    raise WrongInput(f"Op {operation!r:.40}: expected ackmessage or negackmessage")


def _unacknowledged(call: _Call) -> CompatRequest:
    return Unacknowledged(**call.grouped, first=call.given.number("from"), last=call.given.number("to"))


def _last_acknowledged(call: _Call) -> CompatRequest:
    return LastAcknowledged(**call.grouped)


def _set_marker(call: _Call) -> CompatRequest:
    return SetMarker(**call.grouped, value=call.given.number("value"))


def _metadata(call: _Call) -> CompatRequest:
    kind = call.parts[3]
    if kind == "0":
        return BeamtimeMetadata(**call.of_source)
    if kind == "1":
        return StreamMetadata(**call.named)
    raise WrongInput(f"meta/{kind:.40}: expected meta/0 (beamtime) or meta/1 (stream)")


def _delete(call: _Call) -> CompatRequest:
    fields = decode_object("body", call.body) if call.body else {}
    flags = {name: fields.get(name, True) for name in ("ErrorOnNotExist", "DeleteMeta")}
    for name, value in flags.items():
        if type(value) is not bool:
            raise WrongInput(f"{name} {value!r:.40}: expected true or false")
    return DeleteStream(**call.named, error_if_absent=flags["ErrorOnNotExist"], with_metadata=flags["DeleteMeta"])


def _persist(call: _Call) -> CompatRequest:
    return PersistStream(**call.named)


def _folder(call: _Call) -> CompatRequest:
    fields = decode_object("body", call.body)
    token = fields.get("Token", call.given.text("token"))
    return FolderToken(
        token=_text_field("Token", token),
        beamtime=check_beamtime(fields.get("BeamtimeId")),
        folder=_text_field("Folder", fields.get("Folder")),
    )


def _transfer(call: _Call) -> CompatRequest:
    fields = decode_object("body", call.body)
    size_only = call.given.flag("sizeonly")
    beamtime = call.given.text("beamtime")
    return TransferFile(
        **call.common,
        # Who asks for the size only does not say it.
        beamtime="" if size_only and not beamtime else check_beamtime(beamtime),
        name=_text_field("FileName", fields.get("FileName")),
        size_only=size_only,
    )


def _text_field(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise WrongInput(f"{name} {value!r:.40}: expected text")
    return value


_STREAM: Final = ("beamtime", None, None, None)
_VERSIONS: Final = {
    "discovery": version.DISCOVERY,
    "authorizer": version.AUTHORIZER,
    "file transfer": version.FILE_TRANSFER,
    "broker": version.CLIENT_PROTOCOL,
}
"""Service to the newest version in its paths that we serve."""

ROUTES: Final[tuple[tuple[str, str, tuple[str | None, ...], Callable[[_Call], CompatRequest]], ...]] = (
    ("discovery", "GET", ("asapo-receiver",), _receivers),
    ("discovery", "GET", ("asapo-broker",), _service("asapo-broker")),
    ("discovery", "GET", ("asapo-file-transfer",), _service("asapo-file-transfer")),
    ("discovery", "GET", ("version",), _version),
    ("authorizer", "POST", ("folder",), _folder),
    ("file transfer", "POST", ("transfer",), _transfer),
    ("broker", "POST", ("creategroup",), lambda call: CreateGroup(**call.common)),
    ("broker", "GET", (*_STREAM, "size"), _size),
    ("broker", "POST", (*_STREAM, "delete"), _delete),
    ("broker", "POST", (*_STREAM, "persist"), _persist),
    ("broker", "GET", ("beamtime", None, None, NO_GROUP, "streams"), _streams),
    ("broker", "GET", ("beamtime", None, None, NO_GROUP, "sources"), _sources),
    ("broker", "GET", (*_STREAM, NO_GROUP, "last"), _last),
    ("broker", "POST", (*_STREAM, NO_GROUP, "querymessages"), _query),
    ("broker", "GET", (*_STREAM, NO_GROUP, "meta", None), _metadata),
    ("broker", "GET", (*_STREAM, NO_GROUP, None), _by_id),
    ("broker", "GET", (*_STREAM, None, "next"), _next),
    ("broker", "GET", (*_STREAM, None, "groupedlast"), _grouped_last),
    ("broker", "GET", (*_STREAM, None, "nacks"), _unacknowledged),
    ("broker", "GET", (*_STREAM, None, "lastack"), _last_acknowledged),
    ("broker", "POST", (*_STREAM, None, "resetcounter"), _set_marker),
    ("broker", "POST", (*_STREAM, None, None), _message_operation),
)
"""Service, method, parts of the path behind the service's prefix (None: any), what makes the record. First match wins;
the names that any part stands for reach the maker in their order."""


def is_ours(raw_path: bytes) -> bool:
    """Tell whether a path is one of ASAP::O's, whatever follows its first part."""
    first = raw_path.lstrip(b"/").partition(b"/")[0]
    return first in (b"asapo-discovery", b"asapo-authorizer") or _VERSION_PART.match(first) is not None


def read_request(method: str, raw_path: bytes, query: bytes, body: bytes) -> CompatRequest | None:
    """Return what a client asks for, or None when there is no such route.

    Parameters
    ----------
    raw_path : bytes
        As it stood in the request, without the query and not decoded. Slashes at its beginning do not count: an
        endpoint that ends with one makes two.
    query : bytes
        Behind the question mark.

    Raises
    ------
    UnsupportedVersion
        If the client is newer than we are.
    WrongInput
        If a name, a number or the body is not acceptable.
    """
    for what, found, limit in (
        ("path", raw_path, MAX_PATH_BYTES),
        ("parameters", query, MAX_QUERY_BYTES),
        ("body", body, MAX_BODY_BYTES),
    ):
        if len(found) > limit:
            raise WrongInput(f"{what} of {len(found)} bytes: expected at most {limit}")
    service, theirs, raw_parts = _split(raw_path)
    for its_service, its_method, pattern, make in ROUTES:
        if service == its_service and method == its_method and _fits(raw_parts, pattern):
            check_version(theirs, _VERSIONS[service])
            names = tuple(
                _decoded("path", part) for part, fixed in zip(raw_parts, pattern, strict=True) if fixed is None
            )
            return make(_Call(names, _Parameters(query), body))
    return None


def _split(raw_path: bytes) -> tuple[str, str, list[bytes]]:
    """Return the service, the version in its path, and the parts behind them."""
    first, *rest = raw_path.lstrip(b"/").split(b"/")
    if first in (b"asapo-discovery", b"asapo-authorizer") and rest and _VERSION_PART.match(rest[0]):
        return first.decode().removeprefix("asapo-"), rest[0].decode(), rest[1:]
    if _VERSION_PART.match(first):
        return "file transfer" if rest == [b"transfer"] else "broker", first.decode(), rest
    return "", "", []


def _fits(parts: Sequence[bytes], pattern: Sequence[str | None]) -> bool:
    return len(parts) == len(pattern) and all(
        fixed is None or part == fixed.encode() for part, fixed in zip(parts, pattern, strict=True)
    )


def _decoded(what: str, raw: bytes) -> str:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise WrongInput(f"{what} {raw[:60]!r}: expected UTF-8, percent-encoded") from None


def _decoded_body(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise WrongInput(f"body {raw[:60]!r}: expected UTF-8") from None


def _number(what: str, text: str, largest: int) -> int:
    if not _NUMBER.match(text) or int(text) > largest:
        raise WrongInput(f"{what} {text!r:.40}: expected an integer from 0 to {largest}")
    return int(text)
