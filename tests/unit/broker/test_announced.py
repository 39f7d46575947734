"""Units told of by receivers: the same rows that the index has."""

from pathlib import Path
from typing import Any

import pytest

from asapo.errors import RemoteProtocolError, WrongInput
from asapo.index.sqlite import SqliteIndex
from asapo.models import Format, Origin, StreamRef
from asapo.wire.codec import encode
from asapo.wire.put import Put, pack_column, unit_offsets
from asapo_broker.announced import announced
from asapo_receive.units import Unit, announcements, record_of

REF = StreamRef("bt", "det", "s")


def put(ids: Any, **fields: Any) -> Put:
    n = len(ids)
    given: dict[str, Any] = {
        "sizes": [100] * n,
        "checksums": pack_column([2**64 - 1 - k for k in range(n)]),
        "metas": [f'{{"n": {k}}}' for k in range(n)],
        "acquired_ns": pack_column([-k for k in range(n)], signed=True),
    }
    return Put(unit=1, stream="s", ids=ids, **given | fields)


def arrived(event: Put, memory_offset: int = 4096) -> Unit:
    unit = Unit((0, b""), b"s" * 16, REF, event, encode(event), b"", unit_offsets(event.sizes)[-1], 77)
    unit.memory_offset = memory_offset
    return unit


@pytest.fixture
def index(tmp_path: Path) -> Any:
    opened = SqliteIndex(tmp_path / "index.sqlite", "bt")
    yield opened
    opened.close()


def told(index: SqliteIndex, *units: Unit) -> list[Any]:
    records = [record_of(unit, -3, "r1") for unit in units]
    return announcements(units, records, index.commit(records))


@pytest.mark.parametrize(
    "event",
    [
        put(range(1, 65)),
        put([3, 9, 2**62], sizes=[0, 1, 65]),
        put([7], substream=2, dataset_size=3),
        put(range(5, 7), sizes=[8, 8], format=Format("<u2", (2, 2))),
        put([1, 2], metas=["{}", '{"text": "\\u00fc"}'], sizes=[0, 0]),
    ],
    ids=["dense", "sparse", "dataset part", "typed", "without payload"],
)
def test_the_rows_of_an_announced_unit_are_those_of_the_index(index: SqliteIndex, event: Put) -> None:
    told(index, arrived(put([1000])))
    (entry,) = told(index, arrived(event))
    unit = announced(entry)
    number = index.stream_no(REF)
    assert number is not None
    assert (unit.source, unit.stream) == (REF.source, REF.stream)
    assert unit.rows() == index.rows_after_seq(number, 1, 100)


def test_units_of_which_something_was_refused_or_known_are_not_announced(index: SqliteIndex) -> None:
    told(index, arrived(put([1, 2])))
    assert told(index, arrived(put([1, 2]))) == [], "nothing new"
    assert told(index, arrived(put([2, 3], metas=['{"n": 1}', "{}"]), 9000)) == [], "2 lies elsewhere already"
    assert told(index, arrived(put([3, 4], checksums=bytes(16)))) == [], "3 has other content"
    refused = arrived(put([10, 11]))
    refused.errors = [(0, WrongInput("no"))]
    assert told(index, refused) == [], "the receiver refused 10"
    assert told(index, arrived(put([20], origins=[Origin("det", "raw", 4)]))) == []
    assert len(told(index, arrived(put([30])), arrived(put([31])))) == 2


def test_many_headers_are_not_announced(index: SqliteIndex) -> None:
    long = '{"text": "' + "x" * 600_000 + '"}'
    assert told(index, arrived(put([1], metas=[long])), arrived(put([2], metas=[long]))) == []


@pytest.mark.parametrize(
    "entry",
    [
        7,
        ["det", "s"],
        ["det", "s", 0, 1, 0, 1, 1, b""],
        ["det", "s", 1, 1, -1, 1, 1, b""],
        ["det", "s", "1", 1, 0, 1, 1, b""],
    ],
)
def test_what_is_no_unit_is_refused(entry: Any) -> None:
    with pytest.raises(WrongInput, match="announced unit"):
        announced(entry)


def test_a_header_that_is_no_put_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        announced(["det", "s", 1, 1, 0, 1, 1, b"aP\x01\x00\x10\x80"]).rows()
