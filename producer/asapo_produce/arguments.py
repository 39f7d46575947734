"""Arguments of `Producer`, `send` and `send_batch`, checked and in wire form."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from asapo import hostinfo
from asapo.client_path import check_client_path
from asapo.errors import WrongInput
from asapo.models import MAX_ID, Origin, check_id, check_name
from asapo.wire.events import Hello
from asapo.wire.put import LEVELS, pack_column
from asapo_produce.discovery import TRANSPORTS


def one_of(what: str, value: str, known: Sequence[str]) -> str:
    """Return a setting that must be one of a few words."""
    if value not in known:
        raise WrongInput(f"{what} {value!r}: expected one of {', '.join(known)}")
    return value


def level_of(level: str) -> str:
    """Return an acknowledgement level that this version speaks."""
    return one_of("level", level, LEVELS)


def transport_of(transport: str) -> str:
    """Return a transport that this version knows."""
    return one_of("transport", transport, TRANSPORTS)


def greeting(beamtime: str, source: str, name: str, token: str) -> Hello:
    """Return the first event of a new session."""
    return Hello(
        role="producer",
        session=os.urandom(16),
        beamtime=check_name("beamtime", beamtime),
        source=check_name("source", source),
        name=name or hostinfo.who_am_i(),
        boot_id=hostinfo.boot_id(),
        token=token,
    )


def path_of(path: object, level: str) -> str:
    """Return the path that a message is to have as a file of its own."""
    if level == "memory":
        raise WrongInput(f"path {path!r:.100} for a message of level memory: expected a producer of level written")
    return check_client_path(path)


def check_part(substream: Any, dataset_size: Any) -> None:
    """Raise WrongInput when this is no part of a dataset."""
    whole = type(substream) is int and type(dataset_size) is int
    if not whole or not 1 <= substream <= dataset_size <= MAX_ID:
        raise WrongInput(f"substream {substream!r} of {dataset_size!r}: expected whole numbers, 1 to dataset_size")


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
    try:
        number = value.message_id if hasattr(value, "message_id") else value.id
        return Origin(
            check_name("source", value.source), check_name("stream", value.stream), check_id(whole_number(number))
        )
    except AttributeError:
        raise WrongInput(f"origin {value!r}: expected an Origin or a message (source, stream, id)") from None
