"""Writing messages to files a user asked for: whole or not at all, and never over what is there unless told to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final

from asapo.errors import StorageError, WrongInput
from asapo.storage.layout import encode_name
from asapo_work.cli.show import message_facts
from asapo_work.message import Message

FORMATS: Final = ("npy", "raw")
STDOUT: Final = "-"
LONGEST_STEM: Final = 217


def check_format(name: str) -> str:
    """Return a file format when there is one of this name."""
    if name not in FORMATS:
        raise WrongInput(f"--format {name!r}: expected one of {', '.join(FORMATS)}")
    return name


def file_name(message: Message, form: str) -> str:
    """Return the name of a message's file: SOURCE-STREAM-ID, odd characters percent-encoded.

    `npy` is for arrays; plain bytes, which have no element type, become `.bin`, stored bytes as they are `.raw`.
    """
    stem = encode_name(f"{message.source}-{message.stream}", LONGEST_STEM)
    part = f".{message.substream}" if message.dataset_size else ""
    suffix = "raw" if form == "raw" else "npy" if message.format.dtype else "bin"
    return f"{stem}-{message.id}{part}.{suffix}"


def write_payload(message: Message, form: str, file: IO[bytes]) -> None:
    """Write the array as NumPy file, or the stored bytes."""
    if form == "npy" and message.format.dtype:
        import numpy as np

        np.save(file, message.data, allow_pickle=False)
    else:
        file.write(message.raw)


class Folder:
    """Where the files go; it is made when it is not there.

    Parameters
    ----------
    path : str
        The folder.
    form : {"npy", "raw"}
        Arrays as NumPy files, or the stored bytes of every message.
    force : bool
        Replace files that are there.
    meta : bool
        Write what is known of each message as JSON beside it.
    """

    def __init__(self, path: str, *, form: str, force: bool, meta: bool) -> None:
        self._path = Path(path)
        self._form = check_format(form)
        self._force = force
        self._meta = meta
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StorageError(f"cannot make folder {path}: {exc.strerror}; give another one", path=path) from exc

    def refuse_present(self, messages: Sequence[Message]) -> None:
        """Raise WrongInput before anything is written when one of the files is there."""
        if self._force:
            return
        for message in messages:
            target = self._path / file_name(message, self._form)
            if target.exists():
                raise WrongInput(f"{target} is there already: give --force to replace it, or another folder")

    def write(self, message: Message) -> Path:
        """Write one message and return its file."""
        target = self._path / file_name(message, self._form)
        self._write(target, lambda file: write_payload(message, self._form, file))
        if self._meta:
            text = json.dumps(message_facts(message), indent=1, ensure_ascii=False) + "\n"
            self._write(target.with_name(target.name + ".json"), lambda file: file.write(text.encode()))
        return target

    def _write(self, target: Path, fill: Callable[[IO[bytes]], Any]) -> None:
        if not self._force and target.exists():
            raise WrongInput(f"{target} is there already: give --force to replace it, or another folder")
        draft = target.with_name(f".{target.name[-100:]}.{os.getpid()}.part")
        try:
            with open(draft, "wb") as file:
                fill(file)
            os.replace(draft, target)
        except OSError as exc:
            raise StorageError(f"cannot write {target}: {exc.strerror or exc}", path=str(target)) from exc
        finally:
            draft.unlink(missing_ok=True)


def write_stdout(messages: Sequence[Message], form: str) -> None:
    """Write one payload to stdout, unless that is a terminal."""
    check_format(form)
    if sys.stdout.isatty():
        raise WrongInput("-o -: bytes are not written to a terminal; send them to a file (> FILE) or a program")
    if len(messages) != 1:
        raise WrongInput(f"-o -: expected one message, found {len(messages)}; give a folder for several")
    write_payload(messages[0], form, sys.stdout.buffer)
    sys.stdout.buffer.flush()
