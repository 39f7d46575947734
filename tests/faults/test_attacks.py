"""Peers that speak ZMTP but not our protocol: each gets a clear answer, is counted, and harms nobody else."""

import itertools
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from xxhash import xxh3_64_digest

from asapo.models import MAX_ID
from asapo.wire.codec import PUT_KIND, encode
from asapo.wire.events import Ack, Done, Failed, Goodbye, Hello, Piece, Rows, Welcome
from asapo.wire.limits import MAX_HEADER_BYTES, MIB, VERSION
from asapo.wire.put import Put, pack_column, put_to_map
from tests.faults.target import (
    COUNTERS,
    LOST,
    PORTS,
    Reply,
    Target,
    greeted,
    header,
    replies,
    reply_to_parts,
)

pytestmark = [
    pytest.mark.needs_server,
    pytest.mark.needs_linux,
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("others_are_served"),
]

HELLO, BEAT, FINISH, SET_META, OPEN = 1, 3, 18, 19, 17
GET_NEXT, GET_BY_ID, QUERY, ACKNOWLEDGE, NACK = 32, 34, 35, 36, 37
REGISTER, ANNOUNCE, FETCH = 48, 49, 64
NO_NAMES = ["", "a\0b", "x" * 256, "ä" * 128]


def _put(**changes: Any) -> bytes:
    """Return a Put of one message of three bytes, with keys of its map changed."""
    put = Put(
        unit=1, stream="s", ids=range(1, 2), sizes=[3], checksums=pack_column([0]), metas=["{}"],
        acquired_ns=pack_column([0]),
    )  # fmt: skip
    return header(PUT_KIND, msgpack.packb({**put_to_map(put), **changes}))


def _refusal(found: list[Reply]) -> str:
    """Return the error code of a Goodbye that is the last answer, or `LOST`."""
    event = found[-1].event
    if isinstance(event, str):
        return event
    assert isinstance(event, Goodbye), f"answered {event}"
    assert event.error["message"], "a Goodbye says why"
    return str(event.error["code"])


# -- every port: what is no message of ours --------------------------------------------------------------------------

NO_MESSAGE = {
    "nothing": b"",
    "short": b"aP",
    "noise": bytes(range(256)) * 9,
    "other magic": header(HELLO, b"\x80", magic=b"GE"),
    "unknown kind": header(255, b"\x80"),
    "no MessagePack": header(HELLO, b"\xc1" * 40),
    "cut MessagePack": header(HELLO, b"\x8a\xa4role"),
    "no map": header(HELLO, msgpack.packb([1, 2, 3])),
    "deep": header(HELLO, b"\x91" * 100_000),
    "announces 4 billion elements": header(HELLO, b"\xdf\xff\xff\xff\xff"),
    "no field": header(HELLO, b"\x80"),
    "fields of other types": header(HELLO, msgpack.packb({"role": 7, "session": "text"})),
    "no UTF-8": header(HELLO, b"\x82\xa4role\xa2\xff\xfe\xa7session\xc4\x01a"),
    "long": header(HELLO, b"\0" * (MAX_HEADER_BYTES + MIB)),
}


@pytest.mark.parametrize("port", PORTS)
def test_what_is_no_message_ends_the_link_with_a_reason_and_is_counted(target: Target, port: str) -> None:
    with target.counted(COUNTERS[port][0]):
        for name, first in NO_MESSAGE.items():
            code = _refusal(replies(target.address[port], [(first, b"")]))
            allowed = {"remote_protocol_error"} | ({LOST} if name == "long" else set())
            assert code in allowed, f"{name}: {code}"
            again = _refusal(replies(target.address[port], [(greeted(target, port), b""), (first, b"")], n=2))
            assert again in allowed, f"{name} after Hello: {again}"


@pytest.mark.parametrize("port", PORTS)
def test_another_major_version_is_refused_by_both_numbers(target: Target, port: str) -> None:
    with target.counted(COUNTERS[port][0]):
        first = header(HELLO, b"\x80", version=(VERSION[0] + 1, 3))
        (reply,) = replies(target.address[port], [(first, b"")])
    assert isinstance(reply.event, Goodbye)
    assert reply.event.error["code"] == "unsupported_version"
    assert reply.event.error["fields"] == {"ours": list(VERSION), "theirs": [VERSION[0] + 1, 3]}


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("n_parts", [1, 3, 5000])
def test_another_number_of_parts_ends_the_link(target: Target, port: str, n_parts: int) -> None:
    parts = [greeted(target, port)] + [b"x"] * (n_parts - 1)
    assert _refusal([reply_to_parts(target.address[port], parts)]) == "remote_protocol_error"


