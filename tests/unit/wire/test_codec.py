"""Header bytes: round trips, golden bytes, and what a hostile peer can write."""

import contextlib
import json
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.errors import RemoteProtocolError, UnsupportedVersion, WrongInput
from asapo.models import MAX_ID, Format, Origin
from asapo.wire.codec import KIND_OF, MAGIC, PREFIX, PUT_KIND, decode, decode_put, encode
from asapo.wire.event import CHECKS
from asapo.wire.events import KINDS, Beat, Done, Event, Hello, Piece
from asapo.wire.limits import MAX_HEADER_BYTES, MAX_UNIT_MESSAGES, VERSION
from asapo.wire.put import Put, pack_column, unit_offsets, unpack_column

GOLDEN = Path(__file__).parents[2] / "golden" / "wire-1"
SAMPLES: dict[str, Any] = {
    "int": 7, "float": 0.5, "str": "scan 1/ä", "bool": True, "bytes": b"0123456789abcdef",
    "list[Any]": [[1, 2], [9, 9]], "dict[Any, Any]": {"x": 1},
}  # fmt: skip


def sample(kind: type[Event]) -> Event:
    return kind(**{item.name: SAMPLES[str(item.type)] for item in fields(kind)})


def field_reprs(event: Event | Put) -> dict[str, str]:
    """What golden files record: a field added later is not in them, and must not be missed."""
    return {item.name: repr(getattr(event, item.name)) for item in fields(event)}


def a_put(**changes: Any) -> Put:
    given_: dict[str, Any] = {
        "unit": 1, "stream": "scan 1/ä", "ids": range(5, 8), "sizes": [8, 8, 8],
        "checksums": pack_column([1, 2, 2**64 - 1]),
        "metas": ['{"a":1}', "{}", '{"b":"ü"}'], "acquired_ns": pack_column([1, -2, 3], signed=True), "closed_below": 5,
        "format": Format("<u2", (2, 2)), "origins": (None, Origin("det", "s", 4), None),
    }  # fmt: skip
    return Put(**(given_ | changes))


def header(kind: int, body: Any, version: tuple[int, int] = VERSION) -> bytes:
    packed: bytes = msgpack.packb(body)
    return PREFIX.pack(MAGIC, *version, kind) + packed


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_event_survives_the_way_to_bytes_and_back(kind: type[Event]) -> None:
    event = sample(kind)
    assert decode(encode(event)) == event


ODD: tuple[Any, ...] = (
    None, 0, -1, MAX_ID, MAX_ID + 1, True, 0.0, -0.5, 1.5, 1e30, float("inf"), float("nan"), "x", b"x", [1], (1,), {},
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_field_of_every_event_is_checked_at_its_birth(kind: type[Event]) -> None:
    good: dict[str, Any] = {item.name: SAMPLES[str(item.type)] for item in fields(kind)}
    for item in fields(kind):
        acceptable = CHECKS[str(item.type)][0]
        for value in ODD:
            if acceptable(value):
                assert getattr(kind(**(good | {item.name: value})), item.name) is value
            else:
                with pytest.raises(WrongInput, match=f"{kind.__name__}.{item.name} is "):
                    kind(**(good | {item.name: value}))


def test_what_cannot_be_packed_leaves_nothing_behind_for_the_next_event() -> None:
    expected = encode(Done(1, {"a": 1}))
    with pytest.raises(TypeError):
        encode(Done(2, {"a": object()}))
    assert encode(Done(1, {"a": 1})) == expected
    assert decode(encode(Done(3, {"a": "x" * 10**6}))) == Done(3, {"a": "x" * 10**6})
    assert encode(Done(1, {"a": 1})) == expected


def test_a_put_survives_with_all_its_columns() -> None:
    put = a_put()
    assert decode(encode(put), put.nbytes) == put
    assert decode_put(encode(put)) == put


@given(
    ids=st.one_of(
        st.lists(st.integers(1, MAX_ID), min_size=1, max_size=20, unique=True).map(sorted),
        st.builds(lambda first, n: range(first, first + n), st.integers(1, MAX_ID - 20), st.integers(1, 20)),
    ),
    data=st.data(),
)
def test_any_put_survives(ids: Any, data: st.DataObject) -> None:
    n = len(ids)
    put = Put(
        unit=data.draw(st.integers(0, MAX_ID)),
        stream=data.draw(st.text(min_size=1, max_size=40).filter(lambda s: "\0" not in s and s.isprintable())),
        ids=ids,
        sizes=data.draw(st.lists(st.integers(0, 5000), min_size=n, max_size=n)),
        checksums=pack_column(data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=n, max_size=n))),
        metas=[json.dumps({"i": i}) for i in ids],
        acquired_ns=pack_column(
            data.draw(st.lists(st.integers(-(2**63), MAX_ID), min_size=n, max_size=n)), signed=True
        ),
        closed_below=data.draw(st.integers(0, MAX_ID)),
    )
    back = decode(encode(put), put.nbytes)
    assert isinstance(back, Put)
    assert (list(back.ids), list(back.sizes)) == (list(put.ids), list(put.sizes))
    assert (back.checksums, back.metas, back.acquired_ns) == (put.checksums, put.metas, put.acquired_ns)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_payloads_of_a_unit_are_aligned_and_do_not_overlap(sizes: list[int]) -> None:
    starts = unit_offsets(sizes)
    assert starts[-1] == starts[-2] + sizes[-1]
    for begin, size, following in zip(starts, sizes[:-1], starts[1:], strict=False):
        assert begin % 64 == 0
        assert following - 64 < begin + size <= following


