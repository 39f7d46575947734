import builtins
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from asapo.errors import ConfigError, StorageError, WrongInput
from asapo.models import DTYPES, PLAIN, Format
from asapo.reader import array_of, stack_of


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_raw_bytes_become_a_read_only_view(dtype: str) -> None:
    source = np.arange(24).astype(dtype).reshape(2, 3, 4)
    raw = source.tobytes()
    array = array_of(memoryview(raw), Format(dtype, (2, 3, 4)))
    np.testing.assert_array_equal(array, source)
    assert array.dtype == np.dtype(dtype)
    assert np.shares_memory(array, np.frombuffer(raw, np.uint8))
    assert not array.flags.writeable


def test_plain_bytes_become_uint8() -> None:
    array = array_of(memoryview(bytearray(b"abc")), PLAIN)
    np.testing.assert_array_equal(array, np.array([97, 98, 99], np.uint8))
    assert not array.flags.writeable


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_arrays_keep_their_shape(shape: tuple[int, ...]) -> None:
    source = np.ones(shape, "<f8")
    assert array_of(memoryview(source.tobytes()), Format("<f8", shape)).shape == shape


def test_bytes_of_another_size_than_the_format_are_refused() -> None:
    for size in (7, 9):
        with pytest.raises(WrongInput, match=f"payload of {size} bytes"):
            array_of(memoryview(bytes(size)), Format("<u2", (4,)))


@pytest.mark.parametrize("shape", [(3, 5), (32,), ()])
def test_a_unit_of_raw_messages_is_one_strided_array(shape: tuple[int, ...]) -> None:
    frames = [np.full(shape, number, "<i2") for number in range(4)]
    size = frames[0].nbytes
    unit = b"".join(frame.tobytes().ljust((size + 63) // 64 * 64, b"\xee") for frame in frames[:-1])
    unit += frames[-1].tobytes()
    stack = stack_of(memoryview(unit), Format("<i2", shape), 4)
    np.testing.assert_array_equal(stack, np.stack(frames))
    assert np.shares_memory(stack, np.frombuffer(unit, np.uint8))
    with pytest.raises(WrongInput):
        stack_of(memoryview(unit)[:-1], Format("<i2", shape), 4)
    with pytest.raises(WrongInput):
        stack_of(memoryview(unit), PLAIN, 4)


def encoded(codec: str, source: np.ndarray[Any, Any]) -> list[bytes]:
    """Return the array as independent encoders write it: HDF5's own filters where there is one."""
    h5py, hdf5plugin = pytest.importorskip("h5py"), pytest.importorskip("hdf5plugin")
    imagecodecs = pytest.importorskip("imagecodecs")
    if codec == "zstd":
        return [imagecodecs.zstd_encode(source.tobytes())]
    filters = {
        "bslz4": [hdf5plugin.Bitshuffle(), hdf5plugin.Bitshuffle(nelems=64)],
        "lz4": [hdf5plugin.LZ4(), hdf5plugin.LZ4(nbytes=512)],
    }[codec]
    found = []
    with h5py.File("memory.h5", "w", driver="core", backing_store=False) as file:
        for number, options in enumerate(filters):
            data = file.create_dataset(str(number), data=source, chunks=source.shape, **options)
            found.append(bytes(data.id.read_direct_chunk((0,) * source.ndim)[1]))
    if codec == "lz4":
        found += [imagecodecs.lz4f_encode(source.tobytes()), imagecodecs.lz4_encode(source.tobytes(), header=False)]
    return found


@pytest.mark.needs_codecs
@pytest.mark.parametrize("codec", ["bslz4", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["<u2", "<u4", ">f4", "|u1", "<f8"])
@pytest.mark.parametrize("shape", [(100, 103), (3, 5), (1, 7), (64, 128)])
def test_compressed_payloads_come_back_bit_for_bit(codec: str, dtype: str, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(5)
    source = generator.poisson(3.0, shape).astype(dtype)
    payloads = encoded(codec, source)
    assert payloads
    for payload in payloads:
        array = array_of(memoryview(payload), Format(dtype, shape, codec))
        np.testing.assert_array_equal(array, source)
        assert array.dtype == np.dtype(dtype)
        assert not array.flags.writeable


@pytest.mark.needs_codecs
@pytest.mark.parametrize("codec", ["bslz4", "lz4", "zstd"])
def test_damaged_compressed_bytes_are_an_error_and_not_an_array(codec: str) -> None:
    source = np.random.default_rng(5).poisson(3.0, (50, 60)).astype("<u2")
    for payload in encoded(codec, source):
        for broken in (payload[: len(payload) // 2], payload[:3], b"", b"\xff" * 40):
            with pytest.raises(StorageError):
                array_of(memoryview(broken), Format("<u2", (50, 60), codec))
        with pytest.raises(StorageError):
            array_of(memoryview(payload), Format("<u2", (50, 10), codec))


@pytest.mark.needs_codecs
def test_compressed_bytes_without_a_dtype_say_what_is_missing() -> None:
    with pytest.raises(WrongInput, match="expected dtype and shape"):
        array_of(memoryview(b"x"), Format("", (), "zstd"))


def test_without_the_decoders_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **keywords: Any) -> Any:
        if name == "imagecodecs":
            raise ModuleNotFoundError(name=name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'asapo\[codecs\]'") as caught:
        array_of(memoryview(b"x"), Format("<u2", (4,), "zstd"))
    assert caught.value.extra == "codecs"


def test_the_reader_imports_without_numpy_and_without_posix_modules() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'numpy', 'imagecodecs', 'h5py']));"
        "import os; [delattr(os, name) for name in "
        "('pwrite', 'pwritev', 'preadv', 'pread', 'posix_fallocate', 'statvfs', 'fdatasync', 'O_CLOEXEC')];"
        "import asapo.reader; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr
