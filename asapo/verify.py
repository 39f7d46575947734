"""`asapo verify`: every payload of a folder compared with its checksum, and whatever else cannot be trusted, named."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from asapo.client_path import check_client_path
from asapo.errors import AsapoError, DamagedFile
from asapo.index.directory import FILE_NAME
from asapo.index.rebuild import stream_ref
from asapo.index.snapshot import Snapshot
from asapo.models import StreamRef
from asapo.progress import Progress
from asapo.reader.payloads import check_payload, pread_payload
from asapo.reindex import SIDE_FILES, beamtime_of, tier_and_beamtimes
from asapo.storage.journal import Damage, Kind
from asapo.storage.layout import DRAFT_SUFFIX, FILES_FOLDER, SEGMENT_SUFFIX, SNAPSHOT_FILE, encode_name, message_file
from asapo.storage.recorded import Entry, RecordedStream, entries, find_recorded
from asapo.storage.withdrawn import KINDS, Withdrawn
from asapo.wire.codec import decode_put
from asapo.wire.put import unit_offsets, unpack_column

MB: Final = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="data folder of `asapo up`, a tier, or the folder of one beamtime",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each beamtime")


def run(args: argparse.Namespace) -> int:
    """Verify every beamtime that the folders hold; 1 when anything is damaged."""
    damaged = False
    for place in args.places:
        _, folders = tier_and_beamtimes(Path(os.path.abspath(place)))
        for folder in folders:
            with nullcontext() if args.json else Progress(f"verify {folder.name}", unit="messages") as progress:
                found = verify(folder, progress.update if progress else _ignore)
            damaged |= bool(found.damages)
            _show(found, as_json=args.json)
    return 1 if damaged else 0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written."""

    path: str
    offset: int
    reason: str
    source: str = ""
    stream: str = ""
    id: int = 0
    """Of the message that is lost by it; 0 when it is none."""
    substream: int = 0


@dataclass(slots=True)
class Verified:
    """What was found in one beamtime's folder."""

    beamtime: str
    folder: str
    messages: int = 0
    payload_bytes: int = 0
    damages: list[Finding] = field(default_factory=list)
    torn: int = 0
    """Journals with an end that was not written whole, as a killed receiver leaves them: no damage."""
    spare: list[str] = field(default_factory=list)
    """Files of messages that belong to none: refused, or left by a receiver that was killed."""


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


def verify(folder: Path, progress: Callable[[int, int], None] = _ignore) -> Verified:
    """Read everything in the folder of one beamtime, and its index where one lies beside the tier.

    Services may run; what they add meanwhile is not looked at. `progress` is told messages and bytes done so far.

    Raises
    ------
    WrongInput, StorageError, UnsupportedVersion
        If the folder is none of a beamtime, or something in it cannot be read at all.
    """
    recorded = find_recorded([folder])
    found = Verified(beamtime_of(recorded), str(folder))
    deque(entries(recorded.own.values(), lambda damage: _note(found, damage)), maxlen=0)
    for stream in recorded.streams:
        _verify_stream(found, stream, stream_ref(found.beamtime, stream), progress)
    _verify_index(found, folder.parent.parent / "state" / encode_name(found.beamtime) / FILE_NAME)
    return found


def _note(found: Verified, damage: Damage, ref: StreamRef | None = None) -> None:
    if damage.torn:
        found.torn += 1
    else:
        names = (ref.source, ref.stream) if ref else ("", "")
        found.damages.append(Finding(damage.path, damage.offset, damage.reason, *names))


def _verify_stream(
    found: Verified, stream: RecordedStream, ref: StreamRef, progress: Callable[[int, int], None]
) -> None:
    gone = Withdrawn()
    for entry in entries(stream.journals.values(), lambda damage: _note(found, damage, ref)):
        if entry.record.kind in KINDS:
            gone.note(entry.record.fields)
    files: set[str] = set()
    for entry in entries(stream.journals.values(), lambda _: None):
        if entry.record.kind == Kind.PUT:
            try:
                _verify_unit(found, entry, ref, gone, files)
                progress(found.messages, found.payload_bytes)
            except (AsapoError, KeyError, TypeError, ValueError) as exc:
                reason = f"a PUT record that cannot be used ({type(exc).__name__}: {exc})"
                found.damages.append(Finding(str(entry.path), entry.record.offset, reason, ref.source, ref.stream))
    for place in stream.folders:
        found.spare += [path for path in _client_files(place) if path not in files]
        if (place / SNAPSHOT_FILE).exists():
            _verify_snapshot(found, place / SNAPSHOT_FILE, ref)


