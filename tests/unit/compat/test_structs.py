"""The two structs: bytes of the real client, round trips, and whatever else comes in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.compat.structs import (
    REQUEST_BYTES,
    RESPONSE_BYTES,
    ErrorCode,
    Opcode,
    RequestHeader,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from asapo.errors import WrongInput

RECORDED = Path(__file__).parents[2] / "golden" / "asapo-25.3.0"

u64 = st.integers(0, 2**64 - 1)
words = st.binary(max_size=1023).filter(lambda text: b"\0" not in text)
headers = st.builds(
    RequestHeader,
    op_code=st.integers(0, 255),
    data_id=u64,
    data_size=u64,
    meta_size=u64,
    custom=st.tuples(u64, u64, u64),
    message=words,
    stream=words,
    api_version=st.sampled_from([b"v0.7", b"", b"v123.4567"]),
)


def recorded(name: str) -> bytes:
    return RECORDED.joinpath(f"{name}.bin").read_bytes()


def test_the_sizes_are_those_of_the_c_structs() -> None:
    assert (REQUEST_BYTES, RESPONSE_BYTES) == (2120, 1028)


def test_every_field_lies_where_the_protocol_says() -> None:
    header = RequestHeader(2, 0x0102030405060708, 9, 10, (11, 12, 13), b"name", b"stream", b"v0.7")
    data = encode_request(header)
    assert data[0] == 2
    assert data[8:16] == bytes.fromhex("0807060504030201")
    numbers = [int.from_bytes(data[at : at + 8], "little") for at in range(16, 56, 8)]
    assert numbers == [9, 10, 11, 12, 13]
    assert (data[56:61], data[1080:1087], data[2104:2109]) == (b"name\0", b"stream\0", b"v0.7\0")
    assert decode_request(data) == header


def test_an_answer_has_its_code_and_text_where_the_protocol_says() -> None:
    data = encode_response(Response(3, ErrorCode.INTERNAL, "été"))
    assert data[:7] == b"\x03\0\xff\xff\xc3\xa9t"
    assert data[4:10] == "été\0".encode()
    assert decode_response(data) == Response(3, 65535, "été")


@pytest.mark.parametrize(
    ("name", "header", "body"),
    [
        ("authorize", (Opcode.AUTHORIZE, 0, 0, 50, b"", b""), b"processed%node7_14543%DefaultStep%bt1%auto%det%tok"),
        ("message", (Opcode.TRANSFER_DATA, 1, 10, 47, b"processed/f1", b"run1"), None),
        ("metadata-only", (Opcode.TRANSFER_DATA, 2, 0, 10, b"processed/f2", b"run1"), b'{"hit": 0}'),
        ("dataset-part", (Opcode.TRANSFER_DATASET, 3, 3, 0, b"processed/f3", b"run1"), b"\0\1\2"),
        ("auto-id", (Opcode.TRANSFER_DATA, 0, 4, 0, b"processed/f5", b"run1"), b"auto"),
        ("finish", (Opcode.TRANSFER_DATA, 6, 0, 22, b"asapo_finish_stream", b"run1"), b'{"next_stream":"run2"}'),
        ("stream-meta", (Opcode.TRANSFER_METADATA, 0, 11, 0, b"run1.meta", b"run1"), b'{"scan": 1}'),
    ],
)
def test_requests_of_the_real_client_are_read(name: str, header: tuple[object, ...], body: bytes | None) -> None:
    data = recorded(name)
    found = decode_request(data[:REQUEST_BYTES])
    assert (found.op_code, found.data_id, found.data_size, found.meta_size, found.message, found.stream) == header
    assert found.api_version == b"v0.7"
    assert body is None or data[REQUEST_BYTES:] == body


def test_what_stands_behind_a_nul_is_not_looked_at() -> None:
    data = bytearray(encode_request(RequestHeader(2, message=b"name", stream=b"run1")))
    data[61:1080] = b"\xff" * 1019
    data[1085:2104] = b"\xfe" * 1019
    data[2109:2120] = b"\xfd" * 11
    data[1:8] = b"\xfc" * 7
    assert decode_request(data) == RequestHeader(2, message=b"name", stream=b"run1")


@given(headers)
def test_a_header_survives_the_way_there_and_back(header: RequestHeader) -> None:
    assert decode_request(encode_request(header)) == header


@given(st.integers(0, 255), st.integers(0, 65535), st.text(max_size=2000))
def test_an_answer_always_fits_and_can_be_read(op_code: int, code: int, text: str) -> None:
    data = encode_response(Response(op_code, code, text))
    found = decode_response(data)
    assert len(data) == RESPONSE_BYTES
    assert (found.op_code, found.error_code) == (op_code, code)
    wanted = text.replace("\0", " ").encode("utf-8", "replace").decode()
    assert wanted.startswith(found.message)
    assert len(found.message.encode()) >= min(len(wanted.encode()), 1020)


@given(st.binary(min_size=2120, max_size=2120) | st.binary(max_size=3000))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        header = decode_request(data)
    except WrongInput:
        return
    assert decode_request(encode_request(header)) == header


@given(st.binary(min_size=1028, max_size=1028) | st.binary(max_size=1100))
def test_any_bytes_are_an_answer_or_refused(data: bytes) -> None:
    try:
        found = decode_response(data)
    except WrongInput:
        return
    assert decode_response(encode_response(found)).error_code == found.error_code


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"op_code": 256}, "opcode 256"),
        ({"data_id": -1}, "data_id -1"),
        ({"custom": (0, 0, 2**64)}, "custom"),
        ({"message": b"a" * 1024}, "message"),
        ({"stream": b"a\0b"}, "stream"),
        ({"api_version": b"v100.10000"}, "api_version"),
    ],
)
def test_a_header_that_cannot_be_written_cannot_be_made(fields: dict[str, object], named: str) -> None:
    with pytest.raises(WrongInput, match=named):
        RequestHeader(**{"op_code": 2, **fields})  # type: ignore[arg-type]
