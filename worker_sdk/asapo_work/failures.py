"""Why user code failed on messages: as the broker is told, and how a loop that was left finds out."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from asapo.delivery.letters import bounded


def told(reason: str | BaseException) -> dict[str, str]:
    """Return the fields that tell the broker of a failure; of an exception its last line and its traceback."""
    if isinstance(reason, str):
        line, text = reason, ""
    else:
        known = traceback.TracebackException.from_exception(reason)
        line = " ".join("".join(known.format_exception_only()).split())
        text = "".join(known.format())
    line, text = bounded(line, text)
    # File names and messages may hold what no UTF-8 text can: lone surrogates.
    return {"reason": _sendable(line), "traceback": _sendable(text)}


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def cause_of(left: GeneratorExit, before: BaseException | None) -> Exception | None:
    """Return the exception for which a loop was closed, by `contextlib.closing` or an `except` clause; None otherwise.

    `before` is what was being handled already when the loop got its message.
    """
    context = left.__context__
    return context if isinstance(context, Exception) and context is not before else None


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Messages that a loop handed back when it was dropped, and where that was.

    A loop that an exception passes through is dropped before anybody handles the exception, so the loop cannot see it.
    It is recognised later: its traceback goes through the very instruction at which the loop was dropped.
    """

    fields: dict[str, Any]
    """Of the request that explains."""
    frame: int
    instruction: int

    @classmethod
    def at(cls, frame: FrameType | None, fields: dict[str, Any]) -> Unexplained | None:
        """Note that a loop was dropped by the code of this frame; keeps nothing of it alive."""
        return None if frame is None else cls(fields, id(frame), frame.f_lasti)

    def is_by(self, error: BaseException | None) -> bool:
        """Tell whether it was this exception that dropped the loop."""
        trace: TracebackType | None = error.__traceback__ if isinstance(error, Exception) else None
        while trace is not None:
            if (id(trace.tb_frame), trace.tb_lasti) == (self.frame, self.instruction):
                return True
            trace = trace.tb_next
        return False


def last_words() -> BaseException | None:
    """Return the exception that ends this program, where the interpreter says so."""
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
