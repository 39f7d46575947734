"""The Put event: one wire unit of n messages, in columns, so that Python works little per frame."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from math import prod
from operator import itemgetter, lt
from typing import Any, Final

from asapo.client_path import check_client_path
from asapo.errors import WrongInput
from asapo.models import MAX_ID, PLAIN, Format, Origin, check_name, format_of
from asapo.wire.limits import ALIGN, MAX_META_BYTES, MAX_UNIT_BYTES, MAX_UNIT_MESSAGES

LEVELS: Final = ("written", "memory")
"""Acknowledgement levels this version speaks (R25)."""
PLAIN_KEYS: Final = ("u", "n", "i", "k", "z", "c", "m", "t", "b")
"""What the header map of every Put has."""
_plain_values: Final = itemgetter(*PLAIN_KEYS)


def aligned(size: int) -> int:
    """Return `size` rounded up to the alignment of payloads within a unit."""
    return (size + ALIGN - 1) & -ALIGN


def unit_offsets(sizes: Sequence[int]) -> list[int]:
    """Return where each payload starts within the unit, and the unit's length as one more element.

    >>> unit_offsets([100, 64, 3])
    [0, 128, 192, 195]
    """
    if not sizes:
        return [0]
    first, n = sizes[0], len(sizes)
    if sizes.count(first) == n:
        step = aligned(first)
        starts = list(range(0, n * step, step)) if step else [0] * n
        starts.append((n - 1) * step + first)
        return starts
    starts = list(accumulate(map(aligned, sizes[:-1]), initial=0))
    starts.append(starts[-1] + sizes[-1])
    return starts


def pack_column(values: Sequence[int], *, signed: bool = False) -> bytes:
    """Return 64-bit little-endian integers as bytes."""
    column = array("q" if signed else "Q", values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def unpack_column(column: bytes, *, signed: bool = False) -> list[int]:
    """Return the integers of a packed column."""
    values = array("q" if signed else "Q")
    values.frombytes(column)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """One wire unit: `len(ids)` messages of one stream with one format.

    Raises
    ------
    WrongInput
        If columns differ in length, an id, size or text is out of its limits, or size and format disagree.
    """

    unit: int
    """Number of the unit on this link, from 1, without holes."""
    stream: str
    ids: Sequence[int]
    """A range when dense; ascending, from 1."""
    sizes: Sequence[int]
    """Stored bytes of each payload."""
    checksums: bytes
    """xxh3_64 of each payload: n unsigned 64-bit little-endian integers."""
    metas: Sequence[str]
    """One JSON object as text for each message."""
    acquired_ns: bytes
    """Acquisition time of each message, ns since the Unix epoch: n signed 64-bit little-endian integers."""
    closed_below: int = 0
    format: Format = PLAIN
    substream: int = 0
    dataset_size: int = 0
    level: str = "written"
    origins: Sequence[Origin | None] = ()
    path: str = ""
    """Where the payload of a unit of one message is to lie as a file of its own, below the stream's folder."""

    def __post_init__(self) -> None:
        check_name("stream", self.stream)
        n = len(self.ids)
        if not 1 <= n <= MAX_UNIT_MESSAGES:
            raise WrongInput(f"unit of {n} messages: expected 1 to {MAX_UNIT_MESSAGES}; split it")
        if not len(self.sizes) == len(self.metas) == n or not len(self.checksums) == len(self.acquired_ns) == 8 * n:
            raise WrongInput(f"unit of {n} messages has columns of other lengths")
        if self.origins and len(self.origins) != n:
            raise WrongInput(f"unit of {n} messages has {len(self.origins)} origins")
        if self.level not in LEVELS:
            raise WrongInput(f"level {self.level!r}: expected one of {', '.join(LEVELS)}")
        numbers = (self.unit, self.closed_below, self.substream, self.dataset_size)
        if set(map(type, numbers)) != {int} or min(numbers) < 0 or max(numbers) > MAX_ID:
            raise WrongInput(
                f"unit, closed_below, substream, dataset_size {numbers!r}: expected integers from 0 to 2**63 - 1"
            )
        if self.substream > self.dataset_size or (self.dataset_size and not self.substream):
            raise WrongInput(f"substream {self.substream} of {self.dataset_size}: expected 1 to dataset_size")
        if self.path:
            self._check_path()
        self._check_ids()
        self._check_sizes()
        longest = max(map(len, self.metas))
        if longest > MAX_META_BYTES:
            raise WrongInput(f"metadata of {longest} characters: expected at most {MAX_META_BYTES} bytes")

    def _check_path(self) -> None:
        check_client_path(self.path)
        if len(self.ids) != 1 or self.level == "memory":
            raise WrongInput(
                f"path {self.path!r:.100} for a unit of {len(self.ids)} messages, level {self.level}: expected one "
                "message of a level that is written"
            )

    def _check_ids(self) -> None:
        ids = self.ids
        dense = type(ids) is range and ids.step == 1
        good = dense or (set(map(type, ids)) == {int} and all(map(lt, ids, ids[1:])))
        if not good or ids[0] < 1 or ids[-1] > MAX_ID:
            raise WrongInput(f"message ids {ids[0]!r} .. {ids[-1]!r}: expected ascending integers from 1 to 2**63 - 1")

    def _check_sizes(self) -> None:
        sizes = self.sizes
        if set(map(type, sizes)) != {int} or min(sizes) < 0 or sum(sizes) > MAX_UNIT_BYTES:
            raise WrongInput(f"payload sizes add up to more than {MAX_UNIT_BYTES} bytes, or one is no size")
        if self.format.dtype and self.format.codec == "raw":
            nbytes = prod(self.format.shape) * int(self.format.dtype[2:])
            if min(sizes) != nbytes or max(sizes) != nbytes:
                raise WrongInput(f"payload of {sizes[0]} bytes, but {self.format} needs {nbytes}")

    @property
    def nbytes(self) -> int:
        """Length of the payload part."""
        return unit_offsets(self.sizes)[-1]


