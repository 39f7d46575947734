"""`asapo reindex` on what real services recorded: before is after, and damage and running services are named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo import Consumer, Producer
from asapo.errors import DuplicateId
from asapo.storage.journal import JournalRecord, read_journal
from asapo.testing.launch import LocalServices
from tests.recording import Recording, dump

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]


def reindex(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    argv = [sys.executable, "-m", "asapo", "reindex", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=os.environ)


def facts(*words: object) -> dict[str, Any]:
    """Run the command and return its facts of one beamtime."""
    done = reindex(*words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def record(root: Path, *, receivers: int) -> None:
    """Record messages of every kind; everything ends in good order."""
    with LocalServices(root, receivers=receivers, declared_keys=("n",), sorted_keys=("sample.name",)) as services:
        with Producer(services.native, beamtime="bt1", source="det") as producer:
            producer.set_beamtime_meta({"a": 1})
            producer.set_beamtime_meta({"a": 2})
            for number in range(1, 101):
                producer.send(np.full(300, number, "<u2"), id=number, meta={"n": number})
            batch = [b"x" * n for n in range(1, 20)]
            producer.send_batch(batch, ids=list(range(200, 219)), metas=[{"n": n} for n in range(19)])
            producer.set_stream_meta("default", {"s": 1})
            producer.flush()
            producer.send(np.full(300, 7, "<u2"), id=7, meta={"n": 7}).result()  # there already
            with pytest.raises(DuplicateId):
                producer.send(b"other", id=8).result()
            producer.send(b"part", id=1, stream="modules", substream=1, dataset_size=2)
            producer.finish_stream(next_stream="modules")
            with pytest.raises(Exception, match="finished"):
                producer.send(b"late", id=500).result()
        with Producer(services.native, beamtime="bt1", source="view", level="memory") as producer:
            producer.send(b"gone", id=1, stream="live").result()
        with (
            Consumer(services.native, beamtime="bt1", source="det") as consumer,
            Producer(services.native, beamtime="bt1", source="hits") as producer,
        ):
            message = consumer.get_by_id(3)
            producer.send(None, id=3, meta={"lit": 1}, origin=message).result()


def without_memory(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what no journal has."""
    streams = {names: facts for names, facts in found["streams"].items() if names[0] != "view"}
    messages = {key: row for key, row in found["messages"].items() if key[0] != "view"}
    return {**found, "streams": streams, "messages": messages}


def go_on(root: Path) -> None:
    """Read and write with the rebuilt index."""
    with (
        LocalServices(root) as services,
        Consumer(services.native, beamtime="bt1", source="det") as consumer,
        Producer(services.native, beamtime="bt1", source="det") as producer,
    ):
        assert len(list(consumer.stream(group="g", follow=None, timeout_s=20))) == 119
        assert [message.id for message in consumer.query("n = 50")] == [50]
        info = consumer.stream_info()
        assert (info["declared_keys"], info["sorted_keys"]) == (["n"], ["sample.name"])
        producer.send(b"part", id=1, stream="modules", substream=2, dataset_size=2).result()
        assert len(consumer.get_next("m", stream="modules").parts) == 2


@pytest.mark.parametrize("receivers", [1, 2])
def test_the_index_is_as_before_and_services_go_on_with_it(tmp_path: Path, receivers: int) -> None:
    record(tmp_path, receivers=receivers)
    database = tmp_path / "state" / "bt1" / "index.sqlite"
    before = dump(database, seq=receivers == 1)
    made = facts(tmp_path)
    assert dump(database, seq=receivers == 1) == without_memory(before)
    assert dump(database.with_name("index.sqlite.before"), seq=receivers == 1) == before
    assert (made["memory_lost"], made["messages"], made["messages_before"]) == (1, 121, 122)
    assert made["damages"] == []
    assert (made["mixed"] == []) == (receivers == 1)
    for path in (tmp_path / "beamline" / "bt1").glob("*/*/index.snapshot"):
        path.unlink()
    if receivers == 1:
        go_on(tmp_path)
        return
    shutil.rmtree(database.parent)  # the index may be gone altogether
    again = facts(tmp_path / "beamline" / "bt1")
    assert (again["messages"], again["messages_before"], again["snapshots"]) == (121, None, 1)
    assert dump(database, seq=receivers == 1) == without_memory(before)


@pytest.mark.parametrize("left", ["broker", "r1"])
def test_it_refuses_while_services_run(tmp_path: Path, left: str) -> None:
    with LocalServices(tmp_path) as services:
        with Producer(services.native, beamtime="bt1", source="det") as producer:
            producer.send(b"x").result()
        services.end("r1" if left == "broker" else "broker")
        done = reindex(tmp_path)
        who = "the broker" if left == "broker" else "receiver r1"
        assert done.returncode == 2
        assert f"{who} is running" in done.stderr
        assert not (tmp_path / "state" / "bt1" / "index.sqlite.before").exists()


def test_damage_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    for number in (1, 2, 3):
        recording.put([number])
    recording.close()
    (path,) = recording.journals()
    records = [item for item in read_journal(path) if isinstance(item, JournalRecord)]
    text = bytearray(path.read_bytes())
    text[records[2].offset + 30] ^= 1
    path.write_bytes(bytes(text))
    done = reindex(tmp_path)
    assert done.returncode == 1
    assert f"{path}: a record is damaged at byte {records[2].offset}" in done.stderr
    assert done.stdout.startswith("bt1: 2 messages (3 before) in 1 streams, from 1 journals")
    again = json.loads(reindex(tmp_path, "--json").stdout)
    assert [damage["offset"] for damage in again["damages"]] == [records[2].offset]
    path.write_bytes(bytes(text[:-3]))  # and a torn end, which a killed receiver leaves behind
    torn = json.loads(reindex(tmp_path, "--json").stdout)["damages"]
    assert [damage["torn"] for damage in torn] == [False, True]


def test_a_tier_that_the_index_knows_must_be_named(tmp_path: Path) -> None:
    first, second = Recording(tmp_path), Recording(tmp_path, receiver="r2", tier="fast")
    first.put([1])
    second.put([2])
    for one in (first, second):
        one.close()
    done = reindex(tmp_path)
    assert done.returncode == 2
    assert "also has 1 segments on other tiers" in done.stderr
    assert facts(first.folder, second.folder)["messages"] == 2
    assert facts(tmp_path, "--partial")["messages"] == 1


def test_a_damaged_index_is_replaced(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    (recording.tier.root / "lost+found").mkdir()
    recording.put([1, 2])
    recording.close()
    database = recording.directory.path("bt1")
    before = dump(database)
    database.write_bytes(b"not a database at all" * 500)
    made = facts(tmp_path)
    assert "cannot be read" in made["notes"][0]
    assert dump(database) == before


def test_wrong_places_are_named(tmp_path: Path) -> None:
    for words in ([tmp_path], [tmp_path / "none"]):
        done = reindex(*words)
        assert done.returncode == 2
        assert "expected the data folder of `asapo up`" in done.stderr
    recording = Recording(tmp_path / "data")
    recording.close()
    done = reindex(tmp_path / "data", "--json")
    assert done.returncode == 2
    assert "name it by --state" in json.loads(done.stdout)["error"]["message"]
