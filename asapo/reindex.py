"""`asapo reindex`: the indexes of beamtimes made anew from their journals, while no service runs (R20)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from asapo.errors import (
    AsapoError,
    ConfigError,
    DamagedFile,
    IndexUnavailable,
    StorageError,
    UnsupportedVersion,
    WrongInput,
)
from asapo.index.deletion import move_files
from asapo.index.directory import FILE_NAME
from asapo.index.interface import Deletion
from asapo.index.keys import sorted_keys as read_sorted_keys
from asapo.index.rebuild import Rebuilt, journals_of, rebuild, stream_ref
from asapo.index.snapshot import Snapshot, why_stale
from asapo.index.snapshot_write import NotReady, write_snapshot
from asapo.index.sqlite import SqliteIndex
from asapo.progress import Progress
from asapo.storage.files import default_files
from asapo.storage.layout import (
    CORE_LOCK,
    EPOCH_SUFFIX,
    RECEIVERS_FOLDER,
    SNAPSHOT_FILE,
    TIER_FILE,
    encode_name,
    find_journals,
)
from asapo.storage.recorded import RecordedBeamtime, beamtime_in, beamtime_of_folder, find_recorded
from asapo.storage.tier import read_tier_uuid

BEFORE: Final = ".before"
"""Ends the name under which the index of before is kept."""
SIDE_FILES: Final = ("-wal", "-shm")
KB: Final = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="data folder of `asapo up`, a tier, or the folder of one beamtime; of beamtimes on several tiers, all",
    )
    parser.add_argument("--state", type=Path, help="folder of the indexes (default: `state` beside the tier)")
    parser.add_argument(
        "--partial", action="store_true", help="go on without tiers that the present index names and that are not given"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each beamtime")


def run(args: argparse.Namespace) -> int:
    """Rebuild every beamtime that the folders hold; 1 when something in the journals is damaged."""
    tiers = [tier_and_beamtimes(Path(os.path.abspath(place))) for place in args.places]
    state = args.state or _state_beside([tier for tier, _ in tiers])
    work: dict[str, list[Path]] = {}
    for _, folders in tiers:
        for folder in folders:
            places = work.setdefault(folder.name, [])
            if folder not in places:
                places.append(folder)
    damaged = False
    with _locked(state):
        for folders in work.values():
            made = reindex(folders, state, partial=args.partial, quiet=args.json)
            damaged |= bool(made.rebuilt.damaged)
            _show(made, as_json=args.json)
    return 1 if damaged else 0


@dataclass(slots=True)
class Reindexed:
    """What became of one beamtime."""

    rebuilt: Rebuilt
    index: Path
    messages_before: int | None = None
    """Messages in the index of before; None when there was none that could be read."""
    memory_lost: int = 0
    """Messages of level `memory` in the index of before: no journal has them."""
    snapshots: int = 0
    """Snapshots of finished streams that were written."""
    notes: list[str] = field(default_factory=list)


def reindex(folders: Sequence[Path], state: Path, *, partial: bool = False, quiet: bool = True) -> Reindexed:
    """Make the index of one beamtime anew; whoever calls sees to it that no service runs.

    Parameters
    ----------
    folders : sequence of paths
        The beamtime's folder on each tier.
    state : path
        Folder of the indexes; the index is kept there as `index.sqlite.before` when there is one.
    partial : bool
        Leave out tiers that the index of before names and that are not among the folders.
    quiet : bool
        Show no progress.

    Raises
    ------
    ConfigError
        If a tier is missing.
    StorageError, UnsupportedVersion, WrongInput
        If journals cannot be read or the index not be written; the index of before stays then.
    """
    found = find_recorded(folders)
    target = state / encode_name(beamtime_of(found)) / FILE_NAME
    made = Reindexed(Rebuilt(beamtime=beamtime_of(found)), target)
    deletions = _finish_deletions(made)
    found = find_recorded(folders)
    keys, sorted_keys = _look_at_old(made, {read_tier_uuid(folder.parent) for folder in folders}, partial=partial)
    draft = target.parent / f"reindex-{uuid.uuid4().hex}"
    default_files().mkdirs(draft)
    try:
        index = SqliteIndex(draft / FILE_NAME, made.rebuilt.beamtime)
        with closing(index):
            made.rebuilt = _rebuild(index, found, quiet=quiet)
            index.keep_deletions(deletions)
            if keys:
                index.declare_keys(keys)
            if sorted_keys:
                index.declare_sorted_keys(sorted_keys)
            for ref in made.rebuilt.streams:
                index.sort_finished(ref)
        _put_in_place(draft / FILE_NAME, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    made.snapshots = _write_snapshots(found, made)
    return made


def beamtime_of(found: RecordedBeamtime) -> str:
    """Return the beamtime's name."""
    name = beamtime_in(found) or beamtime_of_folder(found)
    if not name:
        raise WrongInput(f"{found.folders[0]}: neither journals nor the folder's name tell the beamtime's name")
    return name


