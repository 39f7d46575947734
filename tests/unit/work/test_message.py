"""Messages: lazy contents, honest reprs, datasets, ranges of ids."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.errors import RemoteProtocolError
from asapo.models import PLAIN, Format, Origin
from asapo.testing.fake_broker import row
from asapo.wire.events import Rows
from asapo_work.message import Message, messages_of, ranges_of, settle


class Bytes:
    """Payloads that lie in memory, by id, and count how often they are read."""

    def __init__(self, **payloads: bytes) -> None:
        self.payloads = payloads
        self.reads = 0

    def raw(self, batch: Any, columns: Any) -> Any:
        self.reads += 1
        return memoryview(self.payloads[f"m{columns[0]}"])

    def array(self, raw: Any, form: Any) -> Any:
        return (bytes(raw), form)


def make(*rows: Any, payloads: Any = None, **tables: Any) -> list[Message]:
    answer = Rows(1, list(rows), tables.pop("segments", {}), tables.pop("formats", {}), **tables)
    return messages_of("bt", "det", "run", answer, payloads or Bytes())


def test_columns_are_named() -> None:
    columns = {"seq": 3, "size": 5, "t_acq_ns": 7, "t_ingest_ns": 8, "meta": '{"a": 1}'}
    (message,) = make(row(9, **columns), attempts={9: 2}, late=[9])
    assert (message.id, message.seq, message.size, message.acquired_ns, message.stored_ns) == (9, 3, 5, 7, 8)
    assert (message.beamtime, message.source, message.stream) == ("bt", "det", "run")
    assert (message.meta, message.meta_text, message.attempt, message.late) == ({"a": 1}, '{"a": 1}', 2, True)


def test_a_message_given_for_the_first_time_says_so() -> None:
    (message,) = make(row(1))
    assert (message.attempt, message.late, message.origin, message.parts) == (1, False, None, ())


def test_origin_is_resolved_by_its_number() -> None:
    (message,) = make(row(1, origin=4, origin_id=77), origins={4: ["cam", "raw"]})
    assert message.origin == Origin("cam", "raw", 77)


def test_metadata_is_decoded_once() -> None:
    (message,) = make(row(1, meta='{"a": [1]}'))
    assert message.meta is message.meta


def test_the_payload_is_read_once_and_only_when_asked_for() -> None:
    payloads = Bytes(m1=b"xyz")
    (message,) = make(row(1, format=2), payloads=payloads, formats={2: ["|u1", [3], "raw"]})
    assert payloads.reads == 0
    assert message.data == (b"xyz", Format("|u1", (3,)))
    assert bytes(message.raw) == b"xyz"
    assert payloads.reads == 1


def test_an_unknown_format_is_plain_bytes() -> None:
    (message,) = make(row(1, format=99))
    assert message.format == PLAIN


def test_neighbours_of_one_dataset_become_one_message() -> None:
    rows = [row(1), *(row(2, substream=s, dataset_size=3) for s in (2, 1, 3)), row(3, substream=1, dataset_size=1)]
    messages = make(*rows)
    assert [message.id for message in messages] == [1, 2, 3]
    assert [[part.substream for part in message.parts] for message in messages] == [[], [1, 2, 3], [1]]


def test_the_terminal_repr_is_one_line_with_what_matters() -> None:
    (message,) = make(row(7, size=4096, format=1, meta='{"x": 1}'), formats={1: ["<u2", [32, 64], "raw"]})
    assert repr(message) == '<Message 7 of det/run: 32x64 <u2, 4.0 KiB, meta {"x": 1}>'


def test_long_metadata_is_cut_in_the_repr() -> None:
    (message,) = make(row(7, meta=json.dumps({"k": "v" * 500})))
    assert len(repr(message)) < 150
    assert "..." in repr(message)


def test_the_jupyter_repr_escapes_what_a_producer_wrote() -> None:
    (message,) = make(row(7, meta='{"<script>": "<img src=x onerror=alert(1)>"}'))
    shown = message._repr_html_()
    assert "<script>" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize(
    "rows", [[[1, 2]], ["text"], [None], [5], ["long enough for a row"], [dict.fromkeys(range(14), 1)], [row(1), [2]]]
)
def test_rows_that_are_none_are_the_brokers_fault(rows: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        make(*rows)


@pytest.mark.parametrize("formats", [{1: 5}, {1: ["<u2"]}, {1: ["<u2", 3, "raw"]}])
def test_a_table_of_formats_that_is_none_is_the_brokers_fault(formats: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        make(row(1), formats=formats)


def test_only_what_is_not_settled_yet_is_settled() -> None:
    messages = make(row(1), row(2), row(3), *(row(4, substream=part, dataset_size=2) for part in (1, 2)))
    assert settle([]) == []
    assert settle(messages[1:2]) == [2]
    assert [message.settled for message in messages] == [False, True, False, False]
    assert settle(messages) == [1, 3, 4]
    assert settle(messages) == []


@given(st.lists(st.integers(1, 60)))
def test_ranges_hold_exactly_the_ids_and_never_touch(ids: Any) -> None:
    ranges = ranges_of(ids)
    assert sorted({i for low, high in ranges for i in range(low, high + 1)}) == sorted(set(ids))
    assert all(after[0] > before[1] + 1 for before, after in zip(ranges, ranges[1:], strict=False))


@given(st.integers(1, 2**62), st.integers(1, 300))
def test_a_dense_run_is_one_range(first: Any, n: Any) -> None:
    assert ranges_of(range(first, first + n)) == [(first, first + n - 1)]
