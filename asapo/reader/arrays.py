"""Payload bytes as NumPy arrays: a view when they are raw, decompressed when they are not."""

from __future__ import annotations

import functools
import struct
from math import prod
from typing import TYPE_CHECKING, Any, Final

from asapo.errors import ConfigError, StorageError, WrongInput
from asapo.models import Format

if TYPE_CHECKING:
    from numpy.typing import NDArray

LZ4_FRAME_MAGIC: Final = b"\x04\x22\x4d\x18"
HDF5_LZ4_HEADER: Final = struct.Struct(">QI")
"""Header of HDF5's LZ4 and bitshuffle filters: uncompressed bytes, bytes of a block."""
BLOCK_LENGTH: Final = struct.Struct(">I")
SHUFFLE_GROUP: Final = 8
"""Bitshuffle works on groups of eight elements and leaves the rest as it is."""


def itemsize(form: Format) -> int:
    """Return the bytes of one element; 1 for plain bytes."""
    return int(form.dtype[2:]) if form.dtype else 1


def array_of(view: memoryview, form: Format) -> NDArray[Any]:
    """Return the array that a payload holds.

    Parameters
    ----------
    view : memoryview of bytes
        The stored bytes of one message.
    form : Format
        dtype, shape and codec as sent; plain bytes become a one-dimensional uint8 array.

    Returns
    -------
    array, dtype and shape of `form`, read-only
        A view of the same memory when the codec is `raw`.

    Raises
    ------
    WrongInput
        If bytes and format disagree in size.
    StorageError
        If the bytes cannot be decompressed.
    ConfigError
        If the codec needs the extra `codecs`, which is not installed.

    >>> array_of(memoryview(bytes([1, 0, 2, 0])), Format("<u2", (2,)))
    array([1, 2], dtype=uint16)
    """
    data = view if form.codec == "raw" else decompress(view, form)
    if not form.dtype:
        import numpy as np

        return _read_only(np.frombuffer(data, np.uint8))
    array, dtype, nbytes = _layout(form.dtype, form.shape)
    if len(data) != nbytes:
        raise WrongInput(f"payload of {len(data)} bytes, but {form.dtype} {form.shape} is another size")
    made: NDArray[Any] = array(form.shape, dtype, data)
    return _read_only(made)


@functools.lru_cache(maxsize=1024)
def _layout(dtype: str, shape: tuple[int, ...]) -> tuple[Any, Any, int]:
    """Return NumPy's array type, the element type and the bytes of an array: worked out once, not per message."""
    import numpy as np

    made = np.dtype(dtype)
    return np.ndarray, made, prod(shape) * made.itemsize


def stack_of(view: memoryview, form: Format, n: int) -> NDArray[Any]:
    """Return the `n` raw messages of one wire unit as one array; no copy.

    Parameters
    ----------
    view : memoryview of bytes
        The unit's bytes: each message starts at the next multiple of 64 after the one before.
    form : Format
        Format of each message; codec `raw` and a dtype.
    n : int
        Number of messages.

    Returns
    -------
    array, shape (n, *form.shape), dtype of `form`, read-only

    Raises
    ------
    WrongInput
        If the format is not that of an array, or the view is too short.
    """
    import numpy as np

    if form.codec != "raw" or not form.dtype:
        raise WrongInput(f"format {form}: expected a dtype and codec raw")
    size = prod(form.shape) * itemsize(form)
    stride = (size + 63) & -64
    if n and (n - 1) * stride + size > len(view):
        raise WrongInput(f"{len(view)} bytes for {n} messages of {size}")
    return _read_only(np.ndarray((n, *form.shape), form.dtype, view, strides=(stride, *_strides(form))))


def _strides(form: Format) -> tuple[int, ...]:
    """Return the strides of a C-contiguous array, in bytes."""
    strides, step = [], itemsize(form)
    for length in reversed(form.shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array


def _codecs() -> Any:
    """Import the decoders."""
    try:
        import imagecodecs
    except ImportError as exc:
        raise ConfigError(
            "compressed payloads need the extra `codecs`: pip install 'asapo[codecs]'; `msg.raw` needs nothing",
            extra="codecs",
        ) from exc
    return imagecodecs


def decompress(view: memoryview, form: Format) -> bytes | memoryview:
    """Return the uncompressed bytes of a payload, never more than its format announces.

    `bslz4` is the chunk format of HDF5's bitshuffle filter, as DECTRIS sends it. `lz4` is an LZ4 frame, the chunk
    format of HDF5's LZ4 filter, or a bare block; a bare block can begin like neither of the others. `zstd` is a frame.

    Raises
    ------
    StorageError
        If the bytes cannot be decompressed to the size of the format.
    WrongInput
        If the format has no dtype, so that the size is unknown.
    ConfigError
        If the extra `codecs` is not installed.
    """
    if not form.dtype:
        raise WrongInput(f"plain bytes with codec {form.codec}: expected dtype and shape with it; use `msg.raw`")
    codecs = _codecs()
    nbytes = prod(form.shape) * itemsize(form)
    try:
        if form.codec == "bslz4":
            data = _bslz4(codecs, view, nbytes, itemsize(form))
        elif form.codec == "lz4":
            data = _lz4(codecs, view, nbytes)
        else:
            data = codecs.zstd_decode(view, out=nbytes) if nbytes else b""
    except (RuntimeError, ValueError, struct.error) as exc:
        raise StorageError(f"payload of {len(view)} bytes cannot be decompressed as {form.codec}: {exc}") from exc
    if len(data) != nbytes:
        raise StorageError(f"payload decompresses to {len(data)} bytes, expected {nbytes}")
    return memoryview(data)


def _lz4(codecs: Any, view: memoryview, nbytes: int) -> Any:
    if bytes(view[:4]) == LZ4_FRAME_MAGIC:
        return codecs.lz4f_decode(view, out=nbytes + 1)  # one more, or what is too long would be cut without a word
    if len(view) >= HDF5_LZ4_HEADER.size and HDF5_LZ4_HEADER.unpack_from(view)[0] == nbytes:
        return codecs.lz4h5_decode(view, out=nbytes)
    return codecs.lz4_decode(view, out=nbytes)


def _bslz4(codecs: Any, view: memoryview, nbytes: int, element: int) -> Any:
    """Undo LZ4 block by block, then the bit transposition over all blocks."""
    total, block = HDF5_LZ4_HEADER.unpack_from(view)
    if total != nbytes:
        raise ValueError(f"header announces {total} bytes, format {nbytes}")
    block = block or 8192 // element * element
    group = SHUFFLE_GROUP * element
    if block % group:
        raise ValueError(f"block of {block} bytes is no multiple of {group}")
    out = bytearray(nbytes)
    target = memoryview(out)
    at, done, shuffled = HDF5_LZ4_HEADER.size, 0, nbytes - nbytes % group
    while done < shuffled:
        size = min(block, shuffled - done)
        length = BLOCK_LENGTH.unpack_from(view, at)[0]
        at += BLOCK_LENGTH.size
        if length > len(view) - at:
            raise ValueError(f"block at {at} ends beyond the payload")
        piece = codecs.lz4_decode(view[at : at + length], out=size)
        if len(piece) != size:
            raise ValueError(f"block at {at} holds {len(piece)} bytes, expected {size}")
        target[done : done + size] = piece
        at += length
        done += size
    rest = view[at : at + nbytes - done]
    target[done : done + len(rest)] = rest
    if len(rest) != nbytes - done:
        raise ValueError("the last elements are missing")
    return codecs.bitshuffle_decode(out, itemsize=element, blocksize=block // element)