@pytest.mark.parametrize("port", PORTS)
def test_a_payload_where_none_belongs_ends_the_link(target: Target, port: str) -> None:
    assert _refusal(replies(target.address[port], [(greeted(target, port), b"payload")])) == "remote_protocol_error"


@pytest.mark.parametrize("port", PORTS)
def test_whoever_speaks_out_of_turn_is_dropped(target: Target, port: str) -> None:
    hello = greeted(target, port)
    answers = [encode(event) for event in (Welcome("x"), Ack(1), Done(1), Goodbye({}), Rows(1, [], {}, {}))]
    for first in [_put(), *answers]:
        payload = b"abc" if first == _put() else b""
        assert _refusal(replies(target.address[port], [(first, payload)])) == "remote_protocol_error"
    for second in [hello, *answers]:
        found = replies(target.address[port], [(hello, b""), (second, b"")], n=2)
        assert isinstance(found[0].event, Welcome)
        if port != "data" or second != hello:  # a reader may greet again
            assert _refusal(found) == "remote_protocol_error"


@pytest.mark.parametrize("port", PORTS)
def test_a_greeting_that_cannot_be_served_is_refused(target: Target, port: str) -> None:
    good = Hello({"data": "reader", "core": "consumer"}.get(port, "producer"), b"a" * 16, "attack", "source")
    wrong = [replace(good, role=role) for role in ("", "boss", "producer", "consumer", "reader") if role != good.role]
    wrong += [replace(good, beamtime=name) for name in NO_NAMES if name or port != "core"]
    wrong += [replace(good, session=session) for session in (b"", b"short", b"x" * 100_000)]
    for hello in wrong:
        code = _refusal(replies(target.address[port], [(encode(hello), b"")]))
        assert code in {"remote_protocol_error", "wrong_input"}, f"{hello!r:.200}: {code}"


# -- receivers: units ------------------------------------------------------------------------------------------------

BAD_PUTS: dict[str, dict[str, Any]] = {
    "id 0": {"i": 0},
    "negative id": {"i": -1},
    "id 2**63": {"i": 2**63},
    "last id 2**63": {"i": MAX_ID, "k": 2, "z": 0, "c": bytes(16), "m": ["{}"] * 2, "t": bytes(16)},
    "id is text": {"i": "1"},
    "id is a float": {"i": 1.5},
    "id is true": {"i": True},
    "ids descend": {"i": [2, 1], "k": 2, "z": 0, "c": bytes(16), "m": ["{}"] * 2, "t": bytes(16)},
    "no messages": {"k": 0},
    "more than it says": {"k": 2},
    "a million messages": {"k": 10**6},
    "a billion messages": {"k": 2**62},
    "unit 0": {"u": 0},
    "unit 2, not 1": {"u": 2},
    "size beyond the payload": {"z": 4},
    "size below the payload": {"z": 2},
    "negative size": {"z": -3},
    "huge size": {"z": 2**62},
    "short checksums": {"c": b"1234567"},
    "other metadata": {"m": []},
    "metadata no text": {"m": [7]},
    "metadata too long": {"m": ["x" * (MIB + 1)]},
    "format lies": {"f": ["<u4", [7, 7], "raw"]},
    "format unknown": {"f": ["O", [1], "raw"]},
    "shape negative": {"f": ["|u1", [-3], "raw"]},
    "shape endless": {"f": ["|u1", [2**62, 2**62, 2**62], "raw"]},
    "codec unknown": {"f": ["|u1", [3], "pickle"]},
    "level unknown": {"l": "holy"},
    "substream beyond": {"s": 3, "d": 2},
    "origins no list": {"o": 5},
    "closed_below negative": {"b": -1},
    **{f"name {name[:4]!r}": {"n": name} for name in NO_NAMES},
}


@pytest.mark.parametrize("port", ["ingest-tcp", "ingest-ipc"])
def test_wrong_units_end_the_link_and_nothing_of_them_is_stored(target: Target, port: str) -> None:
    hello = greeted(target, port)
    for name, changes in BAD_PUTS.items():
        found = replies(target.address[port], [(hello, b""), (_put(**changes), b"abc")], n=2)
        assert _refusal(found) == "remote_protocol_error", f"{name}: {found[-1]}"
    assert not list((target.services.data_dir / "beamline" / "attack").glob("**/*.seg"))


