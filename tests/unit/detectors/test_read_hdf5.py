"""HDF5, NeXus and CXI files: found, read lazily, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo.errors import WrongInput
from asapo_produce.detectors.readers import Item, ReadSettings, open_recordings

pytestmark = [pytest.mark.needs_replay]


def items(path: Path, **settings: Any) -> list[Item]:
    found = []
    for recording in open_recordings([path], ReadSettings(**settings)):
        for item in recording.items(""):
            assert isinstance(item, Item)
            found.append(item)
    return found


def frames(path: Path, **settings: Any) -> Any:
    found = [item.frames for item in items(path, **settings)]
    return np.concatenate(found, dtype=found[0].dtype)  # without dtype NumPy changes the byte order


def noise(shape: tuple[int, ...], dtype: str = "<u2", seed: int = 1) -> Any:
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    return (raw[..., 0] > 127) if dtype == "|b1" else raw.view(dtype)[..., 0]


def nexus(path: Path, data: Any, **dataset: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["default"] = "scan"
        entry = file.create_group("scan")
        entry.attrs.update(NX_class="NXentry", default="plot")
        plot = entry.create_group("plot")
        plot.attrs.update(NX_class="NXdata", signal="counts")
        plot.create_dataset("counts", data=data, **dataset)
        entry.create_dataset("decoy", data=np.zeros((5, 6, 7)))


@pytest.mark.parametrize(
    "dtype", ["|u1", "|i1", "<u2", ">u2", "<i4", ">i4", "<u8", ">i8", "<f2", "<f4", ">f8", "<c8", ">c16", "|b1"]
)
def test_frames_are_equal_bit_for_bit_in_every_type(tmp_path: Path, dtype: str) -> None:
    data = noise((5, 7, 9), dtype)
    nexus(tmp_path / "a.nxs", data)
    found = frames(tmp_path / "a.nxs")
    assert found.dtype.str == dtype
    assert found.tobytes() == data.tobytes()


def test_the_nexus_default_is_followed_and_columns_go_to_the_metadata(tmp_path: Path) -> None:
    import h5py

    data = noise((4, 6, 8))
    nexus(tmp_path / "scan_7.nxs", data)
    with h5py.File(tmp_path / "scan_7.nxs", "r+") as file:
        file["scan/plot/energy_ev"] = np.array([9000.5, np.nan, 9002, 9003])
        file["scan/plot/label"] = [b"a", b"b", b"c", b"d"]
        file["scan/plot/other"] = np.arange(3)
    (item,) = items(tmp_path / "scan_7.nxs")
    assert item.stream == "scan_7"
    assert np.array_equal(item.frames, data)
    assert item.metas[1] == {
        "energy_ev": None, "label": "b", "file": "scan_7.nxs", "dataset": "/scan/plot/counts", "frame": 1,
    }  # fmt: skip


def test_large_files_come_in_blocks_of_whole_chunks(tmp_path: Path) -> None:
    data = noise((50, 512, 512), "<u4")
    nexus(tmp_path / "a.h5", data, chunks=(3, 512, 512))
    found = items(tmp_path / "a.h5")
    assert [len(item) for item in found] == [6] * 8 + [2]
    assert np.array_equal(np.concatenate([item.frames for item in found]), data)
    assert [meta["frame"] for item in found for meta in item.metas if isinstance(meta, dict)] == list(range(50))


def test_bitshuffle_and_gzip_are_decompressed(tmp_path: Path) -> None:
    import hdf5plugin

    data = noise((6, 32, 32))
    nexus(tmp_path / "a.h5", data, chunks=(1, 32, 32), **hdf5plugin.Bitshuffle())
    nexus(tmp_path / "b.h5", data, chunks=(2, 16, 32), compression="gzip", shuffle=True)
    assert np.array_equal(frames(tmp_path / "a.h5"), data)
    assert np.array_equal(frames(tmp_path / "b.h5"), data)


def master(path: Path, parts: list[Any], *, leave_out: int | None = None) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("entry/data")
        group.attrs["NX_class"] = "NXdata"
        for number, part in enumerate(parts, 1):
            name = f"{path.stem}_data_{number:06d}.h5"
            if number != leave_out:
                with h5py.File(path.parent / name, "w") as linked:
                    linked["entry/data/data"] = part
            group[f"data_{number:06d}"] = h5py.ExternalLink(name, "entry/data/data")


def test_numbered_external_links_are_read_in_order(tmp_path: Path) -> None:
    data = noise((23, 8, 8), ">u4")
    master(tmp_path / "run.h5", np.array_split(data, 12))
    found = frames(tmp_path / "run.h5")
    assert found.tobytes() == data.tobytes()


def test_a_missing_linked_file_is_named(tmp_path: Path) -> None:
    master(tmp_path / "run.h5", np.array_split(noise((6, 8, 8)), 3), leave_out=2)
    with pytest.raises(WrongInput, match="run_data_000002.h5"):
        items(tmp_path / "run.h5")


def virtual(path: Path, parts: list[Any]) -> None:
    import h5py

    layout = h5py.VirtualLayout((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    at = 0
    for number, part in enumerate(parts):
        with h5py.File(path.parent / f"part{number}.h5", "w") as file:
            file["data"] = part
        layout[at : at + len(part)] = h5py.VirtualSource(f"part{number}.h5", "data", part.shape)
        at += len(part)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("entry/data/data", layout)


def test_a_virtual_dataset_is_read_through_and_a_missing_source_is_an_error_not_zeros(tmp_path: Path) -> None:
    data = noise((9, 8, 8))
    virtual(tmp_path / "all.h5", np.array_split(data, 3))
    assert np.array_equal(frames(tmp_path / "all.h5"), data)
    (tmp_path / "part1.h5").unlink()
    with pytest.raises(WrongInput, match="part1.h5"):
        items(tmp_path / "all.h5")


def test_a_source_that_lacks_the_dataset_is_an_error_and_an_absolute_path_that_moved_is_found(tmp_path: Path) -> None:
    import h5py

    data = noise((2, 8, 8))
    layout = h5py.VirtualLayout((2, 8, 8), data.dtype)
    layout[:] = h5py.VirtualSource("/somewhere/else/part.h5", "data", data.shape)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("entry/data/data", layout)
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["other"] = data
    with pytest.raises(WrongInput, match=r"part\.h5:data"):
        items(tmp_path / "all.h5")
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["data"] = data
    assert np.array_equal(frames(tmp_path / "all.h5"), data)


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry/data/data"] = h5py.ExternalLink("gone.h5", "data")
    with pytest.raises(WrongInput, match=r"gone\.h5"):
        items(tmp_path / "a.h5")


def test_cxi_files_and_stacks_of_modules(tmp_path: Path) -> None:
    import h5py

    data = noise((3, 4, 16, 8))
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        file["cxi_version"] = 160
        file["entry_1/instrument_1/detector_1/data"] = data
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
        file["entry_1/mask"] = np.zeros((3, 4, 16, 8))
    assert np.array_equal(frames(tmp_path / "a.cxi"), data)


def test_an_image_without_a_frame_axis_is_one_frame(tmp_path: Path) -> None:
    data = noise((16, 8))
    nexus(tmp_path / "a.h5", data)
    (item,) = items(tmp_path / "a.h5")
    assert item.frames.shape == (1, 16, 8)
    assert np.array_equal(item.frames[0], data)


def test_an_unclear_file_names_its_candidates_and_dataset_chooses(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x/raw"] = noise((2, 4, 4))
        file["x/corrected"] = noise((2, 4, 4), "<f4", seed=2)
    with pytest.raises(WrongInput, match=r"--dataset.*/x/corrected.*/x/raw"):
        items(tmp_path / "a.h5")
    with pytest.raises(WrongInput, match=r"'x/row' is not there.*/x/raw"):
        items(tmp_path / "a.h5", dataset="x/row")
    assert np.array_equal(frames(tmp_path / "a.h5", dataset="x/raw"), noise((2, 4, 4)))


def test_a_file_without_images_and_one_that_is_no_hdf5_are_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["text"] = "nothing"
    with pytest.raises(WrongInput, match="no image data"):
        items(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"not HDF5")
    with pytest.raises(WrongInput, match="cannot be opened"):
        items(tmp_path / "b.h5")


def test_a_folder_of_files_is_one_stream_each_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        nexus(tmp_path / f"scan{number}.h5", noise((1, 4, 4), seed=number))
    assert [item.stream for item in items(tmp_path)] == ["scan1", "scan9", "scan10"]
