"""What a caller may send, as a flat view of bytes and its format. NumPy is imported only if the caller uses it."""

from __future__ import annotations

import functools
import math
import os
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from asapo.errors import WrongInput
from asapo.models import DTYPES, PLAIN, Format, format_of
from asapo.wire.limits import MAX_UNIT_BYTES

EMPTY: Final = memoryview(b"")
_ORDER: Final = "<" if sys.byteorder == "little" else ">"
NATIVE: Final = {"B": "|u1", "b": "|i1", "?": "|b1", **{
    letter: f"{_ORDER}{kind}{struct.calcsize(letter)}" for letter, kind in zip("hilqHILQfd", "iiiiuuuuff", strict=True)
}}  # fmt: skip
"""Element types that a memoryview can be cast from, by their letter in the buffer protocol."""


@functools.lru_cache(maxsize=1024)
def _native_format(letter: str, shape: tuple[int, ...]) -> Format | None:
    """Return the format of an array of native elements, None when it has others or no elements."""
    return format_of(NATIVE[letter], shape, "raw") if letter in NATIVE and 0 not in shape else None


class Payload(NamedTuple):
    """Bytes to send, uncopied where that is possible."""

    view: memoryview
    """Flat, contiguous, of bytes."""
    format: Format


def take(
    data: Any, *, codec: str = "raw", shape: Sequence[int] | None = None, dtype: Any = None, copy: bool = False
) -> Payload:
    """Return what `data` is made of.

    Raises
    ------
    WrongInput
        If it is nothing that can be sent, or size and format disagree.
    """
    if type(data) is bytes or data is None:
        view, form = memoryview(data or b""), PLAIN
    else:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(data, numpy.ndarray):
            view, form = _of_array(numpy, data)
        elif isinstance(data, os.PathLike):
            view, form = memoryview(_read(data)), PLAIN
        elif hasattr(data, "__array_interface__"):
            view, form = _of_foreign(data)
        else:
            view, form = _of_buffer(data), PLAIN
    if dtype is not None or shape is not None or codec != "raw":
        form = _declared(form, view.nbytes, codec, shape, dtype)
    if view.nbytes > MAX_UNIT_BYTES:
        raise WrongInput(f"payload of {view.nbytes} bytes: expected at most {MAX_UNIT_BYTES}; send it in parts")
    return Payload(memoryview(bytes(view)) if copy else view, form)


def _of_array(numpy: Any, array: Any) -> tuple[memoryview, Format]:
    # Nearly every array passes here: its memoryview tells all with fewer calls than the array itself.
    try:
        view = memoryview(array)
        native = _native_format(view.format, view.shape)
        if native is not None and view.c_contiguous:
            return view.cast("B"), native
    except (TypeError, ValueError):
        pass  # elements without buffer protocol, such as dates
    return _of_odd_array(numpy, array)


def _of_odd_array(numpy: Any, array: Any) -> tuple[memoryview, Format]:
    dtype = array.dtype.str
    if dtype not in DTYPES:
        raise WrongInput(
            f"array of dtype {array.dtype}: expected numbers or booleans ({', '.join(sorted(DTYPES))}); "
            "convert it with astype"
        )
    if not array.flags.c_contiguous:
        array = numpy.ascontiguousarray(array)
    # A memoryview of the array itself cannot be cast to bytes when its byte order or kind is not a native one.
    return array.reshape(-1).view("u1").data, format_of(dtype, array.shape, "raw")


def _of_foreign(data: Any) -> tuple[memoryview, Format]:
    import numpy  # noqa: PLC0415, ICN001 - the caller's object speaks NumPy's protocol; light producers never get here

    return _of_array(numpy, numpy.asarray(data))


def _of_buffer(data: Any) -> memoryview:
    try:
        view = memoryview(data)
    except TypeError:
        raise WrongInput(
            f"data of type {type(data).__name__}: expected a NumPy array, bytes, bytearray, memoryview, "
            "pathlib.Path or None"
        ) from None
    if view.c_contiguous:
        try:
            return view.cast("B")
        except TypeError:
            pass  # an element format that memoryview does not know
    return memoryview(view.tobytes())


def _read(path: os.PathLike[str]) -> bytes:
    # Read, not mapped: a file that is cut while it is mapped kills the process.
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        raise WrongInput(f"file {path}: {exc.strerror}; give a file that can be read", path=str(path)) from exc


def _declared(found: Format, nbytes: int, codec: str, shape: Sequence[int] | None, dtype: Any) -> Format:
    """Return the format that the caller names for bytes, checked against their number."""
    name = found.dtype if dtype is None else dtype_name(dtype)
    extent = found.shape if shape is None else tuple(int(n) for n in shape)
    form = format_of(name, extent, codec)
    if codec == "raw":
        if not name:
            raise WrongInput(f"shape {extent} without dtype: give both")
        expected = math.prod(extent) * int(name[2:])
        if expected != nbytes:
            raise WrongInput(f"{nbytes} bytes, but dtype {name} and shape {extent} need {expected}")
    return form


def dtype_name(dtype: Any) -> str:
    """Return the element type with explicit byte order; takes NumPy dtypes and names such as "uint16" or "<u2"."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return dtype
    import numpy  # noqa: PLC0415, ICN001 - only for a dtype that is not in wire form

    try:
        name: str = numpy.dtype(dtype).str
    except TypeError as exc:
        raise WrongInput(f"dtype {dtype!r}: {exc}; expected one of {', '.join(sorted(DTYPES))}") from exc
    if name not in DTYPES:
        raise WrongInput(f"dtype {dtype!r}: expected one of {', '.join(sorted(DTYPES))}")
    return name
