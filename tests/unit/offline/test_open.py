"""`asapo.open` on folders: the calls of a consumer, and what is said of snapshots and damage."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import asapo
from asapo import Consumer
from asapo.errors import (
    ChecksumMismatch,
    DamagedFile,
    Gap,
    NothingYet,
    PartialDataset,
    StorageError,
    StreamFinished,
    WrongInput,
)
from asapo.index.snapshot_write import write_snapshot
from asapo.models import Origin, StreamRef
from asapo.storage.journal import Damage, JournalRecord, read_journal
from asapo.storage.recorded import journals_in
from tests.recording import BEAMTIME, Recording
from tests.unit.offline.opening import FRAME, frame, frames, opened

# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshots", [False, True])
def test_a_loop_gives_every_message_in_the_order_of_ids(recording: Recording, snapshots: bool) -> None:
    frames(recording, 5, 1, 7, 2)
    recording.finish(9)
    with opened(recording, snapshots=snapshots, verify=True) as consumer:
        found = list(consumer.stream(group="g", stream="s"))
        assert [message.id for message in found] == [1, 2, 5, 7]
        assert [message.data.tolist() for message in found] == [[[n] * 3] * 2 for n in (1, 2, 5, 7)]
        assert [message.meta for message in found] == [{"n": n} for n in (1, 2, 5, 7)]
        assert not found[0].data.flags.writeable
        arrived = [message.id for message in consumer.stream(group="h", stream="s", ordered=False)]
        assert arrived == [5, 1, 7, 2]
        assert [[m.id for m in batch] for batch in consumer.stream(group="b", stream="s", batch=3)] == [[1, 2, 5], [7]]
        assert consumer.report.streams["det/s"].startswith("snapshot" if snapshots else "journals: it has no snapshot")
        assert list(consumer.stream(group="g", stream="s")) == []


def test_more_messages_than_one_backlog_come_each_once(recording: Recording) -> None:
    for first in range(1, 24_001, 2000):
        ids = range(first, first + 2000)
        recording.put(ids, payloads=[b""] * 2000, metas=["{}"] * 2000)
    recording.finish(24_000)
    with opened(recording) as consumer:
        assert [message.id for message in consumer.stream(group="g", stream="s")] == list(range(1, 24_001))
        assert [message.id for message in consumer.stream(group="u", stream="s", ordered=False)] == list(
            range(1, 24_001)
        )


def test_lookups_answer_as_a_broker_does(recording: Recording) -> None:
    frames(recording, 1, 3, 4)
    recording.finish(6, next_stream="next")
    recording.meta('{"about":"s"}')
    recording.meta('{"proposal":1}', stream="")
    frames(recording, 1, stream="open")
    with opened(recording) as consumer:
        assert consumer.get_last(stream="s").id == 4
        assert consumer.get_by_id(3, stream="s").data[0, 0] == 3
        assert [message.id for message in consumer.get_by_id([4, 1], stream="s")] == [4, 1]
        with pytest.raises(Gap):
            consumer.get_by_id([1, 2], stream="s")
        with pytest.raises(StreamFinished):
            consumer.get_by_id(7, stream="s")
        with pytest.raises(NothingYet):
            consumer.get_by_id(7, stream="open")
        info = consumer.stream_info(stream="s")
        assert (info["n_messages"], info["id_max"], info["last_id"], info["next_stream"]) == (3, 4, 6, "next")
        assert info["closed_below"] == 7
        assert consumer.stream_meta(stream="s") == {"about": "s"}
        assert consumer.beamtime_meta() == {"proposal": 1}
        assert [(one["stream"], one["number"]) for one in consumer.streams()] == [("open", 2), ("s", 1)]
        assert consumer.sources() == ["det"]


@pytest.mark.needs_server
def test_queries_and_filters_select(recording: Recording) -> None:
    frames(recording, *range(1, 31))
    recording.finish(30)
    with opened(recording) as consumer:
        assert [m.id for m in consumer.query("n > 27 OR n = 3", stream="s")] == [3, 28, 29, 30]
        assert [m.id for m in consumer.query("n > 5 ORDER BY n DESC LIMIT 2", stream="s")] == [30, 29]
        first = consumer.query("", stream="s", limit=2)
        assert ([m.id for m in first], first.more) == ([1, 2], True)
        assert [m.id for m in consumer.query("", stream="s", limit=2, after=first.cursor)] == [3, 4]
        pages = list(consumer.query_pages("n > 3 ORDER BY n DESC", stream="s", page=10))
        assert [m.id for page in pages for m in page] == list(range(30, 3, -1))
        assert consumer.query("n = 3", stream="s", keys=["n"])[0].meta == {"n": 3}
        assert consumer.count("n > 20", stream="s") == 10
        group = [m.id for m in consumer.stream(group="even", stream="s", where="n IN (2, 4, 40)")]
        assert group == [2, 4]
        with pytest.raises(WrongInput, match="condition only"):
            consumer.get_next("odd", stream="s", where="n > 1 LIMIT 3")


def test_datasets_are_given_whole_and_incomplete_ones_not(recording: Recording) -> None:
    for message_id, parts in ((2, (1, 2)), (1, (2, 1)), (3, (1,))):
        for part in parts:
            recording.put([message_id], substream=part, dataset_size=2, payloads=[frame(part)], form=FRAME)
    recording.finish(3)
    with opened(recording) as consumer:
        found = list(consumer.stream(group="g", stream="s"))
        assert [(message.id, [int(part.data[0, 0]) for part in message.parts]) for message in found] == [
            (1, [1, 2]), (2, [1, 2]),
        ]  # fmt: skip
        assert [message.id for message in consumer.stream(group="u", stream="s", ordered=False)] == [2, 1]
        assert consumer.get_last(stream="s").id == 2
        with pytest.raises(PartialDataset) as caught:
            consumer.get_by_id(3, stream="s")
        assert (caught.value.have, caught.value.dataset_size) == (1, 2)


@pytest.mark.needs_server
def test_results_lead_to_the_messages_they_came_from(recording: Recording) -> None:
    frames(recording, 1, 2)
    recording.put([1, 2], source="hits", origins=[Origin("det", "s", 2), None])
    with opened(recording) as consumer:
        (hit, other) = consumer.get_by_id([1, 2], stream="s", source="hits")
        assert (hit.origin, other.origin) == (Origin("det", "s", 2), None)
        (raw,) = consumer.query("n = 1", stream="s", source="hits", resolve="origin")
        assert (raw.source, raw.id, int(raw.data[0, 0])) == ("det", 2, 2)


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_was_moved_and_is_read_only_opens(recording: Recording, tmp_path: Path) -> None:
    frames(recording, 1, 2)
    recording.finish(2)
    opened(recording, snapshots=True).close()
    home = tmp_path / "home" / "my beamtime"
    shutil.copytree(recording.folder, home)
    shutil.rmtree(tmp_path / "data")
    for path in sorted(home.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    home.chmod(0o555)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    with asapo.open(home, beamtime="bt1", source="det", verify=True) as consumer:
        assert [int(message.data[0, 0]) for message in consumer.stream(group="g", stream="s")] == [1, 2]
    for path in (home / "det" / "s").glob("*.idx"):
        path.parent.chmod(0o755)
        path.unlink()  # the snapshot is enough
    with asapo.open(home, source="det") as consumer:
        assert consumer.get_last(stream="s").beamtime == "bt1"
    assert before == before | {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    home.chmod(0o755)


def test_several_tiers_are_one_beamtime(recording: Recording, tmp_path: Path) -> None:
    fast = Recording(tmp_path / "data", receiver="r2", tier="fast")
    frames(recording, 1, 3)
    frames(fast, 2)
    fast.put([1], stream="only fast")
    recording.finish(3)
    assert fast.store.close()
    assert recording.store.close()
    with asapo.open(recording.folder, fast.folder, source="det") as consumer:
        assert [int(m.data[0, 0]) for m in consumer.stream(group="g", stream="s")] == [1, 2, 3]
        assert [one["stream"] for one in consumer.streams()] == ["only fast", "s"]
    # With the snapshot of one tier's folder the other one is needed for its payloads only.
    folder = recording.folder / "det" / "s"
    ref = StreamRef(BEAMTIME, "det", "s")
    write_snapshot(folder, recording.directory.path(BEAMTIME), ref, list(journals_in(folder).values()))
    with asapo.open(recording.folder, source="det") as consumer:
        message = consumer.get_by_id(2, stream="s")
        with pytest.raises(StorageError, match="open the folder of the tier that has it, too"):
            _ = message.raw
    with asapo.open(fast.folder, recording.folder, source="det") as consumer:
        assert consumer.report.streams["det/s"] == "snapshot"
        assert int(consumer.get_by_id(2, stream="s").data[0, 0]) == 2
    fast.directory.close()


def test_a_damaged_snapshot_is_never_believed(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    frames(recording, 1, 2)
    recording.finish(2)
    opened(recording, snapshots=True).close()
    path = recording.folder / "det" / "s" / "index.snapshot"
    whole = path.read_bytes()
    for at in (70, len(whole) - 30, 0):  # a column, the directory, the header
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with opened(recording) as consumer:
            assert [message.id for message in consumer.stream(group="g", stream="s")] == [1, 2]
            assert "damaged" in consumer.report.streams["det/s"]
    assert "damaged" in caplog.text


def test_a_stale_snapshot_is_left_for_the_journals(recording: Recording) -> None:
    frames(recording, 1, 3)
    recording.finish(3)
    recording.store.close_stream(StreamRef(BEAMTIME, "det", "s"))
    folder = recording.folder / "det" / "s"
    write_snapshot(folder, recording.directory.path(BEAMTIME), StreamRef(BEAMTIME, "det", "s"), [])
    frames(recording, 2)
    with opened(recording) as consumer:
        assert [message.id for message in consumer.stream(group="g", stream="s")] == [1, 2, 3]
        assert "PUT record behind" in consumer.report.streams["det/s"]


def test_opening_by_a_snapshot_reads_neither_journals_nor_segments(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 13):
        frames(recording, number)
        recording.store.close_stream(StreamRef(BEAMTIME, "det", "s"))
    recording.finish(12)
    opened(recording, snapshots=True).close()
    for path in (recording.folder / "det" / "s").glob("*.seg"):
        path.unlink()
    looked_at: list[str] = []

    def watched(path: Path, **settings: int) -> Iterator[JournalRecord | Damage]:
        looked_at.append(path.name)
        yield next(iter(read_journal(path, **settings)))  # HEAD
        raise AssertionError(f"{path} is read on")

    monkeypatch.setattr("asapo.storage.recorded.read_journal", watched)
    with asapo.open(recording.folder, source="det") as consumer:
        assert [message.id for message in consumer.stream(group="g", stream="s")] == list(range(1, 13))
    assert set(looked_at) == {"r1-1-000001.idx"}


@pytest.mark.needs_linux
def test_streams_without_number_hold_few_files(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"s{number}" for number in range(8)]
    for stream in names:
        frames(recording, 1, 2, stream=stream)
        recording.finish(2, stream=stream)
    monkeypatch.setattr("asapo.index.snapshot.MAPPED_FROM", 0)
    monkeypatch.setattr("asapo_work.offline.folder.MAX_LOADED", 3)

    def n_mapped() -> int:
        found = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum("index.snapshot" in target for target in found)

    with opened(recording, snapshots=True) as consumer:
        assert len(consumer.streams()) == 8
        assert n_mapped() == 0  # their facts are enough for a list
        for _ in range(2):
            firsts = [consumer.get_next("g", stream=stream) for stream in names]
            assert 0 < n_mapped() <= 3
        assert [message.id for message in firsts] == [2] * 8
        assert [int(message.data[0, 0]) for message in firsts] == [2] * 8
    gc.collect()
    assert n_mapped() == 0


def test_damage_in_a_journal_is_reported(recording: Recording) -> None:
    for number in (1, 2, 3):
        recording.put([number])
    recording.store.close()
    (path,) = recording.journals()
    text = bytearray(path.read_bytes())
    at = text.index(b'{"n":2}')
    text[at] ^= 1
    path.write_bytes(bytes(text))
    with opened(recording) as consumer:
        assert consumer.report.damages == []  # nobody looked at the stream
        assert [m.id for m in consumer.query("", stream="s")] == [1, 3]
        (damage,) = consumer.report.damages
        assert (damage.path, damage.torn) == (str(path), False)
        assert damage.offset < at < damage.offset + damage.size


def test_damaged_and_missing_payloads_are_errors(recording: Recording) -> None:
    frames(recording, 1, 2)
    with opened(recording, verify=True) as consumer:
        (segment,) = (recording.folder / "det" / "s").glob("*.seg")
        whole = segment.read_bytes()
        segment.write_bytes(b"\xff" + whole[1:])
        with pytest.raises(ChecksumMismatch):
            _ = consumer.get_by_id(1, stream="s").raw
        assert consumer.get_by_id(2, stream="s").data[0, 0] == 2
    segment.write_bytes(whole[:70])
    with opened(recording) as consumer, pytest.raises(DamagedFile):
        _ = consumer.get_by_id(2, stream="s").raw
    segment.unlink()
    with opened(recording) as consumer, pytest.raises(StorageError, match="copy segments and journals together"):
        _ = consumer.get_by_id(2, stream="s").raw


def test_messages_that_were_in_memory_only_are_counted_as_lost(recording: Recording) -> None:
    frames(recording, 1)
    recording.put([2], level="memory")
    recording.finish(2)
    with opened(recording, snapshots=True) as consumer:
        assert [message.id for message in consumer.stream(group="g", stream="s")] == [1]
        assert consumer.report.lost == {"det/s": 1}
        with pytest.raises(Gap):
            consumer.get_by_id(2, stream="s")


def test_wrong_places_are_named(recording: Recording, tmp_path: Path) -> None:
    frames(recording, 1)
    opened(recording).close()
    other = Recording(tmp_path / "other")
    with pytest.raises(WrongInput, match="no such folder"):
        asapo.open(tmp_path / "none")
    with pytest.raises(WrongInput, match=r"is a tier.*bt1"):
        asapo.open(recording.tier.root)
    with pytest.raises(WrongInput, match="no recorded stream found"):
        asapo.open(tmp_path / "other")
    with pytest.raises(WrongInput, match="holds beamtime 'bt1', not 'bt2'"):
        asapo.open(recording.folder, beamtime="bt2")
    with pytest.raises(WrongInput, match="expected one of Consumer's"):
        asapo.open(recording.folder, tokn="x")
    with pytest.raises(WrongInput, match="one address, or folders only"):
        asapo.open("asapo://127.0.0.1:1", recording.folder, beamtime="bt1")
    other.close()


def test_an_address_opens_a_consumer() -> None:
    with asapo.open("asapo://127.0.0.1:1", beamtime="bt1", source="det", access="map") as consumer:
        assert type(consumer) is Consumer


def test_open_leaves_nothing_in_the_temporary_folder(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    frames(recording, 1)
    with opened(recording) as consumer:
        assert consumer.get_last(stream="s").id == 1
        assert not list(tmp_path.glob("asapo-open-*"))


def test_importing_all_names_leaves_the_builtin_open_alone() -> None:
    names: dict[str, object] = {}
    exec("from asapo import *", names)
    assert "open" not in names
    assert "open" in dir(asapo)
