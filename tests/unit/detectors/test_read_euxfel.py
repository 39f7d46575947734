"""European XFEL runs: one message per pulse, one unit per train, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo.errors import WrongInput
from asapo_produce.detectors.euxfel_example import ExampleRun, write_example_run
from asapo_produce.detectors.readers import Item, ReadSettings, open_recordings
from asapo_produce.detectors.readers.euxfel import module_key

pytestmark = [pytest.mark.needs_replay]
SMALL = (8, 16)


def items(path: Path, **settings: Any) -> list[Item]:
    (recording,) = open_recordings([path], ReadSettings(**settings))
    return [item for item in recording.items("") if isinstance(item, Item)]


def by_pulse(found: list[Item]) -> dict[tuple[int, int], tuple[Any, dict[str, Any]]]:
    pulses = {}
    for item in found:
        for frame, meta in zip(item.frames, item.metas, strict=True):
            assert isinstance(meta, dict)
            pulses[meta["train_id"], meta["pulse_id"]] = (frame, meta)
    return pulses


def check_against(facts: ExampleRun, found: list[Item]) -> None:
    pulses = by_pulse(found)
    assert sorted(pulses) == [(train, pulse) for train in facts.train_ids for pulse in range(facts.pulses)]
    for (train, pulse), (frame, meta) in pulses.items():
        expected = facts.frame(train, pulse)
        assert frame.dtype.str == facts.dtype
        assert frame.shape == facts.shape
        assert frame.tobytes() == expected.tobytes()
        assert meta["cell_id"] == pulse


def test_the_example_run_comes_back_bit_for_bit_train_by_train(tmp_path: Path) -> None:
    facts = write_example_run(tmp_path / "r0001", trains=3, pulses=4, shape=SMALL, seed=5)
    found = items(tmp_path / "r0001")
    check_against(facts, found)
    assert [len(item) for item in found] == [4, 4, 4]
    assert all(item.together and item.stream == "r0001" for item in found)
    times = [item.acquired_ns for item in found]
    assert all(each is not None and len(set(each)) == 1 for each in times)
    starts = [each[0] for each in times if each is not None]
    assert [round((b - a) / 1e8) for a, b in zip(starts, starts[1:], strict=False)] == [1, 1]


def test_the_hits_of_the_example_are_the_bright_frames(tmp_path: Path) -> None:
    facts = write_example_run(tmp_path / "r1", trains=4, pulses=8, shape=(32, 64), hit_fraction=0.25)
    bright = {key for key, (frame, _) in by_pulse(items(tmp_path / "r1")).items() if frame.sum() > 5000}
    assert bright == facts.hits
    assert len(facts.hits) == 8
    assert facts.n_bytes == 32 * 32 * 64 * 2


def test_modules_are_stacked_in_the_order_of_their_numbers_or_chosen(tmp_path: Path) -> None:
    facts = write_example_run(tmp_path / "r1", trains=2, pulses=3, modules=11, shape=SMALL)
    check_against(facts, items(tmp_path / "r1"))
    one = by_pulse(items(tmp_path / "r1", source_name="*/DET/10CH0:xtdf"))
    for (train, pulse), (frame, _) in one.items():
        assert np.array_equal(frame, facts.frame(train, pulse)[10])
    assert sorted(["X/DET/10CH0:xtdf", "X/DET/2CH0:xtdf", "Y/DET/JNGFR01:daqOutput"], key=module_key)[0].startswith("Y")


def edited(path: Path, change: Callable[[Any], None]) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        change(file)


def test_a_module_without_a_train_or_pulse_is_zero_there_and_named(tmp_path: Path) -> None:
    facts = write_example_run(tmp_path / "r1", trains=3, pulses=4, modules=2, shape=SMALL, hit_fraction=1.0)
    source = "SCS_DET_DSSC1M-1/DET/1CH0:xtdf"

    def change(file: Any) -> None:
        file[f"INDEX/{source}/image/count"][1] = 0  # no train 10001
        file[f"INSTRUMENT/{source}/image/pulseId"][2, 0] = 77  # pulse 2 of train 10000 is another one

    edited(tmp_path / "r1" / "RAW-R0001-DSSC01-S00000.h5", change)
    pulses = by_pulse(items(tmp_path / "r1"))
    frame, meta = pulses[10001, 3]
    assert meta["missing_modules"] == [source]
    assert np.array_equal(frame[0], facts.frame(10001, 3)[0])
    assert not frame[1].any()
    assert np.array_equal(pulses[10000, 77][0][1], facts.frame(10000, 2)[1])
    assert pulses[10000, 77][1]["missing_modules"] == [facts.sources[0]]
    assert not pulses[10000, 2][0][1].any()
    assert "missing_modules" not in pulses[10000, 1][1]
    assert np.array_equal(pulses[10002, 0][0], facts.frame(10002, 0))


def test_pulses_that_cannot_be_told_apart_are_never_stacked(tmp_path: Path) -> None:
    write_example_run(tmp_path / "r1", trains=1, pulses=4, modules=2, shape=SMALL)

    def change(file: Any) -> None:
        file["INSTRUMENT/SCS_DET_DSSC1M-1/DET/1CH0:xtdf/image/pulseId"][:, 0] = 1

    edited(tmp_path / "r1" / "RAW-R0001-DSSC01-S00000.h5", change)
    with pytest.raises(WrongInput, match="twice"):
        items(tmp_path / "r1")


def test_a_run_with_more_than_one_detector_names_them(tmp_path: Path) -> None:
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.basler_camera import BaslerCamera
    from extra_data.tests.mockdata.detectors import AGIPDModule, DSSCModule

    folder = tmp_path / "r2"
    folder.mkdir()
    agipd = AGIPDModule("SPB_DET_AGIPD1M-1/DET/0CH0", frames_per_train=2)
    agipd.image_dims = (2, 8, 4)
    dssc = DSSCModule("SCS_DET_DSSC1M-1/DET/0CH0", frames_per_train=2)
    dssc.image_dims = (1, 4, 8)
    camera = BaslerCamera("SPB_IRU_CAM/CAM/SIDEMIC", sensor_size=(6, 5))
    for name, device in (("AGIPD00", agipd), ("DSSC00", dssc), ("DA01", camera)):
        write_file(str(folder / f"RAW-R0002-{name}-S00000.h5"), [device], ntrains=2, chunksize=2, format_version="1.0")
    with pytest.raises(WrongInput, match=r"--source-name.*AGIPD1M-1/DET/0CH0:xtdf.*SIDEMIC"):
        items(folder)
    with pytest.raises(WrongInput, match=r"no source matches 'FXE\*'.*SIDEMIC"):
        items(folder, source_name="FXE*")
    with pytest.raises(WrongInput, match=r"--key.*image.data"):
        items(folder, source_name="SPB_DET*", key="image.pixels")
    # Raw AGIPD frames have an image and a gain plane; both are kept.
    assert items(folder, source_name="SPB_DET_AGIPD1M-1/DET/*")[0].frames.shape == (2, 2, 8, 4)
    pictures = items(folder, source_name="*SIDEMIC*")
    assert [item.frames.shape for item in pictures] == [(1, 6, 5)] * 2
    assert [meta for item in pictures for meta in item.metas] == [{"train_id": 10000}, {"train_id": 10001}]


def test_a_damaged_file_of_a_run_is_an_error_not_a_hole(tmp_path: Path) -> None:
    write_example_run(tmp_path / "r1", trains=1, pulses=2, modules=2, shape=SMALL)
    (tmp_path / "r1" / "RAW-R0001-DSSC01-S00000.h5").write_bytes(b"cut")
    with pytest.raises(WrongInput, match="DSSC01"):
        items(tmp_path / "r1")


def test_the_example_is_never_written_over_something(tmp_path: Path) -> None:
    write_example_run(tmp_path / "r1", trains=1, pulses=1, shape=SMALL)
    with pytest.raises(WrongInput, match="not empty"):
        write_example_run(tmp_path / "r1", trains=1, pulses=1, shape=SMALL)
    with pytest.raises(WrongInput, match="17 modules"):
        write_example_run(tmp_path / "r2", modules=17)


def test_corrected_runs_are_read_by_their_new_and_their_legacy_names(tmp_path: Path) -> None:
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.detectors import AGIPDModule

    folder = tmp_path / "r3"
    folder.mkdir()
    data = np.random.default_rng(1).random((6, 2, 8, 4), dtype=np.float32)
    for number in range(2):
        device = AGIPDModule(f"SPB_DET_AGIPD1M-1/CORR/{number}CH0", channel_name="output", raw=False,
                             frames_per_train=3, legacy_name=f"SPB_DET_AGIPD1M-1/DET/{number}CH0")  # fmt: skip
        device.image_dims = (8, 4)
        path = folder / f"CORR-R0003-AGIPD{number:02d}-S00000.h5"
        write_file(str(path), [device], ntrains=2, chunksize=2, format_version="1.2")

        def change(file: Any, number: int = number) -> None:
            file[f"INSTRUMENT/SPB_DET_AGIPD1M-1/CORR/{number}CH0:output/image/data"][:] = data[:, number]

        edited(path, change)
    for settings in ({}, {"source_name": "*/CORR/*"}, {"source_name": "*/DET/*CH0:xtdf"}):
        found = np.concatenate([item.frames for item in items(folder, **settings)])
        assert found.dtype == np.float32
        assert found.tobytes() == data.tobytes()


def test_memory_cells_of_a_jungfrau_are_frames_of_their_own(tmp_path: Path) -> None:
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.jungfrau import JUNGFRAUModule

    class Small(JUNGFRAUModule):  # type: ignore[misc]
        instrument_keys = [("memoryCell", "u1", (4,)), ("adc", ">u2", (4, 6, 8))]

    folder = tmp_path / "r4"
    folder.mkdir()
    data = np.random.default_rng(1).integers(0, 2**16, (3, 2, 4, 6, 8)).astype(">u2")
    for number in range(2):
        path = folder / f"RAW-R0004-JNGFR{number + 1:02d}-S00000.h5"
        device = Small(f"SPB_IRDA_JF4M/DET/JNGFR{number + 1:02d}")
        write_file(str(path), [device], ntrains=3, chunksize=1, format_version="1.0")

        def change(file: Any, device: Any = device, number: int = number) -> None:
            group = file[f"INSTRUMENT/{device.device_id}:daqOutput/data"]
            group["adc"][:] = data[:, number]
            group["memoryCell"][:] = [15, 0, 1, 2]

        edited(path, change)
    (recording,) = open_recordings([folder], ReadSettings())
    assert recording.n_frames() == 12
    found = items(folder)
    assert [item.frames.dtype.str for item in found] == [">u2"] * 3
    expected = data.transpose(0, 2, 1, 3, 4)
    assert all(item.frames.tobytes() == expected[k].tobytes() for k, item in enumerate(found))
    assert found[1].metas[3] == {"train_id": 10001, "cell_id": 2}
