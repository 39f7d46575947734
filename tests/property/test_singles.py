"""Units of one message each, taken as one: the same messages as one by one, or not at all."""

import json
from dataclasses import replace
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from asapo.models import PLAIN, Format, Origin
from asapo.wire.codec import decode, decode_singles, encode
from asapo.wire.events import Beat
from asapo.wire.put import Put, pack_column

PAYLOAD = b"x" * 8


def single(unit: int, message_id: int, payload: bytes = PAYLOAD, **facts: Any) -> Put:
    known: dict[str, Any] = {
        "stream": "s", "sizes": [len(payload)], "checksums": pack_column([xxhash.xxh3_64_intdigest(payload)]),
        "metas": [json.dumps({"unit": unit})], "acquired_ns": pack_column([unit - 5], signed=True),
        "closed_below": message_id,
    }  # fmt: skip
    return Put(unit=unit, ids=[message_id], **{**known, **facts})


def gathered(puts: list[Put]) -> Put | None:
    return decode_singles([encode(put) for put in puts], [put.nbytes for put in puts])


@given(
    first=st.integers(1, 2**62),
    steps=st.lists(st.sampled_from([1, 1, 1, 2, 1000]), min_size=1, max_size=20),
    sizes=st.lists(st.sampled_from([0, 1, 64, 100]), min_size=21, max_size=21),
    form=st.sampled_from([PLAIN, Format("<u2", (4,), "raw")]),
)
def test_what_is_gathered_are_the_messages_as_they_came(
    first: int, steps: list[int], sizes: list[int], form: Format
) -> None:
    ids = [first]
    for step in steps:
        ids.append(ids[-1] + step)
    if form is not PLAIN:
        sizes = [8] * len(ids)
    puts = [
        single(7 + at, message_id, bytes(size), format=form)
        for at, (message_id, size) in enumerate(zip(ids, sizes, strict=False))
    ]
    whole = gathered(puts)
    assert whole is not None
    assert (whole.unit, whole.stream, list(whole.ids), whole.format) == (7, "s", ids, form)
    assert list(whole.sizes) == [put.sizes[0] for put in puts]
    assert list(whole.metas) == [put.metas[0] for put in puts]
    assert whole.checksums == b"".join([put.checksums for put in puts])
    assert whole.acquired_ns == b"".join([put.acquired_ns for put in puts])
    assert whole.closed_below == ids[-1]
    assert decode(encode(whole), whole.nbytes) == whole  # it can go to a journal


BREAKS = {
    "another stream": {"stream": "t"},
    "another format": {"format": Format("|u1", (8,), "raw")},
    "a part of a dataset": {"substream": 1, "dataset_size": 2},
    "another level": {"level": "memory"},
    "an origin": {"origins": [Origin("det", "raw", 1)]},
    "more than one message": {
        "ids": [2, 3], "sizes": [8, 8], "metas": ["{}", "{}"], "checksums": bytes(16), "acquired_ns": bytes(16),
    },
    "a hole in the units": {"unit": 9},
    "the same unit again": {"unit": 1},
    "an id that does not ascend": {"ids": [1]},
    "ids that are too large": {"ids": [2**63 - 1]},
}  # fmt: skip


@pytest.mark.parametrize("change", BREAKS.values(), ids=list(BREAKS))
def test_what_does_not_go_together_is_looked_at_one_by_one(change: dict[str, Any]) -> None:
    before, after = single(1, 1), single(3, 4)
    assert gathered([before, single(2, 2), after]) is not None
    assert gathered([before, replace(single(2, 2), **change), after]) is None


def headers(*, instead: bytes) -> list[bytes]:
    return [encode(single(1, 1)), instead, encode(single(3, 3))]


@pytest.mark.parametrize(
    "instead",
    [
        b"",
        b"aP",
        encode(Beat()),
        encode(single(2, 2))[:-1],
        encode(single(2, 2)) + b"\x01",
        encode(single(2, 2)).replace(b"aP\x01", b"aP\x02"),
        encode(single(2, 2)).replace(b"\xa1i\x02", b"\xa1i\xc3"),
        encode(single(2, 2)).replace(b"\xa1k\x01", b"\xa1k\xc3"),
        encode(single(2, 2)).replace(b"\xa1n\xa1s", b"\xa1n\xc4\x01s"),
        encode(single(2, 2)).replace(b"\xa1z\x08", b"\xa1z\xff"),
        encode(single(2, 2)).replace(b"\xa1b\x02", b"\xa1b\xff"),
        encode(single(2, 2)).replace(b"\xa1u\x02", b"\xa1u\xc0"),
    ],
    ids=repr,
)
def test_a_header_that_is_wrong_spoils_the_whole(instead: bytes) -> None:
    assert decode_singles(headers(instead=encode(single(2, 2))), [8, 8, 8]) is not None
    assert instead != encode(single(2, 2))
    assert decode_singles(headers(instead=instead), [8, 8, 8]) is None


def test_payloads_of_other_lengths_than_announced_spoil_the_whole() -> None:
    assert decode_singles([encode(single(1, 1)), encode(single(2, 2))], [8, 9]) is None
