"""What the folders of a beamtime hold, without an index: its streams, their journals, their records in one order (R20).

Arrival order is known exactly within one receiver: its journals are in the order in which it indexed. Between receivers
the records are merged by their time `t`, which never falls within a receiver here, whatever its clock did.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from asapo.errors import WrongInput
from asapo.models import StreamRef
from asapo.storage.journal import Damage, JournalRecord, Kind, read_journal
from asapo.storage.layout import (
    JOURNAL_SUFFIX,
    SNAPSHOT_FILE,
    TIER_FILE,
    SegmentName,
    decode_name,
    is_journal,
    parse_segment_name,
)

OnDamage = Callable[[Damage], None]
DATED: Final = frozenset({Kind.PUT, Kind.FINISH, Kind.META})
"""Records whose `t` says when they came; that of the others is the time of what they speak of."""


@dataclass(slots=True)
class RecordedStream:
    """The files of one stream, of all tiers that were given."""

    source: str
    """Name of the source's folder, encoded."""
    stream: str
    """Name of the stream's folder, encoded."""
    folders: list[Path] = field(default_factory=list)
    journals: dict[str, Path] = field(default_factory=dict)
    """By file name; of one that lies on several tiers the longest."""


@dataclass(slots=True)
class RecordedBeamtime:
    """The files of one beamtime, of all tiers that were given."""

    folders: list[Path]
    streams: list[RecordedStream]
    """Ordered by their folders' names."""
    own: dict[str, Path]
    """Journals of the beamtime itself, by file name."""


class Entry(NamedTuple):
    """One record in the order of a stream or beamtime."""

    order_ns: int
    receiver: str
    path: Path
    record: JournalRecord


def find_recorded(folders: Sequence[Path]) -> RecordedBeamtime:
    """Return what lies in the folders of one beamtime, one for each tier; looks at names only.

    Raises
    ------
    WrongInput
        If one is no folder, or a tier instead of a beamtime on it.
    """
    own: dict[str, Path] = {}
    streams: dict[tuple[str, str], RecordedStream] = {}
    for folder in folders:
        _check_folder(folder)
        _add_journals(own, journals_in(folder))
        for source in _folders_in(folder):
            for path in _folders_in(source):
                names = (source.name, path.name)
                found = streams.get(names) or RecordedStream(*names)
                before = len(found.journals)
                _add_journals(found.journals, journals_in(path))
                if len(found.journals) > before or (path / SNAPSHOT_FILE).is_file() or names in streams:
                    streams[names] = found
                    found.folders.append(path)
    return RecordedBeamtime(list(folders), [streams[names] for names in sorted(streams)], own)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise WrongInput(f"{folder}: expected the folder of a beamtime, there is no such folder", path=str(folder))
    if (folder / TIER_FILE).exists():
        names = [path.name for path in _folders_in(folder)]
        raise WrongInput(
            f"{folder} is a tier, not a beamtime: name one of the folders in it ({', '.join(names[:10]) or 'none'})",
            path=str(folder),
        )


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def journals_in(folder: Path) -> dict[str, Path]:
    """Return the journals that lie in a folder, by file name."""
    return {path.name: path for path in sorted(folder.glob(f"*{JOURNAL_SUFFIX}")) if is_journal(path)}


def _add_journals(known: dict[str, Path], more: Mapping[str, Path]) -> None:
    for name, path in more.items():
        other = known.get(name)
        if other is None or path.stat().st_size > other.stat().st_size:
            known[name] = path


def head_of(path: Path) -> Mapping[str, object] | None:
    """Return the fields of a journal's HEAD, None when it is damaged."""
    for item in read_journal(path):
        if isinstance(item, JournalRecord):
            return item.fields if item.kind == Kind.HEAD else None
    return None


def names_in(journals: Iterable[Path]) -> StreamRef | None:
    """Return the stream that the first good HEAD of these journals names."""
    for path in journals:
        head = head_of(path) or {}
        names = [head.get(key) for key in ("beamtime", "source", "stream")]
        if all(names):
            return StreamRef(*names)  # type: ignore[arg-type]  # checked by StreamRef
    return None


def names_of_folder(beamtime: str, stream: RecordedStream) -> StreamRef | None:
    """Return the stream that the names of the folders spell; None when they were too long or are no names of ours."""
    try:
        source, name = decode_name(stream.source), decode_name(stream.stream)
    except ValueError:
        return None
    return StreamRef(beamtime, source, name) if source and name else None


def beamtime_in(found: RecordedBeamtime) -> str:
    """Return the beamtime's name that a journal tells, "" when none does."""
    for path in found.own.values():
        if name := (head_of(path) or {}).get("beamtime"):
            return str(name)
    refs = (names_in(stream.journals.values()) for stream in found.streams)
    return next((ref.beamtime for ref in refs if ref is not None), "")


def beamtime_of_folder(found: RecordedBeamtime) -> str:
    """Return the beamtime's name that the folder's name spells, "" when it was too long or is no name of ours."""
    try:
        return decode_name(found.folders[0].resolve().name) or ""
    except ValueError:
        return ""


def receiver_of(path: Path) -> tuple[str, int]:
    """Return receiver and epoch that a journal's file name tells."""
    name = _name(path)
    return decode_name(name.receiver) or name.receiver, name.epoch


def _name(path: Path) -> SegmentName:
    name = parse_segment_name(path.name)
    assert name is not None, path  # only such files are found
    return name


def entries(journals: Iterable[Path], on_damage: OnDamage) -> Iterator[Entry]:
    """Yield the records of journals, HEADs left out, in the order of their arrival.

    Raises
    ------
    StorageError, UnsupportedVersion
        As `read_journal`.
    """
    receivers: dict[str, list[Path]] = {}
    for path in sorted(journals, key=_name):
        receivers.setdefault(_name(path).receiver, []).append(path)
    chains = [_chain(name, paths, on_damage) for name, paths in receivers.items()]
    return heapq.merge(*chains, key=lambda entry: entry[:2])


def _chain(receiver: str, journals: list[Path], on_damage: OnDamage) -> Iterator[Entry]:
    """Yield the records of one receiver in the order in which it wrote them."""
    order_ns = 0
    for path in journals:
        begun_ns = 0
        for item in read_journal(path):
            if isinstance(item, Damage):
                on_damage(item)
                continue
            if item.kind == Kind.HEAD:
                begun_ns = _whole(item.fields.get("created_ns"))
                continue
            # FINISH and META had no time at first: they came no sooner than their journal was made.
            dated_ns = _whole(item.fields.get("t")) if item.kind in DATED else 0
            order_ns = max(order_ns, dated_ns or begun_ns * (item.kind in (Kind.FINISH, Kind.META)))
            yield Entry(order_ns, receiver, path, item)


def _whole(value: object) -> int:
    return value if type(value) is int else 0


def began_ns(journals: Iterable[Path]) -> int:
    """Return when the first of a stream's journals was made, ns since the Unix epoch; 0 when none tells."""
    firsts: dict[str, Path] = {}
    for path in sorted(journals, key=_name):
        firsts.setdefault(_name(path).receiver, path)
    heads = (_whole((head_of(path) or {}).get("created_ns")) for path in firsts.values())
    return min((began for began in heads if began), default=0)
