"""What simulator and replay need of a producer, and one that sends nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Meta = Mapping[str, Any] | str | None


class Sink(Protocol):
    """The part of `asapo_produce.producer.Producer` that is used here."""

    def send(
        self, data: Any, id: int | None = None, *, stream: str = ..., meta: Meta = ..., **more: Any
    ) -> Any:  # fmt: skip
        """Send one message."""

    def send_batch(
        self, frames: Any, ids: Sequence[int] | None = None, *, metas: Sequence[Meta] | None = ..., stream: str = ...,
        **more: Any,
    ) -> Any:  # fmt: skip
        """Send one message for each frame."""

    def finish_stream(self, stream: str, next_stream: str = ...) -> Any:
        """End a stream."""

    def flush(self, timeout_s: float | None = ...) -> None:
        """Wait for all outcomes."""


class _Done:
    """A handle whose outcome is known."""

    def result(self, timeout_s: float | None = None) -> int:
        return 0


class NullSink:
    """Takes everything and does nothing with it: shows how fast frames can be made."""

    _DONE = _Done()

    def send(self, data: Any, id: int | None = None, **more: Any) -> Any:
        """Take one message."""
        return self._DONE

    def send_batch(self, frames: Any, ids: Sequence[int] | None = None, **more: Any) -> Any:
        """Take a batch."""
        return self._DONE

    def finish_stream(self, stream: str, next_stream: str = "") -> None:
        """Do nothing."""

    def flush(self, timeout_s: float | None = None) -> None:
        """Do nothing."""
