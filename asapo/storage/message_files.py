"""Files of single messages, under the path that the producer gave: written beside, then named (R21, decision 0014).

A file gets its name by a hard link, which never replaces one that is there. So two messages that want the same path
cannot overwrite each other, whichever receiver takes them, and nobody ever sees half of a file.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import xxhash

from asapo.errors import DuplicateFile, StorageError, UnsafePath
from asapo.failpoints import failpoint
from asapo.storage.files import NO_LINK, Buffer, FileOps, default_files, storage_error
from asapo.storage.layout import FILES_FOLDER, draft_path, message_file

CHUNK_BYTES: Final = 4 * 1024 * 1024
READ_FLAGS: Final = os.O_RDONLY | NO_LINK | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def write_message_file(
    files: FileOps, root: Path, segment: str, client_path: str, payload: Buffer, checksum: int
) -> str:
    """Write the file of a message and return its path; one that is there with the same bytes is taken as it is.

    Parameters
    ----------
    root : path
        Root of the tier; nothing outside of it is ever opened or made.
    segment : str
        Path of the segment that the stream has open: it names stream's folder and draft.
    client_path : str
        Checked by `asapo.client_path.check_client_path`.
    checksum : int
        xxh3_64 of the payload.

    Raises
    ------
    DuplicateFile
        If a file of that path is there with other content, which stays; field `path`.
    UnsafePath
        If a link, or something that is no folder, is in the way.
    DiskFull, StorageError
        If the file cannot be written.
    """
    folder = Path(segment).parent
    target, draft = message_file(folder, client_path), draft_path(segment)
    above = folder.relative_to(root).parts
    *below, name = client_path.split("/")
    with files.folder_below(root, (*above, FILES_FOLDER, *below)) as place:
        if not _taken(place, name):
            with files.folder_below(root, above) as stream:
                if _write(files, draft, stream, payload, target, place):
                    return target
        if not _holds(place, name, target, len(memoryview(payload)), checksum):
            raise DuplicateFile(
                f"file {client_path!r}: {target} is there with other content, which stays; choose another path",
                path=client_path,
            )
    return target


def remove_draft(segment: str, files: FileOps | None = None) -> None:
    """Remove what a life that was killed may have left of a file beside this segment."""
    draft = draft_path(segment)
    if os.path.lexists(draft):
        with suppress(StorageError):
            (files or default_files()).unlink(draft)


def open_message_file(files: FileOps, root: Path, path: str) -> int:
    """Open the file of a message for reading, below `root` and through no link; return the descriptor.

    Raises
    ------
    UnsafePath
        If a link is in the way.
    StorageError
        If the file cannot be opened.
    """
    try:
        *below, name = Path(path).relative_to(root).parts
    except ValueError:
        raise UnsafePath(f"{path} does not lie below {root}", path=path) from None
    with files.folder_below(root, below, make=False) as place:
        try:
            return os.open(name, READ_FLAGS, dir_fd=place)
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise UnsafePath(f"{path} is a link: expected the file of a message", path=path) from exc
            raise storage_error(exc, "open", path) from exc


def _taken(place: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=place, follow_symlinks=False)
    except OSError:
        return False  # if it cannot be told, the link will
    return True


def _write(files: FileOps, draft: str, stream: int, payload: Buffer, target: str, place: int) -> bool:
    """Write a draft in the stream's folder and give it its name; False when that was taken meanwhile."""
    with suppress(StorageError):
        files.unlink(draft, folder=stream)  # an attempt that failed could not remove it
    file = files.create(draft, folder=stream)
    try:
        try:
            files.pwrite_all(file, [payload], 0)
        finally:
            files.close(file)
        failpoint("file.before-link")
        linked = files.link(draft, target, source_folder=stream, folder=place)
        failpoint("file.after-link")
    finally:
        with suppress(StorageError):
            files.unlink(draft, folder=stream)
    return linked


def _holds(place: int, name: str, target: str, size: int, checksum: int) -> bool:
    """Tell whether the file that is there is a plain one with these bytes."""
    try:
        fd = os.open(name, READ_FLAGS, dir_fd=place)
    except OSError:
        return False  # a link, or not ours to read
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size != size:
            return False
        digest = xxhash.xxh3_64()
        while data := os.read(fd, CHUNK_BYTES):
            digest.update(data)
    except OSError as exc:
        raise storage_error(exc, "read", target) from exc
    finally:
        os.close(fd)
    return digest.intdigest() == checksum
