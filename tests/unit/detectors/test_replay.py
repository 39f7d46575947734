"""Replay: ids, moments, ends of streams; and recorded streams read from segments and journals."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from asapo import cli
from asapo.errors import AsapoError, ChecksumMismatch, DamagedFile, WrongInput
from asapo.models import PLAIN, Format, Origin, StreamRef
from asapo.storage.journal import Kind
from asapo.storage.store import StreamStore
from asapo.storage.tier import Tier
from asapo.storage.withdrawn import withdrawal
from asapo.wire.codec import encode
from asapo.wire.put import Put, pack_column
from asapo_produce.detectors.ledger import Ledger
from asapo_produce.detectors.pacing import Pacer
from asapo_produce.detectors.readers import Item, ReadSettings, Recording, StreamEnd, StreamMeta, open_recordings
from asapo_produce.detectors.replay import Replay, ReplaySettings
from tests.unit.detectors.fakes import FakeClock, FakeProducer


class Given:
    """A recording of items that a test made."""

    ends_itself = False

    def __init__(self, *items: Item) -> None:
        self.name = "given"
        self._items = items

    def n_frames(self) -> int:
        return sum(map(len, self._items))

    def items(self, stream: str) -> Iterator[Item | StreamMeta | StreamEnd]:
        yield from self._items


def item(stream: str, n: int, **more: Any) -> Item:
    return Item(stream=stream, frames=np.arange(4 * n, dtype=np.uint16).reshape(n, 2, 2), metas=[{}] * n, **more)


def replayed(recordings: Sequence[Recording], **settings: Any) -> tuple[FakeProducer, FakeClock, Replay]:
    sink, clock = FakeProducer(), FakeClock()
    pacer = Pacer(clock=clock, sleep=clock.sleep)
    replay = Replay(sink, ReplaySettings(**settings), ledger=Ledger(), pacer=pacer)
    replay.run(recordings)
    return sink, clock, replay


def test_ids_count_from_one_in_each_stream_and_streams_are_chained_at_the_end() -> None:
    sink, _, replay = replayed([Given(item("a", 2), item("a", 3)), Given(item("b", 1))])
    assert [(call["stream"], call["ids"]) for call in sink.calls] == [("a", [1, 2]), ("a", [3, 4, 5]), ("b", [1])]
    assert sink.finished == [("a", "b"), ("b", "")]
    assert replay.report.streams == {"a": 5, "b": 1}


def test_loops_go_on_counting_and_finish_once() -> None:
    sink, _, _ = replayed([Given(item("a", 2), item("r", 2, ids=[10, 20]))], loops=3)
    assert [call["ids"] for call in sink.calls if call["stream"] == "a"] == [[1, 2], [3, 4], [5, 6]]
    assert [call["ids"] for call in sink.calls if call["stream"] == "r"] == [[10, 20], [30, 40], [50, 60]]
    assert sink.finished == [("a", "r"), ("r", "")]
    assert replayed([Given(item("a", 1))], finish=False)[0].finished == []


def test_a_rate_sends_frames_at_their_moments_and_keeps_trains_whole() -> None:
    sink, clock, _ = replayed([Given(item("a", 3), item("a", 4, together=True), item("a", 1))], rate_hz=10)
    assert [call["ids"] for call in sink.calls] == [[1], [2], [3], [4, 5, 6, 7], [8]]
    assert clock.now_s == pytest.approx(100 + 0.7)


def test_the_speed_of_the_recording_is_kept_or_multiplied_in_every_loop() -> None:
    second = 10**9
    given = [
        Given(
            item("a", 2, acquired_ns=[5 * second, 6 * second]),
            item("a", 2, acquired_ns=[7 * second] * 2, together=True),
        )
    ]
    sink, clock, replay = replayed(given, speed=1.0)
    assert clock.slept_s == [pytest.approx(1), pytest.approx(1)]
    assert [call["acquired_ns"] for call in sink.calls] == [5 * second, 6 * second, [7 * second] * 2]
    assert replay.report.paced
    _, clock, _ = replayed(given, speed=4.0, loops=2)
    assert clock.now_s == pytest.approx(100 + 2 * 0.5)


def test_without_times_nothing_waits() -> None:
    _, clock, replay = replayed([Given(item("a", 3))], speed=1.0)
    assert not clock.slept_s
    assert not replay.report.paced


@pytest.mark.parametrize("settings", [{"speed": 1, "rate_hz": 1}, {"loops": 0}, {"speed": -1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(WrongInput, match="expected|give one"):
        ReplaySettings(**settings)


# --- recorded streams -------------------------------------------------------------------------------------------------


def header(stream: str, ids: Sequence[int], payloads: Sequence[bytes], form: Format, **more: Any) -> bytes:
    put = Put(
        unit=1,
        stream=stream,
        ids=ids,
        sizes=[len(each) for each in payloads],
        checksums=pack_column([xxh3_64_intdigest(each) for each in payloads]),
        metas=[json.dumps({"n": i}) for i in ids],
        acquired_ns=pack_column([1000 + i for i in ids], signed=True),
        format=form,
        **more,
    )
    return encode(put)


class Recorder:
    """Writes a tier as a receiver does."""

    def __init__(self, root: Path, receiver: str = "r1", source: str = "det") -> None:
        self.store = StreamStore(Tier.open(root), receiver, 1)
        self.source = source
        self.slots: list[Any] = []

    def put(
        self, stream: str, ids: Sequence[int], t_ns: int, payloads: Sequence[bytes], form: Format = PLAIN, *,
        skip: Sequence[int] = (), **more: Any,
    ) -> None:  # fmt: skip
        ref = StreamRef("bt", self.source, stream)
        unit = b"".join(each + bytes(-len(each) % 64) for each in payloads[:-1]) + payloads[-1]
        slot = self.store.reserve(ref, len(unit))
        self.store.write(slot, (unit,))
        self.store.journal_put(slot, header(stream, ids, payloads, form, **more), t_ns, skip=skip)
        self.slots.append(slot)

    def note(self, stream: str, kind: str, slot: Any = None, **fields: Any) -> None:
        self.store.journal(StreamRef("bt", self.source, stream), kind, fields, slot=slot)


FORM = Format(">u2", (4, 8))


def image(i: int) -> bytes:
    return bytes([i]) * 64


def recorded(path: Path, **settings: Any) -> tuple[FakeProducer, FakeClock]:
    sink, clock, _ = replayed(open_recordings([path], ReadSettings()), **settings)
    return sink, clock


def test_recorded_streams_come_back_with_ids_metadata_format_times_and_end(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.put("scan 1/ä", [2, 5, 9], 10**9, [image(2), image(5), image(9)], FORM)
    recorder.put("scan 1/ä", range(10, 11), 2 * 10**9, [image(10)], FORM)
    recorder.put("b", [1], 3 * 10**9, [b"plain"])
    recorder.put("b", [2, 3], 3 * 10**9, [b"longer than the other", b"x"])
    recorder.put("b", [7], 3 * 10**9, [b"\1\2"], Format("<f4", (9, 9), "bslz4"))
    recorder.note("scan 1/ä", Kind.FINISH, last_id=10, next_stream="b")
    recorder.store.close()
    sink, clock = recorded(tmp_path, speed=2.0)
    assert sink.frames("scan 1/ä") == {i: image(i) for i in (2, 5, 9, 10)}
    assert sink.frames("b") == {1: b"plain", 2: b"longer than the other", 3: b"x", 7: b"\1\2"}
    assert sink.metas("scan 1/ä")[5] == '{"n": 5}'
    first = sink.calls[0]
    assert (first["dtype"], first["shape"], first["codec"]) == (">u2", (4, 8), "raw")
    assert first["acquired_ns"] == [1002, 1005, 1009]
    compressed = next(call for call in sink.calls if call["ids"] == [7])
    assert (compressed["dtype"], compressed["shape"], compressed["codec"]) == ("<f4", (9, 9), "bslz4")
    assert sink.finished == [("scan 1/ä", "b")]
    assert clock.now_s == pytest.approx(101)


def test_streams_of_several_receivers_are_merged_by_time_and_datasets_keep_their_parts(tmp_path: Path) -> None:
    first, second = Recorder(tmp_path, "r1"), Recorder(tmp_path, "r2")
    for i in range(1, 7):
        (first if i % 2 else second).put("s", [i], i * 10**6, [image(i)], FORM)
    first.put("d", [1], 10, [b"one"], substream=1, dataset_size=2)
    second.put("d", [1], 11, [b"two"], substream=2, dataset_size=2)
    first.store.close()
    second.store.close()
    sink, _ = recorded(tmp_path)
    assert [call["ids"] for call in sink.calls if call["stream"] == "s"] == [[i] for i in range(1, 7)]
    assert (sink.frames("d", 1), sink.frames("d", 2)) == ({1: b"one"}, {1: b"two"})
    assert [call["dataset_size"] for call in sink.calls if call["stream"] == "d"] == [2, 2]


def test_origins_and_metadata_of_streams_are_sent_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    origins = [Origin("raw", "s", 7), None]
    recorder.put("scores", [1, 2], 1, [b"a", b"b"], origins=origins)
    recorder.put("scores", [3], 2, [b"c"], origins=[Origin("raw", "s", 8)])
    recorder.note("scores", Kind.META, meta='{"old":1}')
    recorder.note("scores", Kind.META, meta='{"sample":"x"}')
    recorder.store.close()
    sink, _ = recorded(tmp_path)
    assert [call.get("origins", call.get("origin")) for call in sink.calls] == [origins, Origin("raw", "s", 8)]
    assert sink.stream_metas == {"scores": '{"sample":"x"}'}


def test_what_was_refused_or_superseded_is_not_sent_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.put("s", [1, 2, 3], 1, [image(1), image(2), image(3)], FORM, skip=[1])
    recorder.put("s", [4, 5], 2, [image(4), image(5)], FORM)
    recorder.note("s", Kind.SUPERSEDED, slot=recorder.slots[0], ids=[3])
    recorder.note("s", Kind.SUPERSEDED, slot=recorder.slots[1], ids=[4, 5])
    recorder.store.close()
    (recording,) = open_recordings([tmp_path], ReadSettings(format="recorded"))
    assert recording.n_frames() == 1
    sink, _, _ = replayed([recording])
    assert sink.frames("s") == {1: image(1)}


def test_an_id_that_is_twice_in_a_segment_is_sent_as_it_was_taken_first(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.put("s", [1, 2], 1, [image(1), image(2)], FORM)
    recorder.put("s", [2, 3], 2, [image(9), image(3)], FORM)
    fields = withdrawal([2], [0], recorder.slots[1].offset, 2)
    recorder.note("s", Kind.REFUSED, slot=recorder.slots[1], **fields)
    recorder.store.close()
    (recording,) = open_recordings([tmp_path], ReadSettings(format="recorded"))
    assert recording.n_frames() == 3
    sink, _, _ = replayed([recording])
    assert sink.frames("s") == {1: image(1), 2: image(2), 3: image(3)}


def test_a_changed_payload_is_found_and_a_cut_segment_named(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.put("s", [1], 1, [image(1)], FORM)
    recorder.store.close()
    (segment,) = tmp_path.rglob("*.seg")
    good = segment.read_bytes()
    segment.write_bytes(b"\0" + good[1:])
    with pytest.raises(ChecksumMismatch, match="message 1"):
        recorded(tmp_path)
    (recording,) = open_recordings([tmp_path], ReadSettings(verify=False))
    assert replayed([recording])[0].frames("s") == {1: b"\0" + image(1)[1:]}
    segment.write_bytes(good[:10])
    with pytest.raises(DamagedFile, match="too early"):
        recorded(tmp_path)


def test_several_sources_or_a_new_name_for_several_streams_need_a_choice(tmp_path: Path) -> None:
    for source in ("det", "mon"):
        recorder = Recorder(tmp_path, source=source)
        recorder.put("s", [1], 1, [source.encode()])
        recorder.put("t", [1], 1, [source.encode()])
        recorder.store.close()
    with pytest.raises(WrongInput, match="bt/det, bt/mon"):
        recorded(tmp_path)
    (recording,) = open_recordings([tmp_path], ReadSettings(source_name="mon"))
    assert replayed([recording])[0].frames("s") == {1: b"mon"}
    with pytest.raises(WrongInput, match="2 recorded streams"):
        replayed([recording], stream="new")
    assert recorded(tmp_path / "bt" / "det" / "s", stream="new")[0].frames("new") == {1: b"det"}


# --- the command ------------------------------------------------------------------------------------------------------


class _Producer(FakeProducer):
    made: list[FakeProducer] = []

    def __init__(self, url: str, **more: Any) -> None:
        super().__init__()
        self.made.append(self)

    def __enter__(self) -> FakeProducer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeProducer]:
    monkeypatch.setattr("asapo_produce.producer.Producer", _Producer)
    monkeypatch.setattr(_Producer, "made", [])
    return _Producer.made


def test_the_command_replays_and_sums_up(
    made: list[FakeProducer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(tmp_path)
    recorder.put("s", [1, 2], 1, [image(1), image(2)], FORM)
    recorder.store.close()
    words = ["replay", "asapo://h:1", str(tmp_path), "--speed", "0", "--loop", "2", "--json", "--no-finish"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sent"], found["acked"], found["failed"], found["streams"]) == (4, 4, 0, {"s": 4})
    assert made[0].frames("s") == {1: image(1), 2: image(2), 3: image(1), 4: image(2)}
    assert made[0].finished == []


def test_a_message_that_is_refused_ends_with_status_1(
    made: list[FakeProducer], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path)
    recorder.put("s", [1], 1, [image(1)], FORM)
    recorder.store.close()

    def refuse(self: Any, *args: Any) -> Any:
        args[4](type("H", (), {"exception": lambda self, timeout_s: AsapoError("no room"), "ids": [1]})())

    monkeypatch.setattr(_Producer, "_take", refuse)
    assert cli.main(["replay", "asapo://h:1", str(tmp_path)]) == 1
    assert "no room" in capsys.readouterr().out


def test_options_that_contradict_each_other_end_with_status_2(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["replay", "asapo://h:1", str(tmp_path), "--speed", "1", "--rate-hz", "2"])
    assert left.value.code == 2
    assert cli.main(["replay", "asapo://h:1", str(tmp_path)]) == 2  # an empty folder
