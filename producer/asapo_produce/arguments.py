"""Arguments of `send` and `send_batch`, checked and in wire form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from asapo.errors import WrongInput
from asapo.models import Origin, check_id, check_name
from asapo.wire.put import pack_column


def whole_number(value: Any) -> Any:
    """Turn a NumPy integer into Python's; leave anything else for the check to refuse."""
    return value.__index__() if hasattr(value, "__index__") and not isinstance(value, bool) else value


def time_of(value: Any) -> int:
    """Return an acquisition time that fits a signed 64-bit column."""
    number: Any = whole_number(value)
    if type(number) is not int or not -(2**63) <= number < 2**63:
        raise WrongInput(f"acquired_ns {value!r}: expected an integer, ns since the Unix epoch")
    return number


def times_of(acquired_ns: int | Sequence[int] | None, n: int) -> bytes:
    """Return the column of acquisition times of a batch; now when none is given."""
    if acquired_ns is None:
        return pack_column([time.time_ns()], signed=True) * n
    if hasattr(acquired_ns, "__len__"):
        return pack_column([time_of(value) for value in one_each(acquired_ns, n)], signed=True)
    return pack_column([time_of(acquired_ns)], signed=True) * n


def one_each(values: Any, n: int) -> Any:
    """Return `values` when there is one for each of `n` frames."""
    if len(values) != n:
        raise WrongInput(f"{len(values)} values for {n} frames: give one for each")
    return values


def origin_of(value: Any) -> Origin:
    """Return the origin that a message, or an Origin, stands for."""
    if isinstance(value, Origin):
        return value
    try:
        number = value.message_id if hasattr(value, "message_id") else value.id
        return Origin(
            check_name("source", value.source), check_name("stream", value.stream), check_id(whole_number(number))
        )
    except AttributeError:
        raise WrongInput(f"origin {value!r}: expected an Origin or a message (source, stream, id)") from None
