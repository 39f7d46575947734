"""What a reader writes down while it reads, so that nothing of it is lost when the reader is killed.

One text file for each reader, appended to: a line READER with JSON, then one line for each thing that was seen.

    GOT id size sha256 named t attempt late     ERR id code t     HOLE id t     DONE id t     END
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

from asapo.errors import DamagedFile
from asapo.testing.checker.evidence import Event, Reading, Seen, Way


class ReadingLog:
    """Appends to the log of one reader. Lines are whole or not there: each is one write."""

    def __init__(self, path: str | Path, way: Way, name: str, *, group: str = "", final: bool = False) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._line("READER", json.dumps({"way": way.value, "name": name, "group": group, "final": final}))

    def _line(self, *words: object) -> None:
        os.write(self._fd, f"{' '.join(map(str, words))}\n".encode())

    def got(self, seen: Seen) -> None:
        """Note a message that was read."""
        self._line("GOT", seen.id, seen.size, seen.sha256, seen.named, seen.t_ns, seen.attempt, int(seen.late))

    def failed(self, message_id: int, code: str, t_ns: int) -> None:
        """Note a message that is there and could not be read."""
        self._line("ERR", message_id, code, t_ns)

    def hole(self, message_id: int, t_ns: int) -> None:
        """Note an id that will never come, as the services say."""
        self._line("HOLE", message_id, t_ns)

    def done(self, message_id: int, t_ns: int) -> None:
        """Note an acknowledgement that was confirmed."""
        self._line("DONE", message_id, t_ns)

    def end(self) -> None:
        """Note that all was read."""
        self._line("END")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: str | Path) -> Reading:
    """Return what a reader has written down so far.

    Raises
    ------
    DamagedFile
        If a line cannot be understood.
    """
    facts: dict[str, Any] = {}
    parts: dict[str, list[Any]] = {"GOT": [], "ERR": [], "HOLE": [], "DONE": [], "END": []}
    whole, _, _ = Path(path).read_text().rpartition("\n")
    for number, line in enumerate(whole.splitlines(), 1):
        kind, _, rest = line.partition(" ")
        try:
            if kind == "READER":
                facts = json.loads(rest)
            else:
                parts[kind].append(_entry(kind, rest.split(" ")))
        except (ValueError, KeyError, IndexError) as exc:
            raise DamagedFile(f"{path} line {number} {line[:80]!r}: {exc!r}", path=str(path), offset=number) from exc
    return Reading(
        Way(facts["way"]),
        facts["name"],
        tuple(parts["GOT"]),
        complete=bool(parts["END"]),
        final=facts["final"],
        group=facts["group"],
        errors=tuple(parts["ERR"]),
        holes=tuple(parts["HOLE"]),
        confirmed=tuple(parts["DONE"]),
    )


def _entry(kind: str, words: list[str]) -> Any:
    if kind == "GOT":
        message_id, size, sha256, named, t_ns, attempt, late = words
        return Seen(int(message_id), int(size), sha256, int(named), int(t_ns), int(attempt), late == "1")
    if kind == "ERR":
        return Event(int(words[0]), int(words[2]), words[1])
    return Event(int(words[0]), int(words[1])) if kind != "END" else True