def test_units_beyond_the_credit_end_the_link(target: Target) -> None:
    many = [(_put(u=unit, z=0, i=unit * 10**6, k=4096, c=bytes(32768), m=["{}"] * 4096, t=bytes(32768)), b"")
            for unit in range(1, 60)]  # fmt: skip
    found = replies(target.address["ingest-tcp"], [(greeted(target, "ingest-tcp"), b""), *many], n=60)
    assert _refusal(found) == "remote_protocol_error"
    assert "credit" in found[-1].event.error["message"]  # type: ignore[union-attr]


def test_a_changed_payload_and_wrong_metadata_refuse_their_message_only(target: Target) -> None:
    right = xxh3_64_digest(b"abc")[::-1]
    units = [_put(u=1, i=1), _put(u=2, i=2, m=["[]"], c=right), _put(u=3, i=3, m=["{nonsense"], c=right)]
    units += [_put(u=4, i=4, m=['{"a": NaN}'], c=right), _put(u=5, i=5, c=right)]
    found = _acks(target, [(unit, b"abc") for unit in units])
    assert found == {1: "payload_changed", 2: "wrong_input", 3: "wrong_input", 4: "wrong_input"}


def _acks(target: Target, units: list[tuple[bytes, bytes]]) -> dict[int, str]:
    """Send units over one link until all are acknowledged; return the error code of each unit that was refused."""
    found = replies(
        target.address["ingest-tcp"],
        [(greeted(target, "ingest-tcp"), b""), *units],
        until=lambda reply: isinstance(reply.event, Ack) and reply.event.upto == len(units),
    )
    acks = [reply.event for reply in found if isinstance(reply.event, Ack)]
    return {unit: error["code"] for ack in acks for unit, _, error in ack.errors}


# -- requests that are well formed but wrong -------------------------------------------------------------------------


def _request(kind: int, **fields: Any) -> bytes:
    return header(kind, msgpack.packb(fields))


HUGE = [0, -1, 2**63, 2**64 - 1, 1.5, "1", None, [], b"1", True]


def test_wrong_control_requests_are_answered_or_end_the_link(target: Target) -> None:
    requests = [
        *(_request(FINISH, request=1, stream="s", last_id=value) for value in HUGE[1:]),
        *(_request(OPEN, request=1, stream=name) for name in NO_NAMES),
        *(_request(FINISH, request=1, stream=name, last_id=1) for name in NO_NAMES),
        *(_request(SET_META, request=1, stream="s", meta=meta) for meta in ("", "[]", "{", "NaN", '{"a":1e999}x', 5)),
        *(_request(SET_META, request=1, stream=name, meta="{}") for name in NO_NAMES[1:]),
        *(_request(BEAT, marks=marks) for marks in ({"a": "b"}, {"a": -1}, {"a": 2**63}, {7: 7}, {"": 1}, {"a\0": 1})),
        _request(SET_META, request=1, stream="s", meta='{"a":' * 50_000 + "1" + "}" * 50_000),
    ]
    for one in requests:
        found = replies(target.address["ingest-tcp"], [(greeted(target, "ingest-tcp"), b""), (one, b"")], n=2)
        if isinstance(found[-1].event, Failed):
            assert found[-1].event.error["code"] in {"wrong_input", "remote_protocol_error"}, f"{one!r:.120}"
        else:
            assert _refusal(found) in {"remote_protocol_error", "wrong_input"}, f"{one!r:.120}"


def test_wrong_consumer_requests_are_answered_or_end_the_link(target: Target) -> None:
    stream = {"request": 1, "source": "det", "stream": "others"}
    ranges: list[Any] = [[[2, 1]], [[0, 5]], [[-1, 5]], [[1, 2**63]], [[1]], [1], [["a", "b"]], [[1, 2, 3]]]
    requests = [
        *(_request(GET_NEXT, **stream, group="x", n=value) for value in HUGE[1:]),
        *(_request(GET_NEXT, **stream, group="x", wait_s=value) for value in (-1, float("nan"), float("inf"), "x")),
        *(_request(GET_NEXT, **stream, group="x", lease_s=value) for value in (-1, float("nan"), float("inf"), "x")),
        *(_request(GET_NEXT, **stream, group=name) for name in NO_NAMES),
        *(_request(GET_NEXT, **stream, group="y", where=text) for text in ("meta.a >", "(" * 5000, "' OR 1=1 --")),
        *(_request(GET_NEXT, **stream, group="x", done=some) for some in ranges),
        *(_request(GET_NEXT, **{**stream, "stream": name}, group="x") for name in NO_NAMES),
        *(_request(GET_BY_ID, **stream, ids=[value]) for value in HUGE),
        _request(GET_BY_ID, **stream, ids=[]),
        _request(GET_BY_ID, **stream, ids=list(range(1, 20_000))),
        *(_request(QUERY, **stream, text=text) for text in ("", "meta.", "; DROP TABLE message", "NOT " * 9999)),
        _request(QUERY, **stream, text="a" * 99_999),
        *(_request(QUERY, **stream, text="meta.n > 1", limit=value) for value in HUGE),
        *(_request(ACKNOWLEDGE, **stream, group="others", ranges=some) for some in ranges),
        *(_request(NACK, **stream, group="others", ids=[value]) for value in HUGE[4:]),
        *(_request(NACK, **stream, group="others", ids=[1], delay_s=value) for value in (-1, float("nan"), "x")),
    ]  # fmt: skip
    for one in requests:
        found = replies(target.address["core"], [(greeted(target, "core"), b""), (one, b"")], n=2)
        event = found[-1].event
        code = event.error["code"] if isinstance(event, Failed) else _refusal(found)
        assert code in {"remote_protocol_error", "wrong_input", "unknown_stream"}, f"{one!r:.120}: {event}"
    assert target.count("asapo_broker_defects_total") == 0


