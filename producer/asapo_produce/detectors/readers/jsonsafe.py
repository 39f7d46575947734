"""Values from file headers as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final

LARGEST_ARRAY: Final = 256
"""Elements of an array that is still written out; of a larger one shape and type are kept."""


def json_safe(value: Any) -> Any:
    """Return `value` as JSON can hold it: NaN and infinity become null, bytes text, NumPy values Python's.

    >>> json_safe({"a": float("nan"), b"b": (1, b"x")})
    {'a': None, 'b': [1, 'x']}
    """
    if value is None or isinstance(value, bool | int):
        # An enum or a NumPy integer is an int, too, for JSON a plain one.
        return value if value is None or isinstance(value, bool) else int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bytes | bytearray):
        return bytes(value).rstrip(b"\0").decode("utf-8", "replace")
    return _nested(value)


def _nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(json_safe(key)): json_safe(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(each) for each in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, complex):
        return [json_safe(value.real), json_safe(value.imag)]
    return _of_numpy(value)


def _of_numpy(value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return json_safe(str(value))
    if dtype.kind in "Mm":
        text = str(value) if value.ndim == 0 else [str(each) for each in value.ravel()[:LARGEST_ARRAY]]
        return text if text != "NaT" else None
    if value.size > LARGEST_ARRAY:
        return {"shape": list(value.shape), "dtype": str(dtype)}
    plain = value.tolist()
    # tolist gives back a NumPy value where Python has none that is equal, such as long double.
    return str(value) if hasattr(plain, "dtype") else json_safe(plain)
