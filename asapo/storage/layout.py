"""Where things lie on a tier: pure functions from names to paths and back (decision 0004)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

import xxhash

from asapo.models import StreamRef, check_name

TIER_FILE: Final = ".asapo-tier"
"""Holds the tier's uuid; no stream can have this name because a leading dot is always encoded."""
SEGMENT_SUFFIX: Final = ".seg"
JOURNAL_SUFFIX: Final = ".idx"
DRAFT_SUFFIX: Final = ".part"
"""Ends the name of a message's file while it is written: that of the segment which the stream has open then."""
FILES_FOLDER: Final = "files"
"""In a stream's folder: files of messages, under the paths that the producer gave."""
SNAPSHOT_FILE: Final = "index.snapshot"
"""The index of a finished stream, in the stream's folder; a journal's name ends otherwise."""
CORE_LOCK: Final = "core.lock"
"""In the state folder: locked by the running core."""
RECEIVERS_FOLDER: Final = ".receivers"
"""In the state folder, among the beamtimes: an encoded name never begins with a dot."""
EPOCH_SUFFIX: Final = ".epoch"
"""In there, behind a receiver's id: its number of lives, locked while it runs."""
BEAMTIME_PREFIX: Final = "+"
"""Begins the name of a beamtime's own journal; no encoded name holds a plus sign, so no source can take it."""
TRASH_PREFIX: Final = ".deleted-"
"""Begins the name of a deleted stream's folder until its files are removed; no encoded name has a leading dot."""
LONGEST_NAME: Final = 255
"""Longest file name in bytes on the file systems we know."""
CUT_AT: Final = 200
LONGEST_RECEIVER: Final = CUT_AT + 1 + 16
"""Longest receiver part of a segment name: leaves room for epoch, number and suffix."""

_SAFE: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_CODES: Final = [chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in range(256)]
_HASHED: Final = re.compile(r"~[0-9a-f]{16}\Z")
_FILE: Final = re.compile(r"(.+)-(\d+)-(\d{6,})(\.seg|\.idx)\Z", re.ASCII)


def encode_name(name: str, longest: int = LONGEST_NAME) -> str:
    """Return `name` as a file name: percent-encoded outside `[A-Za-z0-9._-]`, hashed when longer than `longest`.

    >>> encode_name("scan 1/ä"), encode_name(".."), encode_name("run_7")
    ('scan%201%2F%C3%A4', '%2E.', 'run_7')
    """
    raw = name.encode()
    text = "".join([_CODES[byte] for byte in raw])
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) > longest:
        text = f"{text[:CUT_AT]}~{xxhash.xxh3_64_hexdigest(raw)}"
    return text


def decode_name(text: str) -> str | None:
    """Return the name behind a file name, None when it was too long to be kept (the journal's HEAD has it).

    Raises
    ------
    ValueError
        If `encode_name` never gives this text.
    """
    if _HASHED.search(text):
        return None
    try:
        name = unquote_to_bytes(text).decode()
    except UnicodeError:
        name = ""
    if not name or encode_name(name) != text:
        raise ValueError(f"{text!r} is not an encoded name")
    return name


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """What the name of a segment or journal file says; `receiver` is as encoded."""

    receiver: str
    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.receiver}-{self.epoch}-{self.number:06d}"


def segment_name(receiver: str, epoch: int, number: int) -> str:
    """Return the file name of a receiver's segment.

    >>> segment_name("r1", 3, 12)
    'r1-3-000012.seg'
    """
    return f"{SegmentName(encode_name(receiver, LONGEST_RECEIVER), epoch, number)}{SEGMENT_SUFFIX}"


def parse_segment_name(file_name: str) -> SegmentName | None:
    """Return what a `.seg` or `.idx` file name says, None when it is not one of ours."""
    found = _FILE.match(file_name.removeprefix(BEAMTIME_PREFIX))
    if found is None or not found[2].isascii():
        return None
    return SegmentName(found[1], int(found[2]), int(found[3]))


def stream_dir(tier_root: str | Path, ref: StreamRef) -> Path:
    """Return the folder that holds a stream's segments."""
    return Path(tier_root, encode_name(ref.beamtime), encode_name(ref.source), encode_name(ref.stream))


def journal_path(segment_path: str | Path) -> str:
    """Return the path of the journal beside a segment."""
    return str(segment_path).removesuffix(SEGMENT_SUFFIX) + JOURNAL_SUFFIX


def draft_path(segment_path: str | Path) -> str:
    """Return the path that the file of a message has while it is written."""
    return str(segment_path).removesuffix(SEGMENT_SUFFIX) + DRAFT_SUFFIX


def is_segment(path: str) -> bool:
    """Tell whether a path in the index is that of a segment: no client's file ends so."""
    return path.endswith(SEGMENT_SUFFIX)


def message_file(folder: str | Path, client_path: str) -> str:
    """Return where the file of a message lies in a stream's folder.

    >>> message_file("/data/beamline/bt1/det/run1", "scan1/img.cbf")
    '/data/beamline/bt1/det/run1/files/scan1/img.cbf'
    """
    return f"{os.fspath(folder)}/{FILES_FOLDER}/{client_path}"


def client_path_of(path: str, source: str, stream: str) -> str:
    """Return the path that the producer gave the file at `path` of a stream, "" for a segment.

    >>> client_path_of("/data/beamline/bt1/det/run1/files/scan1/img.cbf", "det", "run1")
    'scan1/img.cbf'
    """
    if not path or is_segment(path):
        return ""
    return path.partition(f"/{encode_name(source)}/{encode_name(stream)}/{FILES_FOLDER}/")[2]


def beamtime_journal(tier_root: str | Path, beamtime: str, *, receiver: str, epoch: int, number: int) -> Path:
    """Return the path of a journal for records that concern the whole beamtime."""
    check_name("beamtime", beamtime)
    stem = SegmentName(encode_name(receiver, LONGEST_RECEIVER), epoch, number)
    return Path(tier_root, encode_name(beamtime), f"{BEAMTIME_PREFIX}{stem}{JOURNAL_SUFFIX}")


def tier_root_of(segment_path: str | Path) -> Path:
    """Return the root of the tier that a segment lies on: four levels up."""
    return Path(segment_path).parents[3]


def is_journal(path: Path) -> bool:
    """Tell whether a path is that of a journal."""
    return path.suffix == JOURNAL_SUFFIX and parse_segment_name(path.name) is not None and path.is_file()


def find_journals(folder: str | Path) -> Iterator[Path]:
    """Yield every journal in a tier, beamtime, source or stream folder and below, in the order of their paths."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(TRASH_PREFIX)]
        here = [path for name in names if name.endswith(JOURNAL_SUFFIX) and is_journal(path := Path(place, name))]
        found += here
        # Files of messages may be many, and no journal is among them.
        if FILES_FOLDER in folders and any(not path.name.startswith(BEAMTIME_PREFIX) for path in here):
            folders.remove(FILES_FOLDER)
    yield from sorted(found)
