"""What simulator and replay need of a producer, and one that sends nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Sink(Protocol):
    """The methods of `asapo_produce.producer.Producer` that are used here."""

    @property
    def send(self) -> Callable[..., Any]:
        """Send one message."""

    @property
    def send_batch(self) -> Callable[..., Any]:
        """Send one message for each frame."""

    @property
    def set_stream_meta(self) -> Callable[..., Any]:
        """Set the metadata of a stream."""

    @property
    def finish_stream(self) -> Callable[..., Any]:
        """End a stream."""


class _Done:
    """A handle whose outcome is known."""

    ids: tuple[int, ...] = ()
    errors: dict[int, Exception] = {}

    def exception(self, timeout_s: float | None = None) -> None:
        return None


class NullSink:
    """Takes everything and does nothing with it: shows how fast frames can be made."""

    _DONE = _Done()

    def send(self, data: Any, *, callback: Any = None, **more: Any) -> Any:
        """Take one message."""
        if callback is not None:
            callback(self._DONE)
        return self._DONE

    def send_batch(self, frames: Any, *, callback: Any = None, **more: Any) -> Any:
        """Take a batch."""
        if callback is not None:
            callback(self._DONE)
        return self._DONE

    def set_stream_meta(self, stream: str, meta: Any, *, timeout_s: float = 0) -> None:
        """Do nothing."""

    def finish_stream(self, stream: str, *, next_stream: str = "", timeout_s: float = 0) -> None:
        """Do nothing."""
