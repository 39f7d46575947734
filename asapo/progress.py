"""Progress of long work on stderr: a bar on a terminal that has rich, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TextIO

LINE_EVERY_S: Final = 5.0
BAR_EVERY_S: Final = 0.1


class Progress:
    """Shows how far work is.

    Parameters
    ----------
    label : str
        What is being done.
    total : int
        Frames to come; 0 when unknown.
    unit : str
        What is counted instead of frames.
    out : text stream
        Where to write; stderr when left out.
    """

    def __init__(
        self,
        label: str,
        total: int = 0,
        *,
        unit: str = "frames",
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._total = total
        self._unit = unit
        self._out = out or sys.stderr
        self._clock = clock
        self._began_s = clock()
        self._next_s = 0.0
        self._bar: Any = None
        self._task: Any = None
        self._every_s = LINE_EVERY_S

    def __enter__(self) -> Self:
        if self._out.isatty():
            self._bar = _rich_bar()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total or None, rate="")
            self._every_s = BAR_EVERY_S
        self._next_s = self._clock() + self._every_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, frames: int, nbytes: int) -> None:
        """Note what is done so far; cheap when nothing is to be shown yet."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + self._every_s
        elapsed_s = max(1e-9, now_s - self._began_s)
        rate = f"{frames / elapsed_s:.0f} {self._unit}/s, {nbytes / elapsed_s / 1e6:.0f} MB/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=frames, rate=rate)
            return
        of = f" of {self._total}" if self._total else ""
        self._out.write(f"{self._label}: {frames}{of} {self._unit}, {rate}\n")
        self._out.flush()


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    return Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