def put_to_map(put: Put) -> dict[str, Any]:
    """Return the header map of a Put."""
    return put_map(
        unit=put.unit, stream=put.stream, ids=put.ids, sizes=put.sizes, checksums=put.checksums, metas=put.metas,
        acquired_ns=put.acquired_ns, closed_below=put.closed_below, form=put.format, substream=put.substream,
        dataset_size=put.dataset_size, level=put.level, origins=put.origins, path=put.path,
    )  # fmt: skip


def put_map(
    *, unit: int, stream: str, ids: Sequence[int], sizes: Sequence[int], checksums: bytes, metas: Sequence[str],
    acquired_ns: bytes, closed_below: int, form: Format, substream: int, dataset_size: int, level: str,
    origins: Sequence[Origin | None], path: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return the header map of a Put with these columns; keys are short because every unit carries them.

    Nothing is checked: for who built the columns from checked values, as the producer SDK does for every unit. What
    the receiver makes of the map is checked in full.
    """
    first = sizes[0]
    header: dict[str, Any] = {
        "u": unit,
        "n": stream,
        "i": ids[0] if type(ids) is range or len(ids) == 1 else list(ids),
        "k": len(ids),
        "z": first if sizes.count(first) == len(sizes) else list(sizes),
        "c": checksums,
        "m": metas if type(metas) is list else list(metas),
        "t": acquired_ns,
        "b": closed_below,
    }
    if form is not PLAIN and form != PLAIN:
        header["f"] = [form.dtype, list(form.shape), form.codec]
    if substream:
        header["s"], header["d"] = substream, dataset_size
    if level != "written":
        header["l"] = level
    if origins and any(origins):
        header["o"] = [origin and [origin.source, origin.stream, origin.message_id] for origin in origins]
    if path:
        header["p"] = path
    return header


def put_from_map(header: dict[str, Any]) -> Put:
    """Build a Put from its header map.

    Raises
    ------
    WrongInput, KeyError, TypeError, ValueError
        Whatever is wrong with the map; the codec blames the peer for each of them.
    """
    n = header["k"]
    if type(n) is not int or not 1 <= n <= MAX_UNIT_MESSAGES:
        raise WrongInput(f"unit of {n!r} messages: expected 1 to {MAX_UNIT_MESSAGES}")
    ids, sizes, metas = header["i"], header["z"], header["m"]
    if set(map(type, metas)) != {str} or type(header["n"]) is not str:
        raise WrongInput("metadata and stream name: expected text")
    form = header.get("f")
    return Put(
        unit=header["u"],
        stream=header["n"],
        ids=range(ids, ids + n) if type(ids) is int else ids,
        sizes=[sizes] * n if type(sizes) is int else sizes,
        checksums=bytes(header["c"]),
        metas=metas,
        acquired_ns=bytes(header["t"]),
        closed_below=header["b"],
        format=format_of(form[0], tuple(form[1]), form[2]) if form else PLAIN,
        substream=header.get("s", 0),
        dataset_size=header.get("d", 0),
        level=header.get("l", "written"),
        origins=tuple(origin and Origin(*origin) for origin in header.get("o", ())),
        path=header.get("p", ""),
    )


def put_from_singles(headers: Sequence[dict[str, Any]]) -> Put | None:
    """Build one Put of the header maps of many that follow each other and have one message each.

    Its unit is that of the first. None when they do not go together (another stream or format, origins, ids that do not
    ascend) or anything may be wrong with one of them: then each is to be looked at by itself.

    Raises
    ------
    WrongInput, KeyError, TypeError, ValueError
        Also when something is wrong with one of them.
    """
    first = headers[0]
    form = first.get("f")
    keys = {*PLAIN_KEYS, "f"} if form else set(PLAIN_KEYS)
    if any(header.keys() != keys or header.get("f") != form for header in headers):
        return None
    columns = tuple(zip(*map(_plain_values, headers), strict=True))
    if not _go_together(*columns):
        return None
    units, streams, ids, _, sizes, checksums, metas, acquired, marks = columns
    dense = range(ids[0], ids[0] + len(headers))
    return Put(
        unit=units[0],
        stream=streams[0],
        ids=dense if ids == tuple(dense) else list(ids),
        sizes=list(sizes),
        checksums=b"".join(checksums),
        metas=[text for (text,) in metas],
        acquired_ns=b"".join(acquired),
        closed_below=max(marks),
        format=format_of(form[0], tuple(form[1]), form[2]) if form else PLAIN,
    )


def _go_together(
    units: Any, streams: Any, ids: Any, counts: Any, sizes: Any, checksums: Any, metas: Any, acquired: Any, marks: Any
) -> bool:
    """Say whether these columns are of units in a row, of one stream and one message each; `Put` checks the rest."""
    n = len(units)
    return (
        set(map(type, chain(units, ids, counts, sizes, marks))) == {int}
        and units == tuple(range(units[0], units[0] + n))
        and counts.count(1) == n
        and streams.count(streams[0]) == n
        and min(marks) >= 0
        and set(map(type, metas)) == {list}
        and set(map(len, metas)) == {1}
        and set(map(type, chain(streams, *metas))) == {str}
        and set(map(len, chain(checksums, acquired))) == {8}
    )
