"""Messages that the index refuses after they were stored, and sessions that only beat."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asapo.errors import DuplicateId, StreamBusy
from asapo.index import SqliteIndex
from asapo.index.directory import FILE_NAME
from asapo.models import StreamRef
from asapo.storage.journal import JournalRecord, Kind, read_journal
from asapo.storage.layout import find_journals
from asapo.testing.launch import LocalServices
from asapo_produce.detectors.readers.recorded import RecordedStreams
from asapo_receive.replay import replay_all
from asapo_receive.units import Closing, Note
from tests.e2e.ledger import PATIENCE_S, producer_of

REF = StreamRef("bt", "det", "s")


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    """Run a core and one receiver."""
    with LocalServices(tmp_path) as found:
        yield found


def refusals(folder: Path) -> list[dict[str, Any]]:
    records = [record for path in find_journals(folder) for record in read_journal(path)]
    return [each.fields for each in records if isinstance(each, JournalRecord) and each.kind == Kind.REFUSED]


def test_what_the_index_refused_is_not_recorded(services: LocalServices, tmp_path: Path) -> None:
    with producer_of(services) as producer:
        producer.send(b"first", id=1, stream="s").result(PATIENCE_S)
        with pytest.raises(DuplicateId):
            producer.send(b"other", id=1, stream="s").result(PATIENCE_S)
        producer.send(b"second", id=2, stream="s").result(PATIENCE_S)
    folder = services.data_dir / "beamline"
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := refusals(folder)):
        assert time.monotonic() < deadline_s, "no record of the refusal"
        time.sleep(0.01)
    assert [(each["ids"], each["indices"], each["offset"]) for each in found] == [([1], [0], 64)]
    recording = RecordedStreams(folder, source="det")
    assert recording.n_frames() == 2
    items = [bytes(frame) for item in recording.items("") if hasattr(item, "frames") for frame in item.frames]
    assert items == [b"first", b"second"]

    # An index made anew from these journals takes the same two; without the record it would refuse, and say so.
    index = SqliteIndex(tmp_path / "anew" / "index.sqlite", "bt")
    (segment,) = folder.rglob("*.seg")
    index.register_segment(str(segment), "r1", 1, "", "", REF)
    index.register_segment("memory:r1-1", "r1", 1, "", "", REF)
    todo: list[Note | Closing] = []
    assert replay_all(index, "r1", todo, 0) == 2
    assert todo == [Closing("bt", 1), Closing("bt", 2)]  # and nothing to be noted
    index.close()


def test_a_producer_that_is_idle_keeps_its_session_in_the_index(services: LocalServices) -> None:
    with producer_of(services) as producer:
        producer.send(b"x", stream="s").result(PATIENCE_S)
        (path,) = services.data_dir.rglob(FILE_NAME)
        index = SqliteIndex(path, "bt")

        def seen_s() -> float:
            ((found,),) = index._database.read("SELECT max(seen_s) FROM session")
            return float(found)

        before_s, deadline_s = seen_s(), time.monotonic() + PATIENCE_S
        while seen_s() < before_s + 1.0:
            assert time.monotonic() < deadline_s, "the session was not kept alive"
            time.sleep(0.05)
        with pytest.raises(StreamBusy):
            index.open_session(REF, b"2" * 16, 0, True, "r2")
        index.close()
