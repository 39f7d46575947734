"""What the writer thread checks before it stores."""

import json
from typing import Any

import pytest
import xxhash

from asapo.errors import PayloadChanged, WrongInput
from asapo.models import StreamRef
from asapo.wire.put import Put, pack_column, unit_offsets
from asapo_receive.units import Unit, meta_error, record_of, verify


def a_unit(payloads: list[bytes], metas: list[str]) -> Unit:
    sizes = [len(p) for p in payloads]
    starts = unit_offsets(sizes)
    whole = bytearray(starts[-1])
    for start, payload in zip(starts, payloads, strict=False):
        whole[start : start + len(payload)] = payload
    put = Put(
        unit=1, stream="s", ids=[3 * i + 1 for i in range(len(sizes))], sizes=sizes, metas=metas,
        checksums=pack_column([xxhash.xxh3_64_intdigest(p) for p in payloads]),
        acquired_ns=pack_column([7] * len(sizes), signed=True), closed_below=1,
    )  # fmt: skip
    return Unit((0, b""), b"s" * 16, StreamRef("b", "d", "s"), put, b"", bytes(whole), len(whole), 5)


def test_a_good_unit_passes() -> None:
    unit = a_unit([b"abc", b"", b"x" * 100], ['{"a":1}', "{}", '{"b":{"c":[1,2,null]}}'])
    verify(unit)
    assert unit.errors == []


def test_a_changed_payload_refuses_only_its_message() -> None:
    unit = a_unit([b"abc", b"def", b"ghi"], ["{}"] * 3)
    changed = bytearray(unit.payload)
    changed[64] ^= 1
    unit.payload = bytes(changed)
    verify(unit)
    assert [(index, type(error)) for index, error in unit.errors] == [(1, PayloadChanged)]
    assert unit.errors[0][1].message_id == 4
    record = record_of(unit, 9, "r1")
    assert (list(record.ids), list(record.offsets), record.segment) == ([1, 7], [0, 128], 9)


BAD_METAS = ["", "[]", "1", "{", '{"a":NaN}', '{"a":Infinity}', '{"a":"\\u0000"}', '{"\\u0000":1}', '{"a":1}{"b":2}',
             '{"a":1},{"b":2}', "null", "{'a':1}", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"]  # fmt: skip


@pytest.mark.parametrize("text", BAD_METAS, ids=lambda text: text[:20])
@pytest.mark.parametrize("neighbours", [0, 2])
def test_metadata_that_is_no_object_refuses_only_its_message(text: str, neighbours: int) -> None:
    unit = a_unit([b"abc"] * (1 + neighbours), [text, *['{"ok":true}'] * neighbours])
    verify(unit)
    assert [(index, type(error)) for index, error in unit.errors] == [(0, WrongInput)]


def test_texts_that_only_together_look_like_objects_are_refused() -> None:
    unit = a_unit([b"abc"] * 2, ['{"a":1},{}', '{"b":2}'])
    verify(unit)
    assert [index for index, _ in unit.errors] == [0]


@pytest.mark.parametrize("value", ["\\u0000 written out", "ü", 2**70, 1.5e300, [None, {}]])
def test_odd_but_good_metadata_passes(value: Any) -> None:
    assert meta_error(json.dumps({"x": value})) is None
