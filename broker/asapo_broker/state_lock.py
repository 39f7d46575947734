"""One core only works on a state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from asapo.errors import ConfigError, StorageError
from asapo.storage.layout import CORE_LOCK


class StateLock:
    """Makes sure that one core only works on a state folder; the system lets go of it when the process dies."""

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / CORE_LOCK
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise StorageError(
                f"cannot open {path}: {exc.strerror}; choose a writable state_dir", path=str(path)
            ) from exc
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigError(
                f"state_dir {str(state_dir)!r} is in use by a running broker (lock on {path}); stop that one first",
                key="state_dir",
            ) from None

    def close(self) -> None:
        """Let go."""
        os.close(self._file)
