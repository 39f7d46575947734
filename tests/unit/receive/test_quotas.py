"""How much the folder of a beamtime may hold."""

import os
from pathlib import Path

import pytest

from asapo.errors import DiskFull, QuotaExceeded, from_wire, to_wire
from asapo.metrics import Counters
from asapo.storage.store import StreamStore
from asapo.storage.tier import Tier
from asapo.storage.usage import data_bytes
from asapo_receive import quotas
from asapo_receive.quotas import Quotas
from asapo_receive.turns import Turns
from asapo_receive.writer import Writer
from tests.unit.receive.test_turns import MANY, names, unit
from tests.unit.receive.test_units import a_unit


class Folders:
    """What the folders hold, as the measurement finds it."""

    def __init__(self, **held: int) -> None:
        self.held = held
        self.looks = 0

    def __call__(self, folder: Path) -> int:
        self.looks += 1
        return self.held.get(folder.name, 0)


def quotas_of(folders: Folders, limit: int = 1000, counters: Counters | None = None) -> Quotas:
    return Quotas(Path("/tier"), limit, counters or Counters(), measure=folders)


def test_a_beamtime_waits_until_its_folder_was_measured() -> None:
    found = quotas_of(Folders(bt=900))
    assert not found.ready("bt")
    found.look()
    assert found.ready("bt")
    found.take("bt", 100)
    with pytest.raises(QuotaExceeded):
        found.take("bt", 1)


def test_the_error_says_what_is_used_and_what_to_do() -> None:
    found = quotas_of(Folders(bt=900))
    found.ready("bt")
    found.look()
    with pytest.raises(DiskFull, match=r"bt holds 900 bytes .* 101 more .* 1000 .*remove data") as caught:
        found.take("bt", 101)
    error = from_wire(**to_wire(caught.value))
    assert type(error) is QuotaExceeded
    assert error.retriable
    assert (error.beamtime, error.limit_bytes, error.used_bytes, error.free_bytes) == ("bt", 1000, 900, 100)


def test_other_beamtimes_have_a_limit_of_their_own() -> None:
    found = quotas_of(Folders(full=1000))
    for name in ("full", "other"):
        found.ready(name)
    found.look()
    with pytest.raises(QuotaExceeded):
        found.take("full", 1)
    found.take("other", 1000)


def test_what_others_store_and_remove_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "OFTEN_S", 0.0)
    monkeypatch.setattr(quotas, "SELDOM_S", 0.0)
    monkeypatch.setattr(quotas, "SHARE", 0)
    folders, counters = Folders(), Counters()
    found = quotas_of(folders, counters=counters)
    found.ready("bt")
    found.look()
    found.take("bt", 300)
    folders.held["bt"] = 950  # ours are among them
    found.look()
    assert counters.get("asapo_receiver_beamtime_bytes", beamtime="bt") == 950
    assert counters.get("asapo_receiver_beamtime_limit_bytes", beamtime="bt") == 1000
    with pytest.raises(QuotaExceeded):
        found.take("bt", 51)
    folders.held["bt"] = 100
    found.look()
    found.take("bt", 900)


def test_a_folder_that_nothing_is_stored_in_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "SELDOM_S", 0.0)
    monkeypatch.setattr(quotas, "SHARE", 0)
    folders = Folders()
    found = quotas_of(folders)
    found.ready("bt")
    found.look()
    found.look()
    assert folders.looks == 1
    found.take("bt", 1)
    found.look()
    assert folders.looks == 2


@pytest.mark.expects_errors
def test_a_measurement_that_fails_keeps_the_old_figure(caplog: pytest.LogCaptureFixture) -> None:
    def broken(folder: Path) -> int:
        raise ValueError(folder)

    found = Quotas(Path("/tier"), 1000, Counters(), measure=broken)
    found.ready("bt")
    found.look()
    assert found.ready("bt"), "nobody waits for ever"
    assert "could not be measured" in caplog.text


def test_turns_pass_over_a_beamtime_that_is_not_ready() -> None:
    ready: set[str] = set()
    turns = Turns(ready=ready.__contains__)
    turns.add([unit(1, 1, beamtime="new"), unit(2, 2, beamtime="known")])
    ready.add("known")
    assert names(turns.take(MANY, MANY, 0.0)) == [(2, 2)]
    assert turns.take(MANY, MANY, 1.0) == []
    assert 0 < turns.next_s(1.0) < 1
    ready.add("new")
    assert turns.next_s(2.0) == 0
    assert names(turns.take(MANY, MANY, 2.0)) == [(1, 1)]


def test_what_is_refused_is_not_written_and_the_next_one_that_fits_is(tmp_path: Path) -> None:
    tier = Tier.open(tmp_path)
    found = Quotas(tier.root, 5000, Counters())
    found.ready("b")
    found.look()
    told: list[object] = []
    stage = Writer(StreamStore(tier, "r1", 1), told.append, Counters(), quotas=found)
    units = [a_unit([b"x" * size], ["{}"]) for size in (3000, 4000, 1000)]
    stage.submit(units)
    stage.submit(None)
    stage.run()
    assert [[type(error) for _, error in one.errors] for one in units] == [[], [QuotaExceeded], []]
    assert 4000 <= data_bytes(tmp_path / "b") < 5000


def test_the_measure_of_a_folder_is_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "files" / "deep" / "one.cbf").write_bytes(b"x" * 1234)
    with open(tmp_path / "r1-1-000001.seg", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        os.truncate(file.fileno(), 0)
        file.write(b"y" * 8192)
        file.flush()
        os.truncate(file.fileno(), 1 << 30)
    os.symlink("/usr", tmp_path / "link")
    assert data_bytes(tmp_path) == 1234 + 8192
    assert data_bytes(tmp_path / "nowhere") == 0
