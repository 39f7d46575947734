"""Simulated and recorded detectors through real services: what comes back is what was there, bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo import Consumer, cli
from asapo.testing.launch import LocalServices
from asapo_produce.detectors.euxfel_example import write_example_run
from asapo_produce.detectors.frames import FramePool
from asapo_produce.detectors.simulate import block_of

pytestmark = [pytest.mark.needs_linux, pytest.mark.needs_server]
TIMEOUT_S = 20.0


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    with LocalServices(tmp_path / "services") as running:
        yield running


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Run an `asapo` command with --json; return status and summary."""
    status = cli.main([*words, "--json"])
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, summary


def read(services: LocalServices, source: str, stream: str, *, group: str = "reader") -> list[Any]:
    """Return all messages of a finished stream, each with its array copied."""
    found = []
    with Consumer(services.native, beamtime="bt", source=source) as consumer:
        reading = consumer.stream(group=group, stream=stream, follow=None, timeout_s=TIMEOUT_S)
        for message in reading:
            found.append((message.id, message.meta, np.array(message.data), message.acquired_ns))
    return found


def test_simulated_frames_arrive_in_order_and_can_be_computed_again(
    services: LocalServices, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--beamtime bt --source det --frames 300 --shape 48x40 --dtype >u2 --rate-hz 0 --seed 9"
    faults = "--skip 1/20 --repeat 1/30 --conflict 1/60"
    status, found = command(capsys, "simulate", services.native, *words.split(), *faults.split())
    assert status == 0, found
    assert (found["skipped"], found["acked"], found["failed"]) == (15, 285 + found["repeated"], 0)
    assert found["refused_duplicates"] == found["conflicts"] > 0
    messages = read(services, "det", "default")
    ids = [i for i, *_ in messages]
    assert len(ids) == 285
    assert ids == sorted(set(ids))
    pool = FramePool((48, 40), ">u2", seed=9)
    for i, meta, data, _ in messages:
        assert data.dtype.str == ">u2"
        assert data.tobytes() == pool.frame(i).tobytes()
        assert meta["hit"] is pool.facts_of(i).hit


def test_reordered_frames_are_all_delivered_once(services: LocalServices, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--beamtime bt --source det --frames 200 --shape 16x16 --reorder 16 --seed 2"
    status, found = command(capsys, "simulate", services.native, *words.split())
    assert status == 0
    assert found["reordered"] > 20
    assert sorted(i for i, *_ in read(services, "det", "default")) == list(range(1, 201))


def test_trains_arrive_with_their_pulses(services: LocalServices, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--beamtime bt --source xfel --preset euxfel-pulses --frames 5400 --rate-hz 54000"
    status, found = command(capsys, "simulate", services.native, *words.split())
    assert (status, found["acked"]) == (0, 5400)
    messages = read(services, "xfel", "default")
    pool = FramePool((32, 64), "<u2", seed=0, block=block_of(2700, 4096))
    assert [i for i, *_ in messages] == list(range(1, 5401))
    for i, meta, data, _ in messages:
        assert (meta["train_id"] - 10_000, meta["pulse_id"]) == divmod(i - 1, 2700)
        assert np.array_equal(data, pool.frame(i))


@pytest.mark.needs_replay
def test_a_european_xfel_run_comes_back_bit_for_bit(
    services: LocalServices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = write_example_run(tmp_path / "r0007", trains=4, pulses=6, modules=2, seed=3)
    words = ["replay", services.native, str(facts.folder), "--beamtime", "bt", "--source", "dssc"]
    status, found = command(capsys, *words, "--speed", "20")
    assert (status, found["acked"], found["paced"]) == (0, 24, True)
    messages = read(services, "dssc", "r0007")
    assert [i for i, *_ in messages] == list(range(1, 25))
    times = set()
    for _, meta, data, acquired_ns in messages:
        expected = facts.frame(meta["train_id"], meta["pulse_id"])
        assert data.dtype.str == "<u2"
        assert data.shape == facts.shape == (2, 128, 512)
        assert data.tobytes() == expected.tobytes()
        assert (data.sum() > 5000) == ((meta["train_id"], meta["pulse_id"]) in facts.hits)
        times.add(acquired_ns)
    assert len(times) == 4  # one per train, as recorded
    # Sent again, everything is there already with the same content.
    status, found = command(capsys, *words, "--speed", "0", "--no-finish")
    assert (status, found["acked"], found["refused_duplicates"]) == (0, 24, 0)
    assert len(read(services, "dssc", "r0007", group="second")) == 24


@pytest.mark.needs_replay
def test_a_nexus_file_with_links_comes_back_bit_for_bit(
    services: LocalServices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py
    import hdf5plugin

    data = np.random.default_rng(1).integers(0, 2**31, (20, 30, 50)).astype(">u4")
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        group = file.create_group("entry/data")
        group.attrs["NX_class"] = "NXdata"
        for number, part in enumerate(np.array_split(data, 3), 1):
            name = f"part_{number}.h5"
            with h5py.File(tmp_path / name, "w") as linked:
                linked.create_dataset("data", data=part, chunks=(1, 30, 50), **hdf5plugin.Bitshuffle())
            group[f"data_{number:06d}"] = h5py.ExternalLink(name, "data")
    words = ["replay", services.native, str(tmp_path / "scan.nxs"), "--beamtime", "bt", "--source", "eiger"]
    status, found = command(capsys, *words, "--rate-hz", "0")
    assert (status, found["acked"]) == (0, 20)
    messages = read(services, "eiger", "scan")
    assert np.array([frame for _, _, frame, _ in messages], dtype=">u4").tobytes() == data.tobytes()
    assert {frame.dtype.str for _, _, frame, _ in messages} == {">u4"}


@pytest.mark.needs_replay
def test_a_folder_of_images_comes_back_bit_for_bit(
    services: LocalServices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fabio.cbfimage
    import fabio.edfimage
    import fabio.tifimage

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(4)
    kinds = [
        (fabio.cbfimage.CbfImage, "cbf", np.int32),
        (fabio.edfimage.EdfImage, "edf", np.uint16),
        (fabio.tifimage.TifImage, "tif", np.float32),
    ]
    frames = []
    for number in range(12):
        kind, suffix, dtype = kinds[number % 3]
        frames.append(rng.integers(0, 1000, (20 + number, 30)).astype(dtype))
        kind(data=frames[-1], header={"exposure": str(number)}).write(str(folder / f"f_{number}.{suffix}"))
    words = ["replay", services.native, str(folder), "--beamtime", "bt", "--source", "camera"]
    status, found = command(capsys, *words)
    assert (status, found["acked"], found["paced"]) == (0, 12, False)
    messages = read(services, "camera", "images")
    for (_, meta, data, _), frame in zip(messages, frames, strict=True):
        assert (data.dtype, data.shape) == (frame.dtype, frame.shape)
        assert data.tobytes() == frame.tobytes()
        assert meta["header"]


def test_recorded_streams_can_be_sent_to_other_services(
    services: LocalServices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--beamtime bt --source det --frames 120 --shape 20x30 --skip 1/10 --seed 1 --stream"
    for stream in ("scan 1", "scan/2"):
        status, _ = command(capsys, "simulate", services.native, *words.split(), stream)
        assert status == 0
    first = {stream: read(services, "det", stream) for stream in ("scan 1", "scan/2")}
    (folder,) = {journal.parents[1] for journal in services.data_dir.rglob("*.idx") if journal.parents[1].name == "det"}
    with LocalServices(tmp_path / "others") as others:
        replay = ["replay", others.native, str(folder), "--beamtime", "bt", "--source", "copy", "--speed", "0"]
        status, found = command(capsys, *replay)
        assert (status, found["acked"]) == (0, 216)
        for stream, messages in first.items():
            again = read(others, "copy", stream)
            assert [(i, meta, t) for i, meta, _, t in again] == [(i, meta, t) for i, meta, _, t in messages]
            assert all(np.array_equal(a[2], b[2]) for a, b in zip(again, messages, strict=True))
