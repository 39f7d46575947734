"""A tier: one folder tree on one file system where segments lie."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asapo.errors import StorageError
from asapo.storage.files import FileOps, default_files, free_bytes
from asapo.storage.layout import TIER_FILE

ALLOCATES: Final = frozenset({"btrfs", "ext4", "f2fs", "xfs"})
"""File systems with a cheap and real fallocate (measured on ext4: 2 ms/GB, and writes need half the CPU). tmpfs clears
every page at once (0.4 s/GB), and where there is no fallocate, as on NFS, the C library writes into each block instead,
in a race with our own writes."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A folder tree that holds segments, known by the uuid in its root wherever it is mounted (R22)."""

    root: Path
    """Absolute path of the root here."""
    uuid: str
    allocates: bool
    """True when preallocation is worth it on this file system."""

    @classmethod
    def open(cls, root: str | Path, files: FileOps | None = None) -> Tier:
        """Open the tier at `root`; create folder and uuid when they are not there yet.

        Raises
        ------
        StorageError
            If the folder or its `.asapo-tier` file cannot be made or read.
        """
        files = files or default_files()
        root = Path(os.path.abspath(root))
        files.mkdirs(root)
        found = read_tier_uuid(root)
        if not found:
            _write_uuid(root, files)
            found = read_tier_uuid(root)
        if not found:
            raise StorageError(f"{root / TIER_FILE}: expected a uuid; remove the file to begin anew", path=str(root))
        return cls(root, found, file_system_of(root) in ALLOCATES)

    def free_bytes(self) -> int:
        """Return the bytes that can still be written; 0 when the file system does not answer."""
        return free_bytes(self.root)


def read_tier_uuid(root: str | Path) -> str:
    """Return the uuid of the tier at `root`, "" when there is none that can be read."""
    try:
        text = Path(root, TIER_FILE).read_text("ascii")
        return str(uuid.UUID(text.strip()))
    except (OSError, ValueError):
        return ""


def tier_above(path: str | Path) -> tuple[Path | None, str]:
    """Return root and uuid of the tier that a file lies on, however deep; (None, "") when it lies on none."""
    for folder in Path(path).parents:
        if found := read_tier_uuid(folder):
            return folder, found
    return None, ""


def _write_uuid(root: Path, files: FileOps) -> None:
    """Write a new uuid; of several processes that start at once, one wins and the others read its uuid."""
    draft = root / f"{TIER_FILE}.{uuid.uuid4().hex}"
    file = files.create(draft, append=True)
    try:
        files.append(file, f"{uuid.uuid4()}\n".encode())
        files.fsync(file)
        files.link(draft, root / TIER_FILE)
        files.fsync_dir(root)
    finally:
        files.close(file)
        files.unlink(draft)


def file_system_of(path: str | Path) -> str:
    """Return the type of the file system that holds `path`, for example "ext4"; "" when the system does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        device = os.stat(path).st_dev
    except OSError:
        return ""
    name = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, rest = line.partition(" - ")
        if mount.split()[2] == name:
            return rest.split()[0]
    return ""
