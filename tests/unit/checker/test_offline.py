"""Files alone, without services: what counts is read, what does not is left out, what is broken is an error."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from asapo.models import StreamRef
from asapo.storage.journal import Kind
from asapo.storage.layout import find_journals
from asapo.storage.slots import Slot
from asapo.storage.store import StreamStore
from asapo.storage.tier import Tier
from asapo.storage.withdrawn import withdrawal
from asapo.testing.checker.evidence import Reading
from asapo.testing.checker.offline import read_offline
from asapo.wire.codec import encode
from asapo.wire.put import Put, pack_column, unit_offsets

REF = StreamRef("bt", "checker", "s/1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StreamStore]:
    found = StreamStore(Tier.open(tmp_path), "r1", 1)
    yield found
    found.close()


def put(store: StreamStore, payloads: dict[int, bytes], t: int) -> Slot:
    """Store one unit as a receiver does, taken in at time `t`."""
    sizes = [len(data) for data in payloads.values()]
    zeros = pack_column([0] * len(payloads))
    metas = [f'{{"n": {one}}}' for one in payloads]
    header = encode(
        Put(unit=1, stream=REF.stream, ids=list(payloads), sizes=sizes, checksums=zeros, metas=metas, acquired_ns=zeros)
    )
    starts = unit_offsets(sizes)
    unit = bytearray(starts[-1])
    for start, data in zip(starts, payloads.values(), strict=False):
        unit[start : start + len(data)] = data
    slot = store.reserve(REF, len(unit))
    store.write(slot, [unit])
    store.journal_put(slot, header, t)
    return slot


def told(reading: Reading) -> list[tuple[int, str, int]]:
    return [(one.id, one.sha256[:8], one.named) for one in reading.seen]


def expected(*pairs: tuple[int, bytes]) -> list[tuple[int, str, int]]:
    return [(one, hashlib.sha256(data).hexdigest()[:8], one) for one, data in pairs]


def test_every_message_of_every_unit_is_read(store: StreamStore, tmp_path: Path) -> None:
    put(store, {1: b"a" * 100, 3: b"", 4: b"c"}, 1)
    put(store, {9: b"d" * 5000}, 2)
    reading = read_offline(tmp_path, REF)
    assert told(reading) == expected((1, b"a" * 100), (3, b""), (4, b"c"), (9, b"d" * 5000))
    assert reading.complete
    assert reading.errors == ()
    assert read_offline(tmp_path, StreamRef("bt", "checker", "other")).seen == ()


def test_what_was_withdrawn_and_what_came_second_do_not_count(store: StreamStore, tmp_path: Path) -> None:
    put(store, {1: b"first", 2: b"second"}, 1)
    refused = put(store, {5: b"refused", 6: b"kept"}, 2)
    store.journal(REF, Kind.REFUSED, withdrawal([5], [0], refused.offset, 2), slot=refused)
    put(store, {2: b"again", 5: b"other"}, 3)
    assert told(read_offline(tmp_path, REF)) == expected((1, b"first"), (2, b"second"), (6, b"kept"), (5, b"other"))


def test_a_segment_that_ends_too_early_is_an_error_for_its_last_messages(store: StreamStore, tmp_path: Path) -> None:
    put(store, {1: b"a" * 1000}, 1)
    put(store, {2: b"b" * 1000}, 2)
    store.close()
    (segment,) = (path.with_suffix(".seg") for path in find_journals(tmp_path))
    os.truncate(segment, segment.stat().st_size - 512)
    reading = read_offline(tmp_path, REF)
    assert told(reading) == expected((1, b"a" * 1000))
    assert [(one.id, one.detail) for one in reading.errors] == [(2, "damaged_file")]
    segment.unlink()
    assert [one.id for one in read_offline(tmp_path, REF).errors] == [1, 2]


def test_a_damaged_record_is_told_and_its_neighbours_are_read(store: StreamStore, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        put(store, {number: b"%d" % number}, number)
    store.close()
    (journal,) = find_journals(tmp_path)
    data = bytearray(journal.read_bytes())
    second = data.index(b'{"n": 2}')
    data[second] ^= 1
    journal.write_bytes(data)
    reading = read_offline(tmp_path, REF)
    assert told(reading) == expected((1, b"1"), (3, b"3"))
    (error,) = reading.errors
    assert error.id == 0
    assert str(journal) in error.detail
