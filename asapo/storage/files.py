"""The only place where this program writes files, so that faults and crash states can be injected (R23).

Operating system errors are translated here, once: `DiskFull` when there is no room, `StorageError` for the rest.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from asapo.errors import DiskFull, StorageError, UnsafePath

Buffer = bytes | bytearray | memoryview

P = ParamSpec("P")
T = TypeVar("T")

NO_ROOM: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
MAX_BUFFERS: Final = 1024
"""Buffers in one vectored write: Linux' IOV_MAX."""
FOLDER_FLAGS: Final = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
"""To do something in a folder; where it can be, without the right to list it."""
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
CREATE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class OpenFile:
    """A file open for writing; `fd` is -1 after `FileOps.close`, so a late write fails and hits nobody else's file."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes an ordinary user can still write on the file system of `path`; 0 when it does not answer."""
    try:
        facts = os.statvfs(path)
    except OSError:
        return 0
    return facts.f_bavail * facts.f_frsize


def storage_error(exc: OSError, operation: str, path: str) -> StorageError:
    """Return our error for what the operating system said about `operation` on `path`."""
    if exc.errno in NO_ROOM:
        free = free_bytes(os.path.dirname(path) or ".")
        message = f"{operation} {path}: no room on the tier ({free} bytes free); free space or add a tier"
        return DiskFull(message, free_bytes=free, path=path)
    return StorageError(f"{operation} {path}: {exc.strerror or exc}", path=path, errno=exc.errno or 0)


def size_of(buffers: Sequence[Buffer]) -> int:
    """Return the bytes in all buffers together."""
    return sum([data.nbytes if isinstance(data, memoryview) else len(data) for data in buffers])


def _after(buffers: Sequence[Buffer], skip: int) -> list[memoryview]:
    """Return what follows the first `skip` bytes of `buffers`."""
    rest = []
    for data in buffers:
        view = memoryview(data).cast("B")
        if skip < view.nbytes:
            rest.append(view[skip:])
        skip = max(0, skip - view.nbytes)
    return rest


def is_removed(fd: int) -> bool:
    """Tell whether an open file has no name any more; a file system of the network may not know it then at all."""
    try:
        return not os.fstat(fd).st_nlink
    except OSError:
        return True


