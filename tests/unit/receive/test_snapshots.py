"""The thread that writes the snapshots of finished streams: when, again, and when not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from asapo.errors import WrongInput
from asapo.index.snapshot import Snapshot
from asapo.wire.events import Beat, Event, FinishStream
from asapo_receive import snapshots
from asapo_receive.snapshots import Snapshots
from asapo_receive.units import Request
from tests.recording import BEAMTIME, Recording


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    found = Recording(tmp_path)
    found.put([1, 2])
    found.finish(2)
    yield found
    found.directory.close()


def request(event: Event, *, refused: bool = False) -> Request:
    error = WrongInput("no") if refused else None
    return Request((0, b""), b"", BEAMTIME, "det", event, error=error)


def written(recording: Recording) -> Path:
    return recording.folder / "det" / "s" / "index.snapshot"


END = FinishStream(1, "s", 2, "")


def test_the_end_of_a_stream_is_what_it_waits_for(recording: Recording) -> None:
    thread = Snapshots(recording.directory, recording.tier.root)
    thread.note([])
    thread.note([request(Beat()), request(END, refused=True)])
    thread.note([object()])  # units
    thread.stop()
    thread.run()
    assert not written(recording).exists()
    thread.note([request(END)])
    thread.stop()
    thread.run()
    assert Snapshot(written(recording)).info.last_id == 2


def test_it_comes_again_until_other_receivers_have_closed_their_segments(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Recording(recording.state.parent, receiver="r2")
    other.put([1, 2])  # the same messages again: spare, but its segment is open
    thread = Snapshots(recording.directory, recording.tier.root)
    thread.note([request(END)])
    tries: list[bool] = []

    def try_and_note() -> None:
        again()
        tries.append(written(recording).exists())
        if len(tries) == 1:
            other.close()
        else:
            thread.stop()

    again = thread._try_waiting
    monkeypatch.setattr(snapshots, "RETRY_S", 0.001)
    monkeypatch.setattr(thread, "_try_waiting", try_and_note)
    thread.run()
    assert tries[:2] == [False, True]
    assert thread._waiting == {}


def test_it_gives_up_in_the_end(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Recording(recording.state.parent, receiver="r2")
    other.put([1])
    monkeypatch.setattr(snapshots, "GIVE_UP_S", -1.0)
    thread = Snapshots(recording.directory, recording.tier.root)
    thread.note([request(END)])
    thread.stop()
    thread.run()
    assert thread._waiting == {}
    assert not written(recording).exists()
    other.close()


def test_a_tier_that_takes_no_file_is_a_warning(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    written(recording).mkdir()  # nothing can be renamed to it
    thread = Snapshots(recording.directory, recording.tier.root)
    thread.note([request(END)])
    thread.stop()
    thread.run()
    assert "no snapshot of bt1/det/s: rename" in caplog.text
    assert not list(written(recording).parent.glob("index.snapshot.*"))
