"""Folders of deleted streams: moved out of the way at once by a rename, removed file by file afterwards."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from asapo.errors import StorageError
from asapo.storage.files import FileOps, default_files, storage_error
from asapo.storage.layout import TRASH_PREFIX

log = logging.getLogger(__name__)


def move_away(folders: Iterable[str | Path], files: FileOps | None = None) -> list[Path]:
    """Rename these folders, those that are there, so that no journal in them is found; return their new paths.

    Raises
    ------
    StorageError
        If one cannot be renamed; the others may be.
    """
    files = files or default_files()
    moved = []
    for folder in map(Path, folders):
        if os.path.lexists(folder):
            target = folder.with_name(f"{TRASH_PREFIX}{uuid.uuid4().hex}")
            files.rename(folder, target)
            moved.append(target)
    return moved


def remove_moved(tier_root: Path, files: FileOps | None = None) -> int:
    """Remove what `move_away` moved on a tier; return how many folders. What cannot be removed is logged, and stays."""
    files = files or default_files()
    count = 0
    for folder in tier_root.glob(f"*/*/{TRASH_PREFIX}*"):
        try:
            try:
                files.remove_tree(folder)
            except OSError as exc:
                raise storage_error(exc, "remove", str(folder)) from exc
            count += 1
        except StorageError as exc:
            log.warning("files of a deleted stream stay: %s", exc)
    return count
