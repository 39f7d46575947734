"""A producer that keeps what it is given and acknowledges at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asapo.errors import AsapoError, DuplicateId


class FakeHandle:
    def __init__(self, ids: Sequence[int], errors: dict[int, AsapoError]) -> None:
        self.ids = ids
        self.errors = errors

    def exception(self, timeout_s: float | None = None) -> AsapoError | None:
        return next(iter(self.errors.values()), None)


class FakeProducer:
    """Like the real one as far as content is concerned: equal content with an id that exists is fine, other is not."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.stored: dict[tuple[str, int, int], tuple[Any, Any]] = {}
        self.finished: list[tuple[str, str]] = []
        self.stream_metas: dict[str, Any] = {}

    def send(self, data: Any, *, id: int, stream: str, meta: Any, callback: Callable[[Any], None], **more: Any) -> Any:
        return self._take([data], [id], stream, [meta], callback, more)

    def send_batch(
        self,
        frames: Any,
        *,
        ids: Sequence[int],
        stream: str,
        metas: Sequence[Any],
        callback: Callable[[Any], None],
        **more: Any,
    ) -> Any:
        return self._take(frames, ids, stream, metas, callback, more)

    def set_stream_meta(self, stream: str, meta: Any, *, timeout_s: float = 0) -> None:
        self.stream_metas[stream] = meta

    def finish_stream(self, stream: str, *, next_stream: str = "", timeout_s: float = 0) -> None:
        self.finished.append((stream, next_stream))

    def _take(
        self, frames: Any, ids: Sequence[int], stream: str, metas: Sequence[Any], callback: Any, more: dict[str, Any]
    ) -> FakeHandle:
        assert len(frames) == len(ids) == len(metas)
        errors: dict[int, AsapoError] = {}
        for frame, i, meta in zip(frames, ids, metas, strict=True):
            data = np.array(frame, copy=True) if isinstance(frame, np.ndarray) else bytes(frame)
            before = self.stored.setdefault((stream, more.get("substream", 0), i), (data, meta))
            if not np.array_equal(before[0], data):
                errors[i] = DuplicateId("other content", message_id=i)
        self.calls.append({"ids": list(ids), "stream": stream, "metas": list(metas), "errors": errors, **more})
        handle = FakeHandle(list(ids), errors)
        callback(handle)
        return handle

    def frames(self, stream: str, substream: int = 0) -> dict[int, Any]:
        """Return id to payload of a stream."""
        return {i: data for (name, part, i), (data, _) in self.stored.items() if (name, part) == (stream, substream)}

    def metas(self, stream: str) -> dict[int, Any]:
        """Return id to metadata of a stream."""
        return {i: meta for (name, _, i), (_, meta) in self.stored.items() if name == stream}


class FakeClock:
    """Time passes only by sleeping, or by what a test adds."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, for_s: float) -> None:
        self.slept_s.append(for_s)
        self.now_s += for_s
