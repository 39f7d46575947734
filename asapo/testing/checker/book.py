"""The producer's journal: what it was about to send, written before, and what became of it, written after.

One text file for each stream, appended to, line by line:

    RUN {"seed": ..., "stream": ..., ...}     first line: how to compute every frame again
    INVOKE id sha256 size t                   on the disk before the frame is handed to the producer
    ACK id level t                            the outcome that the callback was given
    FAIL id reason t
    UNKNOWN id t

t is the host's monotonic clock in ns. An INVOKE without an outcome counts as UNKNOWN: the program was killed.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from asapo.errors import DamagedFile, WrongInput
from asapo.testing.checker.content import Content

SUFFIX: Final = ".sent"
FIELDS: Final = {"INVOKE": 5, "ACK": 4, "FAIL": 4, "UNKNOWN": 3}
"""Words in a line of each kind."""


@dataclass(slots=True)
class Invocation:
    """One frame that was handed to the producer."""

    sha256: str
    size: int
    """Bytes."""
    sent_ns: int
    outcome: str = "UNKNOWN"
    """ACK, FAIL or UNKNOWN."""
    detail: str = ""
    """Level of an acknowledgement, code of the error of a failure."""
    settled_ns: int = 0


@dataclass(slots=True)
class Book:
    """What a producer says about one stream."""

    content: Content
    sent: dict[int, list[Invocation]] = field(default_factory=dict)
    """Id to what was sent with it: once, and again after a kill or to provoke a conflict."""

    def invoke(self, message_id: int, sha256: str, size: int, t_ns: int) -> None:
        """Take up that a frame is about to be sent."""
        self.sent.setdefault(message_id, []).append(Invocation(sha256, size, t_ns))

    def settle(self, message_id: int, outcome: str, detail: str, t_ns: int) -> None:
        """Take up the outcome of what was sent last with this id."""
        last = self.sent[message_id][-1]
        last.outcome, last.detail, last.settled_ns = outcome, detail, t_ns

    def acked(self, levels: Collection[str]) -> dict[int, Invocation]:
        """Return the first acknowledged frame of each id, of these levels."""
        found = {}
        for message_id, tries in self.sent.items():
            first = next((one for one in tries if one.outcome == "ACK"), None)
            if first is not None and first.detail in levels:
                found[message_id] = first
        return found

    def allowed(self, message_id: int) -> list[Invocation]:
        """Return what may be read under an id: the first acknowledged frame, else any that was sent; once each."""
        tries = self.sent.get(message_id, [])
        first = next((one for one in tries if one.outcome == "ACK"), None)
        return [first] if first is not None else list({one.sha256: one for one in tries}.values())

    def outcomes(self) -> dict[int, str]:
        """Return what is known of each id: ACK when any try was acknowledged, else UNKNOWN when any may have been."""
        found = {}
        for message_id, tries in self.sent.items():
            kinds = {one.outcome for one in tries}
            found[message_id] = "ACK" if "ACK" in kinds else "UNKNOWN" if "UNKNOWN" in kinds else "FAIL"
        return found


class BookWriter:
    """Appends to the journal of one stream; made again with the same folder and content it goes on.

    Parameters
    ----------
    folder : path
        The producer's own folder.
    content : Content
        What is sent; another one than before is refused.
    durable_outcomes : bool
        Bring each outcome to the disk at once, for tests that cut the power of the producer, too. Otherwise an outcome
        reaches the disk with the next frames, and one that is lost is an UNKNOWN.

    Raises
    ------
    WrongInput
        If the folder has a journal of other content.
    """

    def __init__(self, folder: str | Path, content: Content, *, durable_outcomes: bool = False) -> None:
        self.path = book_path(folder, content.stream)
        self._durable = durable_outcomes
        self._lock = threading.Lock()
        self.book = read_book(self.path) if self.path.exists() and self.path.stat().st_size else Book(content)
        if self.book.content != content:
            raise WrongInput(f"{self.path} is of {self.book.content}, not of {content}; give another folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o644)
        if os.fstat(self._fd).st_size == 0:
            self._write(f"RUN {json.dumps(content.facts())}\n")
            self._sync_folder()
        else:
            self._write("\n\n")  # a line that a kill has torn is known by the empty one behind it

    def _sync_folder(self) -> None:
        os.fsync(self._fd)
        if os.name == "posix":
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _write(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def invoke(self, frames: Iterable[tuple[int, str, int]]) -> None:
        """Write down (id, SHA-256, size) of frames that are about to be sent; they are on the disk on return."""
        now_ns = time.monotonic_ns()
        with self._lock:
            lines = []
            for message_id, sha256, size in frames:
                self.book.invoke(message_id, sha256, size, now_ns)
                lines.append(f"INVOKE {message_id} {sha256} {size} {now_ns}\n")
            self._write("".join(lines))
            os.fsync(self._fd)

    def settle(self, message_id: int, outcome: str, detail: str = "") -> None:
        """Write down an outcome. Any thread."""
        now_ns = time.monotonic_ns()
        with self._lock:
            self.book.settle(message_id, outcome, detail, now_ns)
            self._write(" ".join(filter(None, (outcome, str(message_id), detail, f"{now_ns}\n"))))
            if self._durable:
                os.fsync(self._fd)

    def close(self) -> None:
        """Bring everything to the disk and close."""
        with self._lock:
            os.fsync(self._fd)
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def book_path(folder: str | Path, stream: str) -> Path:
    """Return where the journal of a stream lies."""
    from asapo.storage.layout import encode_name

    return Path(folder, encode_name(stream, 200) + SUFFIX)


def read_book(path: str | Path) -> Book:
    """Read a journal, also while it is being written; a last line that is not whole is left out.

    Raises
    ------
    DamagedFile
        If it is no journal, or a line in it cannot be understood.
    """
    text = Path(path).read_text()
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        lines.pop()
    book: Book | None = None
    for number, line in enumerate(lines, 1):
        try:
            if book is None:
                book = Book(Content.from_facts(_run_line(line)))
            elif line:
                _take(book, line.split(" "))
        except (ValueError, KeyError, IndexError, WrongInput) as exc:
            if number < len(lines) and lines[number] == "":
                continue  # torn by a kill, and gone on behind it
            raise DamagedFile(f"{path} line {number} {line[:80]!r}: {exc}", path=str(path), offset=number) from exc
    if book is None:
        raise DamagedFile(f"{path} is empty: expected a line RUN", path=str(path), offset=0)
    return book


def _run_line(line: str) -> Mapping[str, Any]:
    kind, _, facts = line.partition(" ")
    if kind != "RUN":
        raise ValueError("expected a line RUN")
    found: dict[str, Any] = json.loads(facts)
    return found


def _take(book: Book, words: list[str]) -> None:
    kind, number, *rest = words
    if len(words) != FIELDS[kind]:
        raise ValueError(f"expected {FIELDS[kind]} words")
    if kind == "INVOKE":
        book.invoke(int(number), rest[0], int(rest[1]), int(rest[2]))
    else:
        book.settle(int(number), kind, rest[0] if len(rest) > 1 else "", int(rest[-1]))