def _verify_unit(found: Verified, entry: Entry, ref: StreamRef, gone: Withdrawn, files: set[str]) -> None:
    fields, segment = entry.record.fields, entry.path.with_suffix(SEGMENT_SUFFIX)
    put = decode_put(fields["put"])
    left_out = gone.left_out(segment.name, fields, put.ids)
    path, base = str(segment), fields["offset"]
    if fields["at"] == "file":
        path, base = message_file(segment.parent, check_client_path(put.path)), 0
        if not left_out:
            files.add(path)
    for at, (start, checksum) in enumerate(zip(unit_offsets(put.sizes), unpack_column(put.checksums), strict=False)):
        if at in left_out:
            continue
        found.messages += 1
        found.payload_bytes += put.sizes[at]
        reason = _problem(path, base + start, put.sizes[at], checksum, in_file=fields["at"] == "file")
        if reason:
            names = (ref.source, ref.stream, put.ids[at], put.substream)
            found.damages.append(Finding(path, base + start, reason, *names))


def _problem(path: str, offset: int, size: int, checksum: int, *, in_file: bool) -> str:
    """Return what is the matter with a payload, "" for nothing."""
    if in_file and os.path.islink(path):
        return "a link lies where the file was"
    if in_file and os.path.exists(path) and os.path.getsize(path) != size:
        return f"the file has {os.path.getsize(path)} bytes, {size} were sent"
    if not size and not in_file:
        return ""
    try:
        payload = pread_payload(path, offset, size)
        if payload is None:
            return "the file is not there, or cannot be read"
        check_payload(payload, checksum)
    except AsapoError as exc:
        return exc.message
    return ""


def _client_files(folder: Path) -> Iterator[str]:
    """Yield the paths of all files of messages in a stream's folder, and of drafts."""
    yield from map(str, folder.glob(f"*{DRAFT_SUFFIX}"))
    for place, _, names in os.walk(folder / FILES_FOLDER):
        yield from (os.path.join(place, name) for name in sorted(names))


def _verify_snapshot(found: Verified, path: Path, ref: StreamRef) -> None:
    try:
        Snapshot(path).load()
    except DamagedFile as exc:
        reason = f"{exc.message}: journals are read instead; remove it, or run asapo reindex"
        found.damages.append(Finding(str(path), exc.offset, reason, ref.source, ref.stream))


def _verify_index(found: Verified, database: Path) -> None:
    """Let SQLite check its file; what it says names no message."""
    if not database.parent.parent.is_dir():
        return  # a folder that was copied without
    what = "stop the services and run asapo reindex"
    if not database.exists():
        found.damages.append(Finding(str(database), 0, f"the index is not there: {what}"))
        return
    live = any(Path(f"{database}{end}").exists() for end in SIDE_FILES)
    try:
        name = f"{database.as_uri()}?mode=ro" + ("" if live else "&immutable=1")
        with closing(sqlite3.connect(name, uri=True, timeout=5)) as connection:
            said = [text for (text,) in connection.execute("PRAGMA integrity_check(3)")]
    except sqlite3.Error as exc:
        said = [str(exc)]
    if said != ["ok"]:
        found.damages.append(Finding(str(database), 0, f"{'; '.join(said)}: {what}"))


def facts_of(found: Verified) -> dict[str, Any]:
    """Return what is told of one beamtime as a map."""
    return asdict(found)


def _show(found: Verified, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts_of(found)) + "\n")
        return
    damaged = f"{len(found.damages)} damages" if found.damages else "no damage"
    sys.stdout.write(
        f"{found.beamtime}: {found.messages} messages, {found.payload_bytes / MB:.1f} MB read, {damaged}"
        f"{f', {len(found.spare)} files of no message' if found.spare else ''}; {found.folder}\n"
    )
    for one in found.damages:
        who = f"{one.source}/{one.stream} " if one.source else ""
        message = f"message {one.id}{f'.{one.substream}' if one.substream else ''}: " if one.id else ""
        sys.stderr.write(f"{who}{message}{one.path} at byte {one.offset}: {one.reason}\n")
    for path in found.spare:
        sys.stderr.write(f"{path}: belongs to no message\n")
