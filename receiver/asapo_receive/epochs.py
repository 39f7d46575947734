"""Each life of a receiver has a number, so that names on disk never meet and a resumed older life is known as such."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from asapo.errors import ConfigError, StorageError
from asapo.storage.layout import EPOCH_SUFFIX, RECEIVERS_FOLDER


class Epoch:
    """Takes the next epoch of a receiver and holds its lock for this life."""

    def __init__(self, state_dir: Path, receiver_id: str) -> None:
        folder = state_dir / RECEIVERS_FOLDER
        path = folder / f"{receiver_id}{EPOCH_SUFFIX}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._lock(receiver_id, path)
            text = os.pread(self._file, 64, 0)
            self.number = int(text or b"0") + 1
            os.pwrite(self._file, b"%20d\n" % self.number, 0)
            os.fsync(self._file)
        except OSError as exc:
            raise StorageError(f"cannot take an epoch in {path}: {exc.strerror}", path=str(path)) from exc
        except ValueError as exc:
            raise StorageError(f"{path} holds no number; remove it only when no data of {receiver_id} is here") from exc

    def _lock(self, receiver_id: str, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"receiver_id {receiver_id!r} is in use by a running receiver (lock on {path}); choose another id",
                key="receiver_id",
            ) from None

    def close(self) -> None:
        """Let the lock go."""
        os.close(self._file)
