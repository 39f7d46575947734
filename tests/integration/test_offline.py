"""One script on running services, on a replay of the recording, and on the folder: the same results."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import asapo
from asapo import Producer
from asapo.testing.launch import LocalServices
from tests.unit.test_rooms import HIDE

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]
SCRIPT = Path(__file__).with_name("analysis_script.py")
WAIT_S = 60.0


def run(*words: object) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def send_all(url: str) -> None:
    """Send a run of two streams, datasets, and results, by one producer each."""
    with Producer(url, beamtime="bt1", source="det") as producer:
        producer.set_beamtime_meta({"proposal": 7})
        for message_id in [*range(1, 30, 2), 30]:
            data = np.full((4, 5), message_id, "<u2")
            meta = {"n": message_id, "kind": "ab"[message_id % 4 // 2]}
            producer.send(data, id=message_id, stream="run1", meta=meta, acquired_ns=10**18 + message_id)
        producer.set_stream_meta("run1", {"sample": "lysozyme"})
        producer.finish_stream("run1", next_stream="run2")
        for message_id in (1, 2, 3):
            producer.send(
                np.full(3, message_id, ">f8"), id=message_id, stream="run2", meta={"n": 1}, acquired_ns=message_id
            )
        producer.finish_stream("run2")
        for message_id, parts in ((1, 2), (2, 2), (3, 1)):
            for part in range(1, parts + 1):
                values = np.full(2, 10 * message_id + part, "<i4")
                producer.send(values, id=message_id, stream="modules", substream=part, dataset_size=2)
        producer.finish_stream("modules")
    with (
        asapo.open(url, beamtime="bt1", source="det") as consumer,
        Producer(url, beamtime="bt1", source="hits") as hits,
    ):
        for message in consumer.get_by_id([9, 3], stream="run1"):
            hits.send(None, id=message.id, stream="run1", meta={"n": message.id - 7}, origin=message)
        hits.finish_stream("run1")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Record with two receivers, run the script live; give the beamtime's folder and what the script printed."""
    root = tmp_path_factory.mktemp("live")
    with LocalServices(root, receivers=2) as services:
        send_all(services.native)
        live = run(SCRIPT, services.native, "bt1")
        folder = root / "beamline" / "bt1"
        streams = [folder / name for name in ("det/run1", "det/run2", "det/modules", "hits/run1")]
    # Services that ended have closed all segments; those that were idle did so before, and the snapshots came then.
    assert sum((stream / "index.snapshot").exists() for stream in streams) >= 1
    return folder, live


def test_the_same_script_prints_the_same_live_replayed_and_offline(recorded: tuple[Path, str], tmp_path: Path) -> None:
    folder, live = recorded
    assert "done 2 2" in live
    assert run(SCRIPT, folder, "bt1") == live
    with LocalServices(tmp_path / "again") as services:
        for source in ("det", "hits"):
            replay = ("-m", "asapo", "replay", services.native, folder, "--source-name", source, "--source", source)
            run(*replay, "--beamtime", "bt1", "--speed", 0)
        with Producer(services.native, beamtime="bt1", source="det") as producer:
            producer.set_beamtime_meta({"proposal": 7})  # of the beamtime, not of the source that is replayed
        assert run(SCRIPT, services.native, "bt1") == live


def test_the_folder_opens_elsewhere_by_the_base_install(recorded: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = recorded
    home = tmp_path / "home"
    shutil.copytree(folder, home)
    code = f"""{HIDE}
import asapo
from asapo.errors import ConfigError
with asapo.open({str(home)!r}, source="det", verify=True) as consumer:
    print(sum(int(msg.data.sum()) for msg in consumer.stream(group="g", stream="run1", follow=None)))
    try:
        consumer.query("n = 1", stream="run1")
    except ConfigError as error:
        print(error)
"""
    total, needs = run("-W", "error", "-c", code).splitlines()
    assert int(total) == 20 * (sum(range(1, 30, 2)) + 30)
    assert needs == "query text needs the package lark; install it with: pip install 'asapo[server]'"


def test_a_finished_stream_gets_its_snapshot_from_the_receiver(tmp_path: Path) -> None:
    with LocalServices(tmp_path, log_level="info") as services:
        folder = tmp_path / "beamline" / "bt1" / "det" / "default"
        with Producer(services.native, beamtime="bt1", source="det") as producer:
            for number in range(1, 6):
                producer.send(b"x" * number, id=number)
            producer.flush()
            assert not (folder / "index.snapshot").exists()
            producer.finish_stream()
            wait_until((folder / "index.snapshot").exists)
        with asapo.open(Path(folder.parents[1]), source="det") as consumer:
            assert [message.size for message in consumer.stream(group="g")] == [1, 2, 3, 4, 5]
            assert consumer.report.streams == {"det/default": "snapshot"}


def test_a_folder_is_read_while_services_write_to_it(tmp_path: Path) -> None:
    with LocalServices(tmp_path) as services, Producer(services.native, beamtime="bt1", source="det") as producer:
        for number in (1, 2):
            producer.send(b"x", id=number).result()
        with asapo.open(tmp_path / "beamline" / "bt1", source="det") as consumer:
            producer.send(b"later", id=3).result()
            assert consumer.stream_info()["n_messages"] in (2, 3)
            assert bytes(consumer.get_by_id(2).raw) == b"x"
    assert os.listdir(tmp_path / "beamline")
