"""How streams and messages are shown: lines for people, JSON objects for programs."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from asapo_work.message import Message

PIPED_META: Final = 200
"""Characters of metadata in a line that does not go to a terminal."""
LEAST_META: Final = 20
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def say(text: str) -> None:
    """Write a line to stdout at once, so that who reads a pipe gets it now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a remark to stderr."""
    sys.stderr.write(f"asapo: {text}\n")
    sys.stderr.flush()


def say_json(facts: Mapping[str, Any]) -> None:
    """Write one JSON object as a line."""
    say(json.dumps(facts))


def size_text(nbytes: int) -> str:
    """Return a size with three digits or so.

    >>> size_text(999), size_text(8192), size_text(25_000_000)
    ('999 B', '8.0 KiB', '23.8 MiB')
    """
    if nbytes < 1024:
        return f"{nbytes} B"
    size = float(nbytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} PiB"


def age_text(seconds: float) -> str:
    """Return a time span with two digits or so.

    >>> age_text(3.14), age_text(90), age_text(7200), age_text(200_000)
    ('3.1 s', '1.5 min', '2.0 h', '2.3 d')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def time_text(ns: int) -> str:
    """Return ns since the Unix epoch as local time with milliseconds."""
    try:
        local = (EPOCH + timedelta(microseconds=ns // 1000)).astimezone()
    except (OverflowError, OSError, ValueError):
        return f"{ns} ns"
    return local.strftime("%Y-%m-%d %H:%M:%S.") + f"{local.microsecond // 1000:03d}"


def printable(text: str) -> str:
    r"""Return text in which nothing can move the cursor of a terminal.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def payload_text(message: Message) -> str:
    """Return element type and shape of the payload; `bytes` when it has none."""
    form = message.format
    if not form.dtype:
        return "bytes"
    codec = "" if form.codec == "raw" else f" {form.codec}"
    return f"{form.dtype.lstrip('|<')} {'x'.join(map(str, form.shape)) or 'scalar'}{codec}"


def id_text(message: Message) -> str:
    """Return the id, with the module's number when the message is part of a dataset."""
    return f"{message.id}.{message.substream}/{message.dataset_size}" if message.dataset_size else str(message.id)


def parts_of(messages: Sequence[Message]) -> Iterator[Message]:
    """Return plain messages as they are and the parts of datasets one by one."""
    for message in messages:
        yield from message.parts or (message,)


def message_line(message: Message) -> str:
    """Return one line: id, acquisition time, size, payload, metadata as far as it fits."""
    start = (
        f"{id_text(message):>8}  {time_text(message.acquired_ns)}  {size_text(message.size):>9}  "
        f"{payload_text(message):<14}  "
    )
    room = PIPED_META
    if sys.stdout.isatty():
        room = max(LEAST_META, shutil.get_terminal_size().columns - len(start))
    meta = printable(message.meta_text)
    return start + (meta if len(meta) <= room else meta[: room - 1] + "…")


def message_facts(message: Message) -> dict[str, Any]:
    """Return what `--json` says of a message; the keys are documented and stay."""
    origin = message.origin
    return {
        "id": message.id,
        "seq": message.seq,
        "substream": message.substream,
        "dataset_size": message.dataset_size,
        "beamtime": message.beamtime,
        "source": message.source,
        "stream": message.stream,
        "size": message.size,
        "dtype": message.format.dtype,
        "shape": list(message.format.shape),
        "codec": message.format.codec,
        "acquired_ns": message.acquired_ns,
        "stored_ns": message.stored_ns,
        "origin": origin and {"source": origin.source, "stream": origin.stream, "id": origin.message_id},
        "meta": message.meta,
    }


def show_message(message: Message, *, as_json: bool) -> None:
    """Write one message as a line."""
    if as_json:
        say_json(message_facts(message))
    else:
        say(message_line(message))


def value_facts(array: Any) -> dict[str, float | int | bool | None]:
    """Return lowest, highest and mean value of a real array; empty for others."""
    if not getattr(array, "size", 0) or array.dtype.kind not in "biuf":
        return {}
    return {"min": _plain(array.min()), "max": _plain(array.max()), "mean": _plain(array.mean(dtype="f8"))}


def _plain(number: Any) -> float | int | bool | None:
    """Return a NumPy number as JSON can carry it: not a number becomes null."""
    value = number.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return aligned lines; the first `left` columns are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in (titles, *rows):
        cells = [
            cell.ljust(w) if n < left else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
