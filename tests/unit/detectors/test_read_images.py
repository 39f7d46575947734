"""Image files: pixels bit for bit, headers as JSON, natural order."""

import enum
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo.errors import DamagedFile, WrongInput
from asapo_produce.detectors.readers import Item, ReadSettings, open_recordings
from asapo_produce.detectors.readers.jsonsafe import json_safe


def items(*paths: Path) -> list[Item]:
    (recording,) = open_recordings(paths, ReadSettings())
    return [item for item in recording.items("") if isinstance(item, Item)]


def written(path: Path, data: Any, header: dict[str, Any] | None = None) -> Any:
    import fabio.cbfimage
    import fabio.edfimage
    import fabio.tifimage

    kinds = {".tif": fabio.tifimage.TifImage, ".cbf": fabio.cbfimage.CbfImage, ".edf": fabio.edfimage.EdfImage}
    kinds[path.suffix](data=data, header=header or {}).write(str(path))
    return data


@pytest.mark.needs_replay
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".tif", "uint8"), (".tif", "uint16"), (".tif", "int32"), (".tif", "float32"), (".cbf", "int32"),
     (".edf", "uint8"), (".edf", "int16"), (".edf", "uint32"), (".edf", "float32"), (".edf", "float64")],
)  # fmt: skip
def test_pixels_are_equal_bit_for_bit(tmp_path: Path, suffix: str, dtype: str) -> None:
    shape = (40, 30)
    rng = np.random.default_rng(1)
    data = rng.integers(0, 100, shape).astype(dtype) if dtype.startswith("f") else rng.integers(0, 120, shape, dtype)
    written(tmp_path / f"a{suffix}", data)
    (item,) = items(tmp_path / f"a{suffix}")
    assert item.frames.shape == (1, 40, 30)
    assert item.frames.dtype == np.dtype(dtype)
    assert item.frames[0].tobytes() == data.tobytes()


@pytest.mark.needs_replay
def test_large_values_and_negative_ones_survive_cbf_compression(tmp_path: Path) -> None:
    data = np.array([[0, -1, 127, 128], [-128, 32767, 32768, -2], [2**31 - 1, 0, -(2**31) + 1, 5]], dtype=np.int32)
    written(tmp_path / "a.cbf", data)
    (item,) = items(tmp_path / "a.cbf")
    assert np.array_equal(item.frames[0], data)


@pytest.mark.needs_replay
def test_a_folder_is_one_stream_in_natural_order_and_other_files_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run 12"
    folder.mkdir()
    for number in (1, 2, 10, 9):
        written(folder / f"img_{number}.edf", np.full((4, 4), number, np.uint16), {"exposure_s": "0.1"})
    (folder / "notes.txt").write_text("not an image")
    found = items(folder)
    assert [int(item.frames[0, 0, 0]) for item in found] == [1, 2, 9, 10]
    assert {item.stream for item in found} == {"run 12"}
    meta = found[1].metas[0]
    assert isinstance(meta, dict)
    assert (meta["file"], meta["frame"], meta["header"]["exposure_s"]) == ("img_2.edf", 0, "0.1")
    assert json.loads(json.dumps(meta, allow_nan=False)) == meta


@pytest.mark.needs_replay
def test_files_given_one_by_one_are_one_stream_in_that_order(tmp_path: Path) -> None:
    for number in (1, 2):
        written(tmp_path / f"i{number}.tif", np.full((4, 4), number, np.uint16))
    found = items(tmp_path / "i2.tif", tmp_path / "i1.tif")
    assert [int(item.frames[0, 0, 0]) for item in found] == [2, 1]


@pytest.mark.needs_replay
def test_every_image_of_a_file_with_several_is_a_frame(tmp_path: Path) -> None:
    import fabio.edfimage

    image = fabio.edfimage.EdfImage(data=np.zeros((4, 4), np.uint16))
    for number in (1, 2):
        image.append_frame(data=np.full((4, 4), number, np.uint16))
    image.write(str(tmp_path / "a.edf"))
    found = items(tmp_path / "a.edf")
    assert [int(item.frames[0, 0, 0]) for item in found] == [0, 1, 2]
    assert [meta["frame"] for item in found for meta in item.metas if isinstance(meta, dict)] == [0, 1, 2]


@pytest.mark.needs_replay
def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.cbf").write_bytes(b"###CBF: nothing follows")
    with pytest.raises(DamagedFile, match=r"a\.cbf"):
        items(tmp_path / "a.cbf")


def test_what_cannot_be_replayed_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for path, said in ((tmp_path / "a.txt", "format not recognised"), (tmp_path / "none", "not there")):
        with pytest.raises(WrongInput, match=said):
            open_recordings([path], ReadSettings())
    (tmp_path / "empty").mkdir()
    with pytest.raises(WrongInput, match="nothing to replay"):
        open_recordings([tmp_path / "empty"], ReadSettings())


class _Mode(enum.IntEnum):
    FAST = 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (np.float32("inf"), None),
        (np.float64(1.5), 1.5),
        (np.int64(7), 7),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (b"text\0\0", "text"),
        (b"\xff", "\ufffd"),
        ("\ud800", "?"),
        (_Mode.FAST, 3),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.array([b"a", b"b"]), ["a", "b"]),
        (np.zeros((20, 20)), {"shape": [20, 20], "dtype": "float64"}),
        ({1: {"a": (2, None)}}, {"1": {"a": [2, None]}}),
        (datetime(2024, 5, 1, tzinfo=UTC), "2024-05-01T00:00:00+00:00"),
        (np.datetime64("2024-05-01"), "2024-05-01"),
        (np.datetime64("NaT"), None),
        (1 + 2j, [1.0, 2.0]),
        (Path("x"), "x"),
    ],
)
def test_header_values_become_json(value: Any, expected: Any) -> None:
    found = json_safe(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)
