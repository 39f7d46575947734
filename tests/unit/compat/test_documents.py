"""The JSON that clients read: exact fields, exact numbers, and nothing that makes a client fail."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import pytest

from asapo import errors
from asapo.compat.documents import (
    NoMessage,
    Place,
    StreamEntry,
    at_the_end,
    at_the_finish,
    dataset_json,
    message_json,
    messages_json,
    no_message,
    receivers_body,
    streams_body,
    version_body,
)
from asapo.compat.errormap import error_code, http_status
from asapo.compat.ingest import DEFAULT_MODE
from asapo.compat.structs import ErrorCode
from asapo.compat.version import check_version, is_served
from asapo.errors import Gap, NothingYet, StreamFinished, StreamState, UnknownStream, UnsupportedVersion, WrongInput
from asapo.models import MAX_ID, Row

ROW = Row(7, 3, 2, 4, 1, 0, 100, -5, 0, '{"é": 1.50, "n": 12345678901234567890}', 11, 1_795_253_903_461_393_570, 0, 0)
PLACE = Place("processed/f", "127.0.0.1:4300", 42, DEFAULT_MODE)


def test_a_message_has_the_twelve_fields_of_a_client() -> None:
    assert json.loads(message_json(ROW, "run1", PLACE)) == {
        "_id": 7,
        "size": 100,
        "name": "processed/f",
        "timestamp": 1_795_253_903_461_393_570,
        "source": "127.0.0.1:4300",
        "buf_id": 42,
        "dataset_substream": 2,
        "meta": {"é": 1.5, "n": 12345678901234567890},
        "stream": "run1",
        "ingest_mode": 13,
        "ib_source": "",
        "time_id": 3,
    }


def test_metadata_keep_their_spelling_and_none_at_all_are_an_object() -> None:
    assert b'"n": 12345678901234567890' in message_json(ROW, "s", PLACE)
    assert json.loads(message_json(ROW._replace(meta=""), "s", PLACE))["meta"] == {}
    # JSON that Python reads as infinity leaves as it came.
    assert b'{"x": 1e999}' in message_json(ROW._replace(meta='{"x": 1e999}'), "s", PLACE)


def test_a_buffer_id_stays_below_what_users_would_see_as_negative() -> None:
    assert Place("f", "h:1", MAX_ID).buffer_id == 2**63 - 1
    with pytest.raises(WrongInput, match="buffer id 9223372036854775808"):
        Place("f", "h:1", 2**63)


@pytest.mark.parametrize("source", ["", "host", "host:", ":1", "host:x", "host:١"])
def test_an_address_that_would_crash_clients_cannot_be_written(source: str) -> None:
    with pytest.raises(WrongInput, match="data server"):
        Place("f", source, 1)


def test_even_a_message_without_bytes_has_an_address_with_a_colon() -> None:
    assert ":" in json.loads(message_json(ROW, "s", Place("f")))["source"]
    with pytest.raises(WrongInput, match="name"):
        Place("")


def test_a_dataset_has_its_size_under_the_name_clients_look_for() -> None:
    parts = [message_json(ROW._replace(substream=n), "s", PLACE) for n in (1, 2)]
    found = json.loads(dataset_json(7, 4, parts))
    assert (found["_id"], found["dataset_size"], set(found)) == (7, 4, {"_id", "dataset_size", "messages"})
    assert [part["dataset_substream"] for part in found["messages"]] == [1, 2]
    assert json.loads(dataset_json(1, 2, [])) == {"_id": 1, "dataset_size": 2, "messages": []}
    assert json.loads(messages_json([])) == []


def test_no_message_is_told_as_clients_look_for_it() -> None:
    assert NoMessage(3, 5).encode() == b'{"op":"get_record_by_id","id":3,"id_max":5,"next_stream":""}'
    assert at_the_end(5) == NoMessage(5, 5)
    assert at_the_finish(5, "") == NoMessage(5, 5, "asapo_no_next")
    assert at_the_finish(5, "run2") == NoMessage(5, 5, "run2")


@pytest.mark.parametrize(
    ("state", "then"),
    [
        (NothingYet("", id_max=4), NoMessage(4, 4)),
        (StreamFinished("", id_max=4, next_stream="run2"), NoMessage(4, 4, "run2")),
        (StreamFinished("", id_max=4, next_stream=""), NoMessage(4, 4, "asapo_no_next")),
        (UnknownStream("", stream="s", source="d"), NoMessage(0, 0)),
        (Gap("", message_id=2, id_max=4), NoMessage(2, 4)),
    ],
)
def test_states_of_a_stream_have_their_answers(state: StreamState, then: NoMessage) -> None:
    assert no_message(state) == then
    assert http_status(state) == 409


STREAMS = [StreamEntry("c", 3, 30, 39, finished=True), StreamEntry("a", 1, 20, 21), StreamEntry("b", 2, 10, 12)]


def names(**chosen: Any) -> list[str]:
    return [entry["name"] for entry in json.loads(streams_body(STREAMS, **chosen))["streams"]]


def test_streams_come_in_the_order_in_which_they_were_made() -> None:
    assert names() == ["b", "a", "c"]
    assert names(first="a") == ["a", "c"]
    assert names(first="nowhere") == []
    assert names(which="finished") == ["c"]
    assert names(which="unfinished", first="a") == ["a"]
    assert names(single=True, first="b") == ["b"]
    assert names(single=True, first="nowhere") == []
    assert names(last=True) == ["c"]


def test_a_stream_always_has_its_six_keys() -> None:
    assert json.loads(streams_body([StreamEntry("s")])) == {
        "streams": [
            {"lastId": 0, "name": "s", "timestampCreated": 0, "timestampLast": 0, "finished": False, "nextStream": ""}
        ]
    }


def test_a_producer_is_never_told_that_it_may_not_connect() -> None:
    assert json.loads(receivers_body(["127.0.0.1:4200"])) == {"MaxConnections": 32, "Uris": ["127.0.0.1:4200"]}
    assert json.loads(receivers_body([]))["MaxConnections"] > 0


def test_the_version_tells_whether_the_client_is_served() -> None:
    found = json.loads(version_body("0.1.0", "v0.7"))
    assert (found["softwareVersion"], found["clientSupported"]) == ("0.1.0", "yes")
    assert found["clientProtocol"]["versionInfo"].startswith("v0.7")
    assert json.loads(version_body("0.1.0", "v0.8"))["clientSupported"] == "no"
    with pytest.raises(WrongInput, match="version"):
        version_body("0.1.0", "seven")


@pytest.mark.parametrize("text", ["", "0.7", "v7", "v0.7 ", "v0.1000", "v-1.0", "v٠.٧", "v0.7\n", "v99999.0"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(WrongInput, match="version"):
        is_served(text)


def test_a_newer_version_is_refused_and_an_older_one_served() -> None:
    assert is_served("v0.5")
    assert is_served("v0.7")
    assert not is_served("v1.0")
    with pytest.raises(UnsupportedVersion, match=r"v0\.11"):
        check_version("v0.11")


def test_every_error_of_ours_has_a_status_and_a_code() -> None:
    known = {200, 204, 206, 400, 401, 409, 415, 500, 503}
    for kind in errors.BY_CODE.values():
        assert http_status(kind("text")) in known
        assert error_code(kind("text")) in set(ErrorCode) - {ErrorCode.OK, ErrorCode.WARNING}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.TokenRejected(), 401, ErrorCode.AUTHORIZATION),
        (errors.BeamtimeForbidden(), 401, ErrorCode.AUTHORIZATION),
        (errors.WrongInput(), 400, ErrorCode.WRONG_REQUEST),
        (errors.DuplicateId(), 400, ErrorCode.WRONG_REQUEST),
        (errors.UnsupportedVersion(), 415, ErrorCode.NOT_SUPPORTED),
        (errors.LinkLost(), 503, ErrorCode.INTERNAL),
        (errors.IndexUnavailable(), 503, ErrorCode.INTERNAL),
        (errors.QueueFull(), 503, ErrorCode.INTERNAL),
        (errors.DiskFull(), 500, ErrorCode.INTERNAL),
        (errors.UnsafePath(), 500, ErrorCode.WRONG_REQUEST),
        (errors.PayloadChanged(), 400, ErrorCode.INTERNAL),
        (errors.PartialDataset(), 206, ErrorCode.NO_DATA),
        (errors.AsapoError(), 500, ErrorCode.INTERNAL),
    ],
)
def test_errors_become_what_makes_clients_do_the_right_thing(
    error: errors.AsapoError, status: int, code: ErrorCode
) -> None:
    assert http_status(error) is HTTPStatus(status)
    assert error_code(error) is code