class FileOps:
    """File operations that either do all they were asked to do or raise `StorageError`.

    Fault wrappers override `invoke`, through which every system call passes (`asapo.testing.faults`).
    """

    def invoke(self, operation: str, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do one system call; `operation` and `path` are for those who override this."""
        return call(*args, **kwargs)

    def _call(self, operation: str, path: str, call: Callable[..., T], *args: Any) -> T:
        try:
            return self.invoke(operation, path, call, *args)
        except OSError as exc:
            raise storage_error(exc, operation, path) from exc

    def create(self, path: str | Path, *, append: bool = False, folder: int | None = None) -> OpenFile:
        """Create a file that must not exist yet and open it for writing; rights follow the umask.

        With `folder`, an open folder, it is created there, whatever else the path says.
        """
        name = os.fspath(path)
        flags = CREATE_FLAGS | (os.O_APPEND if append else 0)
        if folder is None:
            return OpenFile(self._call("create", name, os.open, name, flags, 0o666), name)
        make = partial(os.open, dir_fd=folder)
        return OpenFile(self._call("create", name, make, os.path.basename(name), flags, 0o666), name)

    def append(self, file: OpenFile, data: Buffer) -> None:
        """Append `data` to a file created with `append=True`: one write call, unless the system takes less."""
        done = self._call("append", file.path, os.write, file.fd, data)
        while done < len(data):
            done += self._progress(self._call("append", file.path, os.write, file.fd, memoryview(data)[done:]), file)

    def pwrite_all(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> None:
        """Write `buffers` one after the other from `offset` (bytes)."""
        for first in range(0, len(buffers), MAX_BUFFERS):
            some = buffers[first : first + MAX_BUFFERS]
            size = size_of(some)
            done = self._call("pwrite", file.path, os.pwritev, file.fd, some, offset) if size else 0
            while done < size:
                rest = _after(some, done)
                more = self._call("pwrite", file.path, os.pwritev, file.fd, rest, offset + done)
                done += self._progress(more, file)
            offset += size

    def _progress(self, done: int, file: OpenFile) -> int:
        if done <= 0:
            raise StorageError(f"write {file.path}: the file system took no byte", path=file.path, errno=0)
        return done

    def allocate(self, file: OpenFile, offset: int, length: int) -> None:
        """Reserve disk blocks for `length` bytes from `offset`; the file grows to hold them."""
        self._call("allocate", file.path, os.posix_fallocate, file.fd, offset, length)

    def truncate(self, file: OpenFile, length: int) -> None:
        """Cut the file to `length` bytes."""
        self._call("truncate", file.path, os.ftruncate, file.fd, length)

    def close(self, file: OpenFile) -> None:
        """Close the file; the second call does nothing."""
        fd, file.fd = file.fd, -1
        if fd >= 0:
            self._call("close", file.path, os.close, fd)

    def rename(self, source: str | Path, target: str | Path) -> None:
        """Put `source` in the place of `target`, which nobody ever sees half written."""
        self._call("rename", os.fspath(target), os.replace, source, target)

    def link(
        self, source: str | Path, target: str | Path, *, source_folder: int | None = None, folder: int | None = None
    ) -> bool:
        """Give `source` the second name `target`; False when that name is taken.

        With open folders, the files are those of the paths' last names in there.
        """
        names = [
            path if opened is None else os.path.basename(path)
            for path, opened in ((source, source_folder), (target, folder))
        ]
        call = partial(os.link, src_dir_fd=source_folder, dst_dir_fd=folder)
        try:
            self.invoke("link", os.fspath(target), call, *names)
        except FileExistsError:
            return False
        except OSError as exc:
            raise storage_error(exc, "link", os.fspath(target)) from exc
        return True

    def unlink(self, path: str | Path, *, folder: int | None = None) -> None:
        """Remove a file; with `folder`, the one of its last name in that open folder."""
        if folder is None:
            self._call("unlink", os.fspath(path), os.unlink, path)
        else:
            self._call("unlink", os.fspath(path), partial(os.unlink, dir_fd=folder), os.path.basename(path))

    def remove_tree(self, path: str | Path) -> None:
        """Remove a folder and all in it, following no links; fine when it, or part of it, is gone already."""
        for place, folders, names in os.walk(path, topdown=False):
            for name in names:
                with suppress(FileNotFoundError):
                    self.invoke("unlink", os.path.join(place, name), os.unlink, os.path.join(place, name))
            for name in folders:
                if os.path.islink(link := os.path.join(place, name)):
                    self._call("unlink", link, os.unlink, link)
            with suppress(FileNotFoundError):
                self.invoke("rmdir", place, os.rmdir, place)

    def fsync(self, file: OpenFile) -> None:
        """Bring bytes and all attributes of the file to the medium."""
        self._call("fsync", file.path, os.fsync, file.fd)

    def fdatasync(self, file: OpenFile) -> None:
        """Bring the bytes and the size of the file to the medium."""
        self._call("fdatasync", file.path, os.fdatasync, file.fd)

    def fsync_dir(self, path: str | Path) -> None:
        """Bring the names in a folder to the medium."""
        name = os.fspath(path)
        fd = self._call("open_dir", name, os.open, name, os.O_RDONLY)
        try:
            self._call("fsync_dir", name, os.fsync, fd)
        finally:
            os.close(fd)

    @contextmanager
    def folder_below(self, root: str | Path, parts: Sequence[str], *, make: bool = True) -> Iterator[int]:
        """Open the folder `root/parts[0]/...` and lend its descriptor; what is missing is made, unless told not to.

        Each part is opened in the one before and no link is followed below `root`: whoever plants one, even while this
        runs, gets nothing written elsewhere.

        Raises
        ------
        UnsafePath
            If a part is a link, or no folder; field `path`.
        DiskFull, StorageError
            If a folder cannot be opened or made.
        """
        path = os.fspath(root)
        held = self._call("open_dir", path, os.open, path, FOLDER_FLAGS)
        try:
            for part in parts:
                path = f"{path}/{part}"
                inner = self._folder_in(held, part, path, make=make)
                os.close(held)
                held = inner
            yield held
        finally:
            os.close(held)

    def _folder_in(self, held: int, part: str, path: str, *, make: bool) -> int:
        opened = partial(os.open, part, FOLDER_FLAGS | NO_LINK, dir_fd=held)
        try:
            try:
                return self.invoke("open_dir", path, opened)
            except FileNotFoundError:
                if not make:
                    raise
                with suppress(FileExistsError):  # somebody else was quicker
                    self.invoke("mkdirs", path, partial(os.mkdir, part, dir_fd=held))
                return self.invoke("open_dir", path, opened)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnsafePath(
                    f"{path} is a link or no folder: expected a folder; nothing was written there, move it away",
                    path=path,
                ) from exc
            raise storage_error(exc, "open", path) from exc

    def mkdirs(self, path: str | Path) -> None:
        """Create a folder and those above it; fine when they exist."""
        self._call("mkdirs", os.fspath(path), os.makedirs, path, 0o777, True)


_default: list[FileOps] = [FileOps()]


def default_files() -> FileOps:
    """Return the operations that everything uses which was given none."""
    return _default[0]


def install_files(files: FileOps) -> FileOps:
    """Make `files` the default of this process and return the former one; for tests of whole processes."""
    former, _default[0] = _default[0], files
    return former
