"""Every route of the broker, discovery, authorizer and file transfer; and everything that only looks like one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.compat.requests import (
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
from asapo.compat.routes import MAX_BODY_BYTES, ROUTES, is_ours, read_request
from asapo.errors import UnsupportedVersion, WrongInput

SOURCE = b"/v0.7/beamtime/bt1/det"
STREAM = SOURCE + b"/run%2F1"
ONE = b"token=T&instanceid=host_1&pipelinestep=DefaultStep"
ALL: dict[str, Any] = {"token": "T", "beamtime": "bt1", "source": "det", "stream": "run/1"}
NO_STREAM = ALL | {"stream": ""}
GROUP = ALL | {"group": "g"}
DISCOVERY = b"/asapo-discovery/v0.1"

REQUESTS: list[tuple[str, bytes, bytes, bytes, CompatRequest]] = [
    ("GET", DISCOVERY + b"/asapo-receiver", b"protocol=v0.7", b"", FindReceivers(protocol="v0.7")),
    ("GET", DISCOVERY + b"/asapo-broker", b"token=T&protocol=v0.7", b"",
     FindService(token="T", service="asapo-broker", protocol="v0.7")),
    ("GET", b"/" + DISCOVERY + b"/asapo-file-transfer", b"token=T&protocol=v0.7", b"",
     FindService(token="T", service="asapo-file-transfer", protocol="v0.7")),
    ("GET", DISCOVERY + b"/version", b"token=T&client=producer&protocol=v9.9", b"",
     ShowVersion(token="T", protocol="v9.9")),
    ("POST", b"/v0.7/creategroup", b"token=T", b"", CreateGroup(token="T")),
    ("GET", STREAM + b"/g/next", ONE + b"&id_key=_id", b"", Next(**GROUP)),
    ("GET", STREAM + b"/g/next", ONE + b"&id_key=time_id", b"", Next(**GROUP, by="time_id")),
    ("GET", STREAM + b"/g/next", ONE + b"&resend_nacks=true&delay_ms=1500&resend_attempts=3&id_key=_id", b"",
     Next(**GROUP, resend=Resend(delay_s=1.5, attempts=3))),
    ("GET", STREAM + b"/g/next", ONE + b"&dataset=true&minsize=2&substream=1&id_key=_id", b"",
     Next(**GROUP, dataset=Parts(min_parts=2, substream=1))),
    ("GET", STREAM + b"/0/last", ONE + b"&id_key=_id", b"", Last(**ALL)),
    ("GET", STREAM + b"/g/groupedlast", ONE + b"&id_key=_id", b"", Last(**GROUP)),
    ("GET", STREAM + b"/0/last", ONE + b"&dataset=true&minsize=0&substream=0&id_key=_id", b"",
     Last(**ALL, dataset=Parts())),
    ("GET", STREAM + b"/0/17", ONE, b"", ById(**ALL, message_id=17)),
    ("GET", STREAM + b"/0/17", ONE + b"&dataset=true&minsize=1&substream=0", b"",
     ById(**ALL, message_id=17, dataset=Parts(min_parts=1))),
    ("POST", STREAM + b"/0/querymessages", ONE, b"meta.a = 1", QueryMessages(**ALL, text="meta.a = 1")),
    ("GET", STREAM + b"/size", ONE, b"", Size(**ALL)),
    ("GET", STREAM + b"/size", b"token=T&incomplete=true", b"", Size(**ALL, datasets="all")),
    ("GET", STREAM + b"/size", b"token=T&incomplete=false", b"", Size(**ALL, datasets="complete")),
    ("GET", SOURCE + b"/0/streams", ONE + b"&from=&filter=finished&detailed=true", b"",
     Streams(**NO_STREAM, which="finished")),
    ("GET", SOURCE + b"/0/streams", b"token=T&from=run%2F1&filter=all&detailed=false", b"",
     Streams(**NO_STREAM, first="run/1")),
    ("GET", SOURCE + b"/0/streams", b"token=T&single=true&detailed=true&from=a", b"",
     Streams(**NO_STREAM, single=True, first="a")),
    ("GET", SOURCE + b"/0/streams", b"token=T&last=true&detailed=true", b"", Streams(**NO_STREAM, last=True)),
    ("GET", SOURCE + b"/0/sources", ONE, b"", Sources(**NO_STREAM)),
    ("POST", STREAM + b"/g/5", ONE, b'{"Op":"ackmessage"}', Acknowledge(**GROUP, message_id=5)),
    ("POST", STREAM + b"/g/5", ONE, b'{"Op":"negackmessage","Params":{"DelayMs":250}}',
     NegAcknowledge(**GROUP, message_id=5, delay_s=0.25)),
    ("GET", STREAM + b"/g/nacks", b"token=T&from=2&to=9", b"", Unacknowledged(**GROUP, first=2, last=9)),
    ("GET", STREAM + b"/g/lastack", ONE, b"", LastAcknowledged(**GROUP)),
    ("POST", STREAM + b"/g/resetcounter", b"token=T&value=4", b"", SetMarker(**GROUP, value=4)),
    ("GET", SOURCE + b"/default/0/meta/0", ONE, b"", BeamtimeMetadata(**NO_STREAM)),
    ("GET", STREAM + b"/0/meta/1", ONE, b"", StreamMetadata(**ALL)),
    ("POST", STREAM + b"/delete", ONE, b'{"ErrorOnNotExist":false,"DeleteMeta":true}',
     DeleteStream(**ALL, error_if_absent=False)),
    ("POST", STREAM + b"/persist", ONE, b"", PersistStream(**ALL)),
    ("POST", b"/asapo-authorizer/v0.2/folder", b"token=T", b'{"Folder":"/data","BeamtimeId":"bt1","Token":"T"}',
     FolderToken(token="T", beamtime="bt1", folder="/data")),
    ("POST", b"/v0.2/transfer", b"token=T&sizeonly=true", b'{"Folder":"auto","FileName":"processed/f1"}',
     TransferFile(token="T", name="processed/f1", size_only=True)),
    ("POST", b"/v0.2/transfer", b"token=T&instanceid=i&pipelinestep=p&beamtime=bt1&stream=s&source=h%3A1",
     b'{"Folder":"auto","FileName":"processed/f1"}',
     TransferFile(token="T", beamtime="bt1", name="processed/f1", size_only=False)),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "query", "body", "request_"), REQUESTS)
def test_each_call_of_a_client_is_understood(
    method: str, path: bytes, query: bytes, body: bytes, request_: CompatRequest
) -> None:
    assert read_request(method, path, query, body) == request_
    assert is_ours(path)


def test_every_route_is_asked_for_above() -> None:
    def is_made_by(method: str, path: bytes, query: bytes, body: bytes) -> int:
        for n, route in enumerate(ROUTES):
            left = tuple(other for other in ROUTES if other is not route)
            if _with_routes(left, method, path, query, body) != read_request(method, path, query, body):
                return n
        return -1

    def _with_routes(routes: Any, *asked: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("asapo.compat.routes.ROUTES", routes)
            try:
                return read_request(*asked)
            except WrongInput:
                return "refused"

    assert {is_made_by(*found[:4]) for found in REQUESTS} == set(range(len(ROUTES)))


def test_parameters_that_are_not_known_or_missing_do_no_harm() -> None:
    assert read_request("GET", STREAM + b"/g/next", b"token=T&new=1&&x", b"") == Next(**GROUP)
    assert read_request("GET", STREAM + b"/0/last", b"", b"") == Last(**(ALL | {"token": ""}))


def test_an_empty_source_is_the_one_of_clients_without_one_and_a_plus_is_a_plus() -> None:
    found = read_request("GET", b"/v0.7/beamtime/bt1//s+t/size", b"token=a+b", b"")
    assert found == Size(token="a+b", beamtime="bt1", source="detector", stream="s+t")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", b"/"),
        ("GET", b"/health"),
        ("DELETE", STREAM + b"/g/next"),
        ("GET", b"/v0.7/creategroup"),
        ("GET", STREAM + b"/g/next/more"),
        ("GET", STREAM),
        ("GET", b"/asapo-discovery/asapo-broker"),
        ("GET", b"/asapo-discovery/x/asapo-broker"),
        ("GET", b"/v0.7"),
        ("DELETE", STREAM + b"/g/5"),
    ],
)
def test_other_paths_are_no_routes(method: str, path: bytes) -> None:
    assert read_request(method, path, b"", b"") is None


@pytest.mark.parametrize("path", [b"/health", b"/metrics", b"/api/v1/streams", b"/v", b"/", b"/version", b"/v0.7x/a"])
def test_other_paths_of_the_front_are_left_alone(path: bytes) -> None:
    assert not is_ours(path)


@pytest.mark.parametrize(
    ("method", "path", "query", "theirs"),
    [
        ("GET", b"/v0.8/beamtime/bt1/det/s/size", b"", "v0.8"),
        ("GET", b"/asapo-discovery/v0.2/asapo-broker", b"", "v0.2"),
        ("GET", DISCOVERY + b"/asapo-broker", b"protocol=v0.8", "v0.8"),
        ("GET", DISCOVERY + b"/asapo-receiver", b"protocol=v1.0", "v1.0"),
        ("POST", b"/v0.3/transfer", b"", "v0.3"),
    ],
)
def test_a_newer_client_is_told_apart(method: str, path: bytes, query: bytes, theirs: str) -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        read_request(method, path, query, b'{"FileName":"f"}')
    assert caught.value.theirs == theirs


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "named"),
    [
        ("GET", b"/v0.7/beamtime/a%2Fb/det/s/size", b"", b"", "beamtime 'a/b'"),
        ("GET", b"/v0.7/beamtime/bt1/det/s%00/size", b"", b"", "stream"),
        ("GET", b"/v0.7/beamtime/bt1/%ff/s/size", b"", b"", "UTF-8"),
        ("GET", b"/v0.7/beamtime/bt1/det//size", b"", b"", "stream name ''"),
        ("GET", b"/v0.7/beamtime/bt1/det/" + b"s" * 256 + b"/size", b"", b"", "stream"),
        ("GET", STREAM + b"//next", b"", b"", "group name ''"),
        ("GET", STREAM + b"/0/0", b"", b"", "message id 0"),
        ("GET", STREAM + b"/0/-1", b"", b"", "message id '-1'"),
        ("GET", STREAM + b"/0/" + b"9" * 19, b"", b"", "message id"),
        ("GET", STREAM + b"/0/1e3", b"", b"", "message id '1e3'"),
        ("GET", STREAM + b"/g/next", b"id_key=x", b"", "id_key=x"),
        ("GET", STREAM + b"/g/next", b"dataset=1", b"", "dataset=1"),
        ("GET", STREAM + b"/g/next", b"dataset=true&minsize=-1", b"", "minsize '-1'"),
        ("GET", STREAM + b"/g/next", b"resend_nacks=true&delay_ms=x", b"", "delay_ms 'x'"),
        ("GET", STREAM + b"/g/next", b"%ff=1", b"", "parameter"),
        ("GET", SOURCE + b"/0/streams", b"filter=some", b"", "filter=some"),
        ("GET", SOURCE + b"/0/streams", b"single=true", b"", "stream name ''"),
        ("POST", STREAM + b"/g/5", b"", b"", "JSON object"),
        ("POST", STREAM + b"/g/5", b"", b'{"Op":"other"}', "Op 'other'"),
        ("POST", STREAM + b"/g/5", b"", b'{"Op":"negackmessage","Params":{"DelayMs":-1}}', "DelayMs -1"),
        ("POST", STREAM + b"/g/5", b"", b'{"Op":"negackmessage","Params":[]}', "DelayMs None"),
        ("POST", STREAM + b"/delete", b"", b'{"DeleteMeta":1}', "DeleteMeta 1"),
        ("POST", STREAM + b"/0/querymessages", b"", b"\xff", "UTF-8"),
        ("POST", STREAM + b"/0/querymessages", b"", b"x" * (MAX_BODY_BYTES + 1), "body of"),
        ("GET", STREAM + b"/0/meta/2", b"", b"", "meta/2"),
        ("POST", b"/v0.2/transfer", b"beamtime=b", b"{}", "FileName None"),
        ("POST", b"/v0.2/transfer", b"", b'{"FileName":"f"}', "beamtime ''"),
        ("POST", b"/asapo-authorizer/v0.2/folder", b"", b'{"Folder":1,"BeamtimeId":"b"}', "Folder 1"),
        ("GET", DISCOVERY + b"/version", b"protocol=x", b"", "version 'x'"),
        ("GET", b"/v0.7/" + b"a" * 9000, b"", b"", "path of"),
        ("GET", STREAM + b"/size", b"a" * 40_000, b"", "parameters of"),
    ],
)
def test_what_is_wrong_is_refused_by_name(method: str, path: bytes, query: bytes, body: bytes, named: str) -> None:
    with pytest.raises(WrongInput) as caught:
        read_request(method, path, query, body)
    assert named in caught.value.message


segments = st.sampled_from(
    [b"v0.7", b"v0.2", b"asapo-discovery", b"v0.1", b"beamtime", b"bt1", b"det", b"0", b"g", b"next", b"last", b"size"]
    + [b"streams", b"meta", b"1", b"%2F", b"%", b"%zz", b"", b"transfer", b"\xff", b"resetcounter", b"querymessages"]
) | st.binary(max_size=4)
queries = st.lists(
    st.tuples(
        st.sampled_from([b"token", b"id_key", b"dataset", b"minsize", b"filter", b"from", b"value"]), segments
    ).map(b"=".join)
).map(b"&".join)


@given(st.sampled_from(["GET", "POST"]), st.lists(segments, max_size=9).map(b"/".join), queries, st.binary(max_size=20))
def test_any_request_is_understood_refused_or_none_of_ours(method: str, path: bytes, query: bytes, body: bytes) -> None:
    try:
        found = read_request(method, b"/" + path, query, body)
    except (WrongInput, UnsupportedVersion):
        return
    assert found is None or isinstance(found, CompatRequest)
