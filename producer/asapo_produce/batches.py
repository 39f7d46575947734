"""From the frames of one `send_batch` call to blocks that fit a wire unit each (R4, R13)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from operator import lt
from typing import Any, NamedTuple

from xxhash import xxh3_64_intdigest

from asapo.errors import WrongInput
from asapo.models import PLAIN, Format, check_id, format_of
from asapo.wire.limits import ALIGN, MAX_UNIT_BYTES, MAX_UNIT_MESSAGES, PACK_BELOW_BYTES
from asapo_produce.payloads import Payload, take
from asapo_produce.units import BATCH_UNIT_BYTES, UNIT_META_CHARS, join


class Frames(NamedTuple):
    """The frames of a batch: equal in format; in one buffer when they came as one array."""

    n: int
    format: Format
    sizes: list[int]
    whole: memoryview | None
    """All frames, one after the other."""
    views: list[memoryview]
    """The frames one by one; empty when `whole` has them."""


class Chunk(NamedTuple):
    """Frames `start` to `stop` as the payload of one unit."""

    start: int
    stop: int
    view: memoryview
    checksums: list[int]


def frames_of(frames: Any, *, codec: str, shape: Sequence[int] | None, dtype: Any, copy: bool) -> Frames:
    """Return what the caller gave as frames of one format.

    Raises
    ------
    WrongInput
        If there is none, they differ in format, or one is larger than a unit.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(frames, numpy.ndarray):
        if frames.ndim < 1:
            raise WrongInput("frames: expected an array of frames, (n, n_slow, n_fast); use send for one value")
        whole, form = take(frames, copy=copy)
        n = len(frames)
        size = whole.nbytes // n if n else 0
        found = Frames(n, format_of(form.dtype, frames.shape[1:], form.codec), [size] * n, whole, [])
    else:
        if not isinstance(frames, Iterable) or isinstance(frames, bytes | bytearray | memoryview | str):
            raise WrongInput(
                f"frames of type {type(frames).__name__}: expected an array of frames, or a list of payloads"
            )
        payloads = [take(frame, codec=codec, shape=shape, dtype=dtype, copy=copy) for frame in frames]
        form = payloads[0].format if payloads else PLAIN
        if any(payload.format != form for payload in payloads):
            raise WrongInput("frames of a batch must have one dtype and shape; send those that differ one by one")
        found = Frames(len(payloads), form, [p.view.nbytes for p in payloads], None, [p.view for p in payloads])
    if not found.n:
        raise WrongInput("a batch of no frames: expected at least one")
    if max(found.sizes) > MAX_UNIT_BYTES:
        raise WrongInput(f"frame of {max(found.sizes)} bytes: expected at most {MAX_UNIT_BYTES}")
    return found


def check_ids(ids: Sequence[int], n: int) -> Sequence[int]:
    """Return the ids of a batch: as many as frames, ascending."""
    if type(ids) is not range:
        ids = [check_id(i if type(i) is int else _as_int(i)) for i in ids]
    if len(ids) != n:
        raise WrongInput(f"{len(ids)} ids for {n} frames: give one for each")
    if ids[-1] - ids[0] == n - 1:
        dense = range(ids[0], ids[-1] + 1)
        ids = dense if ids == dense or list(ids) == list(dense) else ids
    dense_order = type(ids) is range and ids.step == 1
    if not dense_order and not all(map(lt, ids, ids[1:])):
        raise WrongInput("ids of a batch: expected ascending numbers, each once")
    check_id(ids[0])
    check_id(ids[-1])
    return ids


def _as_int(value: Any) -> Any:
    return int(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def chunks(frames: Frames, metas: Sequence[str]) -> Iterator[Chunk]:
    """Cut a batch into units: of one buffer without a copy where the alignment allows it, else packed anew."""
    size = frames.sizes[0]
    limit = MAX_UNIT_MESSAGES
    if sum(map(len, metas)) > UNIT_META_CHARS:
        limit = max(1, min(limit, UNIT_META_CHARS // max(map(len, metas))))
    if frames.whole is not None:
        unpadded = size % ALIGN == 0
        if not unpadded and size >= PACK_BELOW_BYTES:
            limit = 1
        step = max(1, min(limit, BATCH_UNIT_BYTES // size if size else limit))
        for start in range(0, frames.n, step):
            yield _cut(frames.whole, start, min(start + step, frames.n), size, unpadded or step == 1)
        return
    start = 0
    while start < frames.n:
        stop = _end_of_chunk(frames.sizes, start, limit)
        views = frames.views[start:stop]
        view = views[0] if len(views) == 1 else memoryview(join(views))
        yield Chunk(start, stop, view, list(map(xxh3_64_intdigest, views)))
        start = stop


def _cut(whole: memoryview, start: int, stop: int, size: int, as_it_is: bool) -> Chunk:
    views = (
        [whole[at : at + size] for at in range(start * size, stop * size, size)] if size else [whole] * (stop - start)
    )
    view = whole[start * size : stop * size] if as_it_is else memoryview(join(views))
    return Chunk(start, stop, view, list(map(xxh3_64_intdigest, views)))


def _end_of_chunk(sizes: Sequence[int], start: int, limit: int) -> int:
    """Return where a chunk of separate frames ends: large frames go alone, so that they need no copy."""
    if sizes[start] >= PACK_BELOW_BYTES:
        return start + 1
    nbytes, stop = 0, start
    while stop < min(len(sizes), start + limit) and sizes[stop] < PACK_BELOW_BYTES:
        nbytes += sizes[stop] + ALIGN
        if nbytes > BATCH_UNIT_BYTES and stop > start:
            break
        stop += 1
    return stop


__all__ = ["Chunk", "Frames", "Payload", "check_ids", "chunks", "frames_of"]