def test_wrong_registrations_end_the_link_and_leave_the_registry_alone(target: Target) -> None:
    hello = encode(Hello("receiver", b"a" * 16))
    good = {"receiver_id": "evil", "epoch": 1, "addresses": ["tcp://127.0.0.1:1"], "data_address": "", "boot_id": "",
            "tiers": {}}  # fmt: skip
    wrong: list[dict[str, Any]] = [
        {"receiver_id": ""}, {"receiver_id": 5}, {"epoch": -1}, {"addresses": "x"}, {"addresses": [7]},
        {"addresses": ["nonsense"]}, {"tiers": []}, {"tiers": {"a": 7}}, {"load": 3}, {"load": {"metrics": 5}},
        {"load": {"metrics": [["asapo_x", {}, "y"]]}}, {"load": {"metrics": [["a b\nc", {"l-": 1}, 1]]}},
    ]  # fmt: skip
    for changes in wrong:
        found = replies(target.address["core"], [(hello, b""), (_request(REGISTER, **{**good, **changes}), b"")], n=2)
        assert _refusal(found) in {"remote_protocol_error", "wrong_input"}, str(changes)
    for heads in ("x", [7], [["a"]], [["a", "b", "c", "d"]]):
        one = _request(ANNOUNCE, beamtime="b", heads=heads)
        assert _refusal(replies(target.address["core"], [(hello, b""), (one, b"")], n=2))
    assert target.count("asapo_broker_receivers") == 1


def test_wrong_fetches_are_answered_and_create_nothing(target: Target) -> None:
    before = sorted(path.name for path in (target.services.data_dir / "state").iterdir())
    hello = encode(Hello("reader", b"a" * 16, "no such beamtime"))
    own = encode(Hello("reader", b"a" * 16, "bt"))
    there = {"request": 1, "source": "det", "stream": "others", "message_id": 1}
    for first, fields in [
        (hello, there),
        (own, {**there, "stream": "../../state"}),
        (own, {**there, "source": "/etc"}),
        (own, {**there, "message_id": 0}),
        (own, {**there, "message_id": MAX_ID}),
        (own, {**there, "substream": 5}),
        *((own, {**there, "stream": name}) for name in NO_NAMES),
        *((own, {**there, "offset": value}) for value in (-1, 2**63, "x")),
        *((own, {**there, "length": value}) for value in (-1, 2**63, "x")),
    ]:
        found = replies(target.address["data"], [(first, b""), (_request(FETCH, **fields), b"")], n=2)
        event = found[-1].event
        code = event.error["code"] if isinstance(event, Failed) else _refusal(found)
        assert code in {"remote_protocol_error", "wrong_input", "unknown_stream"}, f"{fields}: {event}"
    assert sorted(path.name for path in (target.services.data_dir / "state").iterdir()) == before


def test_a_fetch_beyond_the_end_gives_what_is_there(target: Target) -> None:
    message_id = next(i for i in sorted(target.ledger.acked) if target.ledger.payload(i))
    own = encode(Hello("reader", b"a" * 16, "bt"))
    whole = target.ledger.payload(message_id)
    for offset, length in itertools.product((0, 1, len(whole), MAX_ID), (0, 1, MAX_ID)):
        one = _request(FETCH, request=1, source="det", stream="others", message_id=message_id, offset=offset,
                       length=length)  # fmt: skip
        reply = replies(target.address["data"], [(own, b""), (one, b"")], n=2)[-1]
        assert isinstance(reply.event, Piece)
        assert reply.payload == whole[offset : offset + (length or len(whole))]
