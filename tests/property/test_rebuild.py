"""Whatever receivers recorded: the index made anew is the one of before, and the folder reads as the index does."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asapo
from asapo.errors import DuplicateFile, NothingYet, StreamFinished, UnsafePath, WrongInput
from asapo.index import SqliteIndex
from asapo.index.rebuild import rebuild
from asapo.models import StreamRef
from asapo.storage.recorded import find_recorded
from tests.recording import BEAMTIME, Recording, dump

STREAMS = st.sampled_from(["a", "b"])
RECEIVERS = st.integers(0, 1)
IDS = st.sets(st.integers(1, 12), min_size=1, max_size=4).map(sorted)
STEPS = st.one_of(
    st.tuples(st.just("put"), RECEIVERS, STREAMS, IDS, st.integers(0, 1)),
    st.tuples(st.just("file"), RECEIVERS, STREAMS, st.integers(1, 6), st.sampled_from(["x", "y", "x/y"])),
    st.tuples(st.just("part"), RECEIVERS, STREAMS, st.integers(1, 4), st.integers(1, 2)),
    st.tuples(st.just("finish"), RECEIVERS, STREAMS, st.integers(1, 14), st.sampled_from(["", "b"])),
    st.tuples(st.just("meta"), RECEIVERS, st.sampled_from(["a", "b", ""]), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("close"), RECEIVERS, STREAMS, st.just(0), st.just(0)),
)


def carry_out(step: tuple[Any, ...], receivers: list[Recording]) -> None:
    """Have a receiver do one step; the receivers' clocks go on together."""
    kind, who, stream, what, how = step
    one = receivers[who]
    one.now_ns = max(each.now_ns for each in receivers)
    if kind == "put":
        one.put(what, stream=stream, payloads=[b"%d %d" % (message_id, how) for message_id in what])
    elif kind == "file":
        with suppress(DuplicateFile, UnsafePath):  # other content there, or a file where a folder should be
            one.put([what], stream=stream, path=how, payloads=[b"%d" % what])
    elif kind == "part":
        one.put([what], stream=stream, substream=how, dataset_size=2, payloads=[b"%d" % how])
    elif kind == "finish":
        with suppress(WrongInput):  # refused by the index, but in the journal
            one.finish(what, stream=stream, next_stream=how)
    elif kind == "meta":
        one.meta(f'{{"n":{what}}}', stream=stream)
    else:
        one.store.close_stream(StreamRef(BEAMTIME, "det", stream))


def read(index: SqliteIndex, stream: str) -> list[tuple[Any, ...]]:
    """Return what a group is given of a stream by an index, told by id, arrival and metadata."""
    no = index.stream_no(StreamRef(BEAMTIME, "det", stream))
    if no is None:
        return []
    rows = index.rows_from_id(no, 1, 100, 1000)
    n_parts = {row[0]: sum(other[0] == row[0] for other in rows) for row in rows}
    whole = [row for row in rows if n_parts[row[0]] >= row[3]]
    firsts = {row[0]: row for row in reversed(whole)}
    return [(message_id, firsts[message_id][1], firsts[message_id][9]) for message_id in sorted(firsts)]


@pytest.mark.timeout(300)
@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_before_is_after_and_the_folder_reads_the_same(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        receivers = [Recording(root, receiver=f"r{number}") for number in (1, 2)]
        receivers[0].put([1], stream="a")
        for step in steps:
            carry_out(step, receivers)
        expected = {stream: read(receivers[0].index, stream) for stream in ("a", "b")}
        for one in receivers:
            one.close()
        index = SqliteIndex(root / "after" / "index.sqlite", BEAMTIME)
        report = rebuild(index, find_recorded([receivers[0].folder]))
        index.close()
        assert not report.damages
        assert dump(root / "after" / "index.sqlite") == dump(receivers[0].directory.path(BEAMTIME))
        with asapo.open(receivers[0].folder, source="det") as consumer:
            for stream in {one["stream"] for one in consumer.streams()}:
                found = []
                with suppress(NothingYet):
                    for message in consumer.stream(group="g", stream=stream, follow=None):
                        found.append((message.id, message.seq, message.meta_text))
                        assert bytes(message.raw).startswith(b"%d" % (message.substream or message.id))
                assert found == expected[stream]
                try:
                    last = consumer.get_last(stream=stream).id
                except (NothingYet, StreamFinished):
                    last = 0
                assert last == max((message_id for message_id, *_ in expected[stream]), default=0)