def test_columns_keep_unsigned_and_signed_values() -> None:
    assert unpack_column(pack_column([0, 2**64 - 1])) == [0, 2**64 - 1]
    assert unpack_column(pack_column([2**64 - 1]), signed=True) == [-1]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.bin")), ids=lambda path: path.stem)
def test_bytes_of_version_1_stay_readable(path: Path) -> None:
    event = decode(path.read_bytes(), int(path.with_suffix(".len").read_text()))
    recorded = json.loads(path.with_suffix(".json").read_text())
    found = field_reprs(event)
    assert {name: found[name] for name in recorded} == recorded


def test_there_are_golden_bytes_of_every_kind() -> None:
    names = {path.stem for path in GOLDEN.glob("*.bin")}
    assert {name.partition("-")[0] for name in names} == {"Put", *(kind.__name__ for kind in KINDS.values())}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_there_are_golden_bytes_of_every_field(kind: type[Event]) -> None:
    recorded = [
        json.loads(path.read_text()) for path in GOLDEN.glob("*.json") if path.stem.partition("-")[0] == kind.__name__
    ]
    assert {item.name for item in fields(kind)} <= set().union(*recorded), "run python -m tests.golden.make_wire"


def test_another_major_version_is_named_on_both_sides() -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        decode(header(3, {}, version=(2, 0)))
    assert (caught.value.ours, caught.value.theirs) == ([1, 0], [2, 0])


def test_a_newer_minor_with_unknown_keys_is_understood() -> None:
    assert decode(header(3, {"marks": {}, "colour": "blue"}, version=(1, 9))) == Beat()


HOSTILE = {
    "empty": b"",
    "short": b"aP",
    "other protocol": b"GET / HTTP/1.1\r\n\r\n",
    "unknown kind": header(200, {}),
    "no map": header(3, [1]),
    "not MessagePack": PREFIX.pack(MAGIC, *VERSION, 3) + b"\xc1",
    "lying string length": PREFIX.pack(MAGIC, *VERSION, 3) + b"\xdb\xff\xff\xff\xffx",
    "lying array length": PREFIX.pack(MAGIC, *VERSION, 3) + b"\xdd\xff\xff\xff\xff",
    "lying map length": PREFIX.pack(MAGIC, *VERSION, 3) + b"\xdf\xff\xff\xff\xff",
    "deep": PREFIX.pack(MAGIC, *VERSION, 3) + b"\x91" * 100_000,
    "not UTF-8": PREFIX.pack(MAGIC, *VERSION, 3) + b"\x81\xa1\xff\x01",
    "trailing bytes": header(3, {}) + b"\0",
    "missing field": header(KIND_OF[Hello], {"role": "producer"}),
    "wrong type": header(KIND_OF[Hello], {"role": 3, "session": b"x"}),
    "not a number": header(KIND_OF[Piece], {"request": struct.unpack("<d", b"\xff" * 8)[0], "size": 0}),
    "too long": b"\0" * (MAX_HEADER_BYTES + 1),
    "put without columns": header(PUT_KIND, {"k": 1}),
    "put of too many": header(PUT_KIND, {"k": MAX_UNIT_MESSAGES + 1}),
    "put of 2**62 messages": header(PUT_KIND, {"k": 2**62, "i": 1, "n": "s", "m": [], "z": 1}),
}


@pytest.mark.parametrize("bad", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_the_peers_fault(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(bad)


@given(st.binary(max_size=200))
def test_any_bytes_give_an_event_or_a_blame(garbage: bytes) -> None:
    for prefix in (b"", PREFIX.pack(MAGIC, *VERSION, garbage[0] if garbage else 0)):
        with contextlib.suppress(RemoteProtocolError, UnsupportedVersion):
            decode(prefix + garbage)


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": [0, 1, 2]}, {"ids": [-1, 1, 2]}, {"ids": [1, 2, 2**63]}, {"ids": [3, 2, 1]}, {"ids": [1, 1, 2]},
        {"ids": [True, 2, 3]}, {"ids": [1.0, 2, 3]}, {"ids": [1, 2]}, {"sizes": [8, 8]}, {"sizes": [8, 8, -8]},
        {"sizes": [8, 8, 9]}, {"sizes": [2**62] * 3, "format": Format()}, {"checksums": b"123"}, {"acquired_ns": b""},
        {"stream": ""}, {"stream": "x" * 256}, {"stream": "a\0b"}, {"level": "soon"}, {"substream": 1},
        {"substream": 3, "dataset_size": 2}, {"dataset_size": 2}, {"closed_below": -1}, {"unit": 2**63},
        {"metas": ["{}", "{}", " " * (2**20 + 1)]}, {"origins": (None,)},
    ],
    ids=str,
)  # fmt: skip
def test_a_put_cannot_exist_with_wrong_contents(changes: dict[str, Any]) -> None:
    with pytest.raises(WrongInput):
        a_put(**changes)


def test_a_put_must_come_with_the_bytes_it_announces() -> None:
    put = a_put()
    with pytest.raises(RemoteProtocolError, match="payload bytes"):
        decode(encode(put), put.nbytes - 1)
    with pytest.raises(RemoteProtocolError, match="expected none"):
        decode(encode(Beat()), 5)


@pytest.mark.parametrize(("dtype", "shape", "codec"), [("O", (), "raw"), ("<u2", (-1,), "raw"), ("u2", (1,), "raw"),
                                                       ("<u2", (1,) * 33, "raw"), ("<u2", (1,), "gzip")])  # fmt: skip
def test_only_known_formats_exist(dtype: str, shape: tuple[int, ...], codec: str) -> None:
    with pytest.raises(WrongInput):
        Format(dtype, shape, codec)