def _rebuild(index: SqliteIndex, found: RecordedBeamtime, *, quiet: bool) -> Rebuilt:
    if quiet:
        return rebuild(index, found)
    total = sum(path.stat().st_size for path in journals_of(found))
    with Progress(f"reindex {index.beamtime}", total // KB, unit="kB of journals") as progress:
        return rebuild(index, found, progress=lambda _, nbytes: progress.update(nbytes // KB, nbytes))


# -- where things are --------------------------------------------------------------------------------------------------


def tier_and_beamtimes(place: Path) -> tuple[Path, list[Path]]:
    """Return the tier that a folder is, holds or lies on, and the folders of the beamtimes that are meant."""
    if (place.parent / TIER_FILE).exists() and place.is_dir():
        return place.parent, [place]
    for tier in (place, place / "beamline"):
        if (tier / TIER_FILE).exists():
            # A tier may hold other folders, too, such as lost+found.
            return tier, sorted(one for one in tier.iterdir() if one.is_dir() and next(find_journals(one), None))
    raise WrongInput(
        f"{place}: expected the data folder of `asapo up`, a tier (a folder with {TIER_FILE} in it) or the folder of a "
        "beamtime on one; a folder that was copied elsewhere needs no index: read it by asapo.open",
        path=str(place),
    )


def _state_beside(tiers: Sequence[Path]) -> Path:
    found = {tier.parent / "state" for tier in tiers if (tier.parent / "state").is_dir()}
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} state folders found beside the tiers: expected one; name it by --state", key="state"
        )
    return found.pop()


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Hold the locks of all services of a state folder, so that none runs or starts meanwhile.

    Raises
    ------
    ConfigError
        If one runs.
    """
    import fcntl

    if not state.is_dir():
        raise ConfigError(f"state folder {state}: there is no such folder", key="state", value=str(state))
    with ExitStack() as held:
        for path in [*sorted(state.glob(f"{RECEIVERS_FOLDER}/*{EPOCH_SUFFIX}")), state / CORE_LOCK]:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as exc:
                raise StorageError(f"cannot open {path}: {exc.strerror}", path=str(path)) from exc
            held.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = "the broker" if path.name == CORE_LOCK else f"receiver {path.stem}"
                raise ConfigError(
                    f"{who} is running (lock on {path}); stop all services of {state} first", key="state"
                ) from None
        yield


# -- the index of before -----------------------------------------------------------------------------------------------


def _look_at_old(made: Reindexed, tiers: set[str], *, partial: bool) -> tuple[list[str], list[str]]:
    """Note what the index of before has and journals have not; return its declared and its sorted keys."""
    if not made.index.exists():
        return [], []
    try:
        with closing(sqlite3.connect(made.index, timeout=1, isolation_level=None)) as connection:
            connection.execute("PRAGMA query_only = 1")
            segments = connection.execute(
                "SELECT path, tier_uuid FROM segment WHERE path NOT LIKE 'memory:%'"
            ).fetchall()
            counts = connection.execute("SELECT count(*), total(segment < 0) FROM message").fetchone()
            keys = [name for (name,) in connection.execute("SELECT name FROM declared_key ORDER BY no")]
            later = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sorted_key'").fetchall()
            sorted_names = read_sorted_keys(connection) if later else []
    except sqlite3.Error as exc:
        made.notes.append(f"the index of before cannot be read ({exc}): keys must be declared again")
        return [], []
    made.messages_before, made.memory_lost = int(counts[0]), int(counts[1])
    missing = sorted({path for path, tier_uuid in segments if tier_uuid not in tiers})
    if missing and not partial:
        raise ConfigError(
            f"{made.index} also has {len(missing)} segments on other tiers, the first is {missing[0]}: name these "
            "tiers, too, or --partial to lose what is on them from the index",
            key="places",
        )
    if made.memory_lost:
        made.notes.append(f"{made.memory_lost} messages of level memory are in no journal: lost from the index")
    return keys, sorted_names


def _finish_deletions(made: Reindexed) -> list[Deletion]:
    """Return which streams were deleted; finish what a receiver died at, or its journals would bring them back."""
    if not made.index.exists():
        return []
    try:
        with closing(SqliteIndex(made.index, made.rebuilt.beamtime)) as index:
            for one in index.deletions():
                if not one.moved:
                    index.finish_deletion(one.no, move_files)
                    made.notes.append(f"the deletion of {one.ref} is finished: a receiver had died at it")
            return index.deletions()
    except (DamagedFile, IndexUnavailable, UnsupportedVersion, WrongInput) as exc:
        made.notes.append(f"deletions of streams in the index of before cannot be read ({exc}): one may be undone")
        return []


def _put_in_place(draft: Path, target: Path) -> None:
    """Put the new index in the place of the old one, which is kept; a crash in between leaves no wrong pair."""
    files = default_files()
    if draft.with_name(draft.name + "-wal").exists():
        raise StorageError(f"{draft}: the new index is still open somewhere", path=str(draft))
    kept = target.with_name(target.name + BEFORE)
    for end in ("", *SIDE_FILES):
        with suppress(FileNotFoundError):
            os.unlink(f"{kept}{end}")
    # The database goes first: SQLite drops a log that it finds beside none.
    for end in ("", *SIDE_FILES):
        if Path(f"{target}{end}").exists():
            files.rename(f"{target}{end}", f"{kept}{end}")
    files.rename(draft, target)
    files.fsync_dir(target.parent)


def _write_snapshots(found: RecordedBeamtime, made: Reindexed) -> int:
    """Write the snapshots of finished streams that have none or an old one; return how many."""
    count = 0
    for stream in found.streams:
        if not stream.journals or _has_snapshot(stream.folders, stream.journals):
            continue
        ref = stream_ref(made.rebuilt.beamtime, stream)
        try:
            write_snapshot(stream.folders[0], made.index, ref, list(stream.journals.values()))
        except NotReady:
            continue
        except AsapoError as exc:
            made.notes.append(f"no snapshot of {ref}: {exc.message}")
            continue
        count += 1
    return count


def _has_snapshot(folders: Sequence[Path], journals: dict[str, Path]) -> bool:
    for folder in folders:
        try:
            snapshot = Snapshot(folder / SNAPSHOT_FILE)
            snapshot.load()
        except DamagedFile:
            continue
        if not why_stale(snapshot, journals):
            return True
    return False


# -- what is said ------------------------------------------------------------------------------------------------------


def facts_of(made: Reindexed) -> dict[str, Any]:
    """Return what is told of one beamtime as a map."""
    rebuilt = made.rebuilt
    return {
        "beamtime": rebuilt.beamtime,
        "index": str(made.index),
        "streams": len(rebuilt.streams),
        "messages": rebuilt.messages,
        "messages_before": made.messages_before,
        "withdrawn": rebuilt.withdrawn,
        "journals": rebuilt.journals,
        "journal_bytes": rebuilt.journal_bytes,
        "memory_lost": made.memory_lost,
        "snapshots": made.snapshots,
        "mixed": [f"{ref.source}/{ref.stream}" for ref in rebuilt.mixed],
        "damages": [asdict(damage) for damage in rebuilt.damages],
        "notes": made.notes,
    }


def _show(made: Reindexed, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts_of(made)) + "\n")
        return
    rebuilt = made.rebuilt
    before = "" if made.messages_before is None else f" ({made.messages_before} before)"
    sys.stdout.write(
        f"{rebuilt.beamtime}: {rebuilt.messages} messages{before} in {len(rebuilt.streams)} streams, "
        f"from {rebuilt.journals} journals; {rebuilt.withdrawn} messages in them do not count; index {made.index}\n"
    )
    for damage in rebuilt.damages:
        sys.stderr.write(f"{damage.path}: {damage.reason} at byte {damage.offset}, {damage.size} bytes left out\n")
    for note in made.notes:
        sys.stderr.write(f"{rebuilt.beamtime}: {note}\n")
    if rebuilt.mixed:
        names = ", ".join(f"{ref.source}/{ref.stream}" for ref in rebuilt.mixed[:10])
        sys.stderr.write(
            f"{rebuilt.beamtime}: taken in by several receivers, so arrival numbers may be others than before: {names}"
            "; groups that read these unordered should begin anew under another name\n"
        )
