"""What may be sent, and how it becomes bytes and a format."""

from pathlib import Path

import numpy as np
import pytest

from asapo.errors import WrongInput
from asapo.models import DTYPES, PLAIN, Format
from asapo_produce.payloads import dtype_name, take


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 5), (7,)])
def test_an_array_is_taken_as_it_is(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    view, form = take(array)
    assert form == Format(dtype, shape)
    assert bytes(view) == array.tobytes()


@pytest.mark.parametrize("letter", "bBhHiIlLqQefdgFD?")
def test_every_name_of_a_c_type_gives_its_element_type(letter: str) -> None:
    array = np.ones(3, letter)
    if array.dtype.str not in DTYPES:
        pytest.raises(WrongInput, take, array)
    else:
        assert take(array) == (memoryview(array.tobytes()), Format(array.dtype.str, (3,)))


@pytest.mark.parametrize("dtype", ["<u4", ">u4", "<f2"])
def test_a_contiguous_array_is_not_copied(dtype: str) -> None:
    array = np.zeros(10, dtype)
    view, _ = take(array)
    array[0] = 7
    assert bytes(view) == array.tobytes()


def test_a_copy_is_taken_when_asked_for() -> None:
    array = np.zeros(10, "<u4")
    view, _ = take(array, copy=True)
    array[0] = 7
    assert view[0] == 0


def test_a_strided_array_is_sent_in_c_order() -> None:
    array = np.arange(24, dtype="<u2").reshape(4, 6)[:, ::2]
    view, form = take(array)
    assert form.shape == (4, 3)
    assert bytes(view) == array.tobytes()


@pytest.mark.parametrize("dtype", [object, "V8", "U3", "M8[ns]", [("a", "u2")]])
def test_arrays_that_are_no_numbers_are_refused(dtype: object) -> None:
    with pytest.raises(WrongInput, match="expected numbers"):
        take(np.zeros(3, dtype))


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4]])
def test_buffers_are_plain_bytes(data: object) -> None:
    view, form = take(data)
    assert (bytes(view), form) == (b"abc", PLAIN)


def test_a_view_with_gaps_is_copied() -> None:
    view, _ = take(memoryview(b"axbxcx")[::2])
    assert bytes(view) == b"abc"


def test_a_view_of_foreign_elements_is_sent_as_its_bytes() -> None:
    array = np.arange(3, dtype=">u2")
    view, form = take(memoryview(array))  # type: ignore[arg-type]
    assert (bytes(view), form) == (array.tobytes(), PLAIN)


def test_no_data_is_an_empty_payload() -> None:
    assert take(None) == (memoryview(b""), PLAIN)


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "frame.cbf"
    file.write_bytes(b"content")
    assert bytes(take(file).view) == b"content"


def test_a_missing_file_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="nothing.cbf"):
        take(tmp_path / "nothing.cbf")


def test_an_object_of_another_kind_is_refused() -> None:
    with pytest.raises(WrongInput, match="int"):
        take(3)


def test_objects_that_speak_numpys_protocol_are_arrays() -> None:
    assert take(np.uint16(5)).format == Format("<u2", ())


def test_bytes_may_be_declared_an_array() -> None:
    assert take(bytes(24), shape=[3, 4], dtype="uint16").format == Format("<u2", (3, 4))


def test_declared_format_and_size_must_agree() -> None:
    with pytest.raises(WrongInput, match="need 26"):
        take(bytes(24), shape=(13,), dtype="<u2")


def test_a_shape_needs_a_dtype() -> None:
    with pytest.raises(WrongInput, match="without dtype"):
        take(bytes(24), shape=(24,))


def test_compressed_bytes_keep_the_format_of_the_array() -> None:
    assert take(b"small", codec="bslz4", shape=(512, 1024), dtype="<u4").format == Format("<u4", (512, 1024), "bslz4")


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(WrongInput, match="codec"):
        take(b"", codec="zip")


@pytest.mark.parametrize(
    ("given", "name"), [("<u2", "<u2"), ("uint8", "|u1"), (np.float32, "<f4"), (np.dtype(">i2"), ">i2")]
)
def test_dtypes_get_their_wire_name(given: object, name: str) -> None:
    assert dtype_name(given) == name


@pytest.mark.parametrize("given", ["no such", "O", "V4"])
def test_dtypes_without_wire_name_are_refused(given: str) -> None:
    with pytest.raises(WrongInput, match="dtype"):
        dtype_name(given)
