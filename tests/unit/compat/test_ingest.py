"""What producers ask: modes and their traps, names, marks, credentials, metadata."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.compat.credentials import Credentials, check_beamtime, read_credentials
from asapo.compat.ingest import (
    CACHE_ONLY_MODE,
    DEFAULT_MODE,
    Authorize,
    FinishStream,
    GetBuffer,
    IngestMode,
    SetMetadata,
    Transfer,
    body_bytes,
    read_next_stream,
    read_request,
)
from asapo.compat.jsontext import metadata_text
from asapo.compat.metadata import MetadataMode, MetadataOperation, changed, metadata_mode
from asapo.compat.paths import check_exposed_path
from asapo.compat.structs import REQUEST_BYTES, Opcode, RequestHeader, decode_request
from asapo.errors import UnsupportedVersion, WrongInput
from tests.unit.compat.test_structs import headers, recorded


def header(**fields: Any) -> RequestHeader:
    base: dict[str, Any] = {
        "op_code": 2, "data_id": 1, "data_size": 5, "custom": (13, 0, 0), "message": b"processed/f", "stream": b"s",
    }  # fmt: skip
    return RequestHeader(**(base | fields))


def asked(name: str) -> Any:
    return read_request(decode_request(recorded(name)[:REQUEST_BYTES]))


def test_requests_of_the_real_client_mean_what_was_asked() -> None:
    assert asked("authorize") == Authorize(50)
    assert asked("message") == Transfer(1, "processed/f1", "run1", DEFAULT_MODE, 10, 47)
    assert asked("metadata-only") == Transfer(2, "processed/f2", "run1", IngestMode(10), 0, 10)
    assert asked("dataset-part") == Transfer(3, "processed/f3", "run1", DEFAULT_MODE, 3, 0, 2, 3)
    assert asked("cache-only") == Transfer(4, "processed/f4", "run1", CACHE_ONLY_MODE, 5, 0)
    assert asked("auto-id") == Transfer(0, "processed/f5", "run1", DEFAULT_MODE, 4, 0)
    assert asked("finish") == FinishStream("run1", 5, 22)
    assert asked("beamtime-meta") == SetMetadata("", MetadataMode(MetadataOperation.REPLACE, upsert=True), 22)
    assert asked("stream-meta") == SetMetadata("run1", MetadataMode(MetadataOperation.UPDATE, upsert=False), 11)


@pytest.mark.parametrize("name", ["authorize", "message", "metadata-only", "dataset-part", "finish", "stream-meta"])
def test_as_much_is_read_as_the_real_client_sends(name: str) -> None:
    data = recorded(name)
    assert sum(body_bytes(decode_request(data[:REQUEST_BYTES]))) == len(data) - REQUEST_BYTES


def test_without_bit_0_no_data_follow_whatever_the_size_says() -> None:
    assert body_bytes(header(custom=(10, 0, 0), data_size=10**9, meta_size=7)) == (7, 0)
    assert read_request(header(custom=(10, 0, 0), data_size=10**9)) == Transfer(
        1, "processed/f", "s", IngestMode(10), 0, 0
    )


@pytest.mark.parametrize(
    ("mode", "indexed", "cached", "stored"),
    [
        (2, True, False, False),
        (5, False, True, True),
        (9, True, True, False),
        (10, True, False, False),
        (13, True, True, True),
        (29, True, True, True),
    ],
)
def test_each_mode_of_the_client_has_its_meaning(mode: int, *, indexed: bool, cached: bool, stored: bool) -> None:
    found = read_request(header(custom=(mode, 0, 0)))
    assert isinstance(found, Transfer)
    assert (found.indexed, found.cached, found.stored) == (indexed, cached, stored)


@pytest.mark.parametrize("mode", [0, 1, 3, 4, 6 | 1, 8, 12, 32 + 13, 2**63, 2**64 - 1])
def test_modes_that_mean_nothing_are_refused(mode: int) -> None:
    with pytest.raises(WrongInput, match=f"ingest mode {mode}"):
        read_request(header(custom=(mode, 0, 0)))


def test_a_file_needs_its_data_and_a_plain_metadata_message_needs_none() -> None:
    with pytest.raises(WrongInput, match="with 0 bytes"):
        read_request(header(data_size=0))
    assert read_request(header(data_size=0, custom=(2, 0, 0))) is not None


def test_a_name_that_fills_its_field_was_cut_and_is_refused() -> None:
    assert read_request(header(message=b"processed/" + b"a" * 1012)) is not None
    with pytest.raises(WrongInput, match=r"file name .* of 1023 bytes"):
        read_request(header(message=b"processed/" + b"a" * 1013))
    with pytest.raises(WrongInput, match=r"stream .* of 1023 bytes"):
        read_request(header(stream=b"s" * 1023))
    with pytest.raises(WrongInput, match="at most 255 bytes"):
        read_request(header(stream=b"s" * 256))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"message": b"\xff"}, "expected UTF-8"),
        ({"message": b""}, "file name"),
        ({"stream": b""}, "stream"),
        ({"data_id": 2**63}, "message id 9223372036854775808"),
        ({"op_code": 3, "custom": (13, 0, 3)}, "part 0 of a dataset of 3"),
        ({"op_code": 3, "custom": (13, 1, 0)}, "part 1 of a dataset of 0"),
        ({"op_code": 3, "custom": (13, 1, 2), "data_id": 0}, "without an id"),
        ({"op_code": 8, "stream": b"", "message": b"other"}, "without a stream"),
        ({"op_code": 8, "custom": (9, 14, 0)}, "metadata mode 14"),
        ({"op_code": 4}, "stream info"),
        ({"op_code": 1}, "opcode 1"),
        ({"op_code": 11}, "opcode 11"),
        ({"message": b"asapo_finish_stream", "custom": (2, 0, 0), "data_id": 0}, "finish mark with id 0"),
        ({"api_version": b"0.7"}, "version"),
        ({"api_version": b""}, "version"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(WrongInput, match=named):
        read_request(header(**fields))


def test_a_newer_client_is_told_apart() -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        read_request(header(api_version=b"v0.8"))
    assert (caught.value.ours, caught.value.theirs) == ("v0.7", "v0.8")
    assert read_request(header(api_version=b"v0.5")) is not None


def test_a_message_may_have_the_name_of_the_mark_when_it_has_data() -> None:
    assert isinstance(read_request(header(message=b"asapo_finish_stream")), Transfer)


def test_the_data_server_reads_the_same_header() -> None:
    request = header(op_code=6, data_id=77, data_size=5, stream="i§s§bt§src§run".encode(), api_version=b"v0.1")
    assert body_bytes(request) == (0, 0)
    assert read_request(request) == GetBuffer(77, 5, ("i", "s", "bt", "src", "run"))
    assert read_request(header(op_code=6, stream=b"\xff\xa7", api_version=b"v0.1")) is not None
    with pytest.raises(UnsupportedVersion):
        read_request(header(op_code=6, api_version=b"v0.2"))


@given(headers)
def test_any_header_has_a_meaning_or_is_refused(found: RequestHeader) -> None:
    try:
        request = read_request(found)
    except (WrongInput, UnsupportedVersion):
        return
    assert sum(body_bytes(found)) >= getattr(request, "data_bytes", 0) * (found.op_code != Opcode.GET_BUFFER)


# -- credentials, marks, metadata ---------------------------------------------------------------------------------


def test_credentials_of_the_real_client() -> None:
    found = read_credentials(recorded("authorize")[REQUEST_BYTES:])
    assert found == Credentials("processed", "bt1", "auto", "det", "tok", "node7_14543", "DefaultStep")


def test_a_source_may_hold_percent_signs_and_old_clients_send_five_fields() -> None:
    assert read_credentials(b"raw%i%s%bt1%bl%a%b%tok").source == "a%b"
    assert read_credentials(b"raw%bt1%auto%det%") == Credentials("raw", "bt1", "auto", "det", "")
    assert read_credentials(b"raw%bt1%auto%%t").source == "detector"
    assert read_credentials(b"processed%i%s%%p02%det%t").beamtime == "auto"


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "credentials of 1 fields"),
        (b"raw%a%b%c%d%e", "credentials of 6 fields"),
        (b"other%bt1%auto%det%t", "source type 'other'"),
        (b"raw%auto%auto%det%t", "both 'auto'"),
        (b"raw%%%det%t", "both 'auto'"),
        (b"raw%a b%auto%det%t", "beamtime 'a b'"),
        (b"raw%../x%auto%det%t", "beamtime"),
        (b"raw%bt1%auto%d\0et%t", "source"),
        (b"raw%bt1%auto%det%t\0", "without NUL"),
        (b"raw%bt1%auto%\xff%t", "UTF-8"),
        (b"raw%bt1%auto%" + b"d" * 256 + b"%t", "source"),
        (b"x" * 20_000, "20000 bytes"),
    ],
)
def test_other_credentials_are_refused_by_name(raw: bytes, named: str) -> None:
    with pytest.raises(WrongInput, match=named):
        read_credentials(raw)


@given(
    st.binary(max_size=200)
    | st.lists(st.text(max_size=5), max_size=9).map(lambda f: "%".join(f).encode("utf-8", "replace"))
)
def test_any_credentials_are_read_or_refused(raw: bytes) -> None:
    try:
        found = read_credentials(raw)
    except WrongInput:
        return
    assert found.beamtime == "auto" or check_beamtime(found.beamtime)


def test_the_mark_names_the_next_stream_or_none() -> None:
    assert read_next_stream(recorded("finish")[REQUEST_BYTES:]) == "run2"
    assert read_next_stream(b'{"next_stream":"asapo_no_next"}') == ""
    assert read_next_stream(b"{}") == ""
    for raw in (b"", b"[]", b'{"next_stream":1}', b"\xff", b"[" * 100_000):
        with pytest.raises(WrongInput):
            read_next_stream(raw)


def test_metadata_stay_as_they_were_sent_and_must_be_an_object() -> None:
    assert metadata_text(b"") == "{}"
    assert metadata_text(b' {"a": 1.0} ') == ' {"a": 1.0} '
    for raw in (b"[1]", b"1", b"null", b'{"a": NaN}', b"{", b"\xff", b'{"a":' * 100_000):
        with pytest.raises(WrongInput, match="expected a JSON object"):
            metadata_text(raw)


@pytest.mark.parametrize("number", [1, 2, 3, 11, 12, 13])
def test_metadata_modes_there_and_back(number: int) -> None:
    assert metadata_mode(number).number == number


@pytest.mark.parametrize("number", [0, 4, 10, 14, 21, 2**64 - 1])
def test_other_metadata_modes_are_refused(number: int) -> None:
    with pytest.raises(WrongInput, match=f"metadata mode {number}"):
        metadata_mode(number)


@pytest.mark.parametrize(
    ("number", "there", "then"),
    [
        (1, None, {"b": 2}),
        (1, {"a": 1}, None),
        (11, None, {"b": 2}),
        (11, {"a": 1}, None),
        (2, None, None),
        (2, {"a": 1}, {"b": 2}),
        (12, None, {"b": 2}),
        (12, {"a": 1}, {"b": 2}),
        (3, None, None),
        (3, {"a": 1, "b": 1}, {"a": 1, "b": 2}),
        (13, None, {"b": 2}),
        (13, {"a": 1}, {"a": 1, "b": 2}),
    ],
)
def test_what_follows_from_an_operation(number: int, there: dict[str, Any] | None, then: dict[str, Any] | None) -> None:
    if then is None:
        with pytest.raises(WrongInput, match="metadata"):
            changed(metadata_mode(number), there, {"b": 2})
    else:
        assert changed(metadata_mode(number), there, {"b": 2}) == then


def test_paths_lie_below_the_folder_of_their_kind() -> None:
    assert check_exposed_path("processed", "processed/a/b.cbf") == "processed/a/b.cbf"
    assert check_exposed_path("raw", r"raw\a") == "raw/a"
    for name in ("raw/a", "processed", "processed/", "/processed/a", "processed/../a", r"processed\..\a", "", "a"):
        with pytest.raises(WrongInput):
            check_exposed_path("processed", name)
