"""Which paths a producer may give its files: checked before anything is created, the same on every system (R5).

A path is good when it means the same file below the stream's folder wherever that folder is copied to, also on Windows
and macOS: so what one system takes for a separator, a device, a stream of a file or nothing at all is refused on all.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath
from typing import Final

from asapo.errors import WrongInput

MAX_PATH_BYTES: Final = 1024
"""Longest client path in UTF-8 bytes: with three encoded names before it a full path stays below 4096."""
MAX_PART_BYTES: Final = 255
"""Longest name on the file systems we know."""
FORBIDDEN: Final = frozenset('\\<>:"|?*')
"""A separator, a drive, a stream of a file, or a wildcard on Windows."""
CATEGORIES: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Characters that are no part of a name that people read: control, invisible, unassigned, surrogates."""
DEVICES: Final = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$|clock\$)\s*(\..*)?\Z", re.DOTALL
)
"""Windows opens a device for these, whatever follows the first dot."""
OURS: Final = (".seg", ".idx", ".part")
"""Ends of the names of our own files: what has them is never taken for a client's file."""
SNAPSHOT: Final = "index.snapshot"
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*\Z", re.ASCII)


def check_client_path(path: object) -> str:
    """Return `path` when a file of a message may have it: relative, parts divided by `/`.

    Raises
    ------
    WrongInput
        If it is no text, empty, absolute, too long, or a part may not be there; names the part and the reason.

    >>> check_client_path("scan1/img_0001.cbf")
    'scan1/img_0001.cbf'
    """
    if isinstance(path, PurePath):
        path = path.as_posix()
    if type(path) is not str or not path:
        raise WrongInput(f"path {path!r:.100}: expected text such as 'scan1/img_0001.cbf'")
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise _wrong(path, "it cannot be written as UTF-8") from None
    if length > MAX_PATH_BYTES:
        raise _wrong(path, f"it has {length} bytes, at most {MAX_PATH_BYTES} are allowed")
    if path.startswith("/"):
        raise _wrong(path, "it is absolute; give it relative to the stream's folder")
    for part in path.split("/"):
        if problem := _problem(part, plain=_PLAIN.match(path) is not None):
            raise _wrong(path, f"part {part!r:.60} {problem}")
    return path


def _wrong(path: str, why: str) -> WrongInput:
    return WrongInput(f"path {path!r:.100}: {why}; expected a relative path such as 'scan1/img_0001.cbf'")


def _problem(part: str, *, plain: bool) -> str:
    """Return what is wrong with one part, "" for nothing. Of `plain` ASCII only names are looked at."""
    if not part:
        return "is empty"
    if not plain:
        if len(part.encode()) > MAX_PART_BYTES:
            return f"is longer than {MAX_PART_BYTES} bytes"
        # Some systems compare, or even store, names in this form: two dots may be one character before it.
        folded = unicodedata.normalize("NFKC", part)
        for text in (part, folded):
            for char in text:
                if char in FORBIDDEN or char == "/" or unicodedata.category(char) in CATEGORIES:
                    return f"has the character U+{ord(char):04X}, which is none for names on every system"
        if unicodedata.normalize("NFC", part) != part:
            return "is not in Unicode's form NFC, in which alone a name is the same everywhere (unicodedata.normalize)"
        for text in (part, folded):
            if text[0].isspace() or text[-1].isspace():
                return "begins or ends with a blank"
            if text[0] == "." or text[-1] == ".":
                return "begins or ends with a dot"
    elif len(part) > MAX_PART_BYTES:
        return f"is longer than {MAX_PART_BYTES} bytes"
    elif part[-1] == ".":
        return "begins or ends with a dot"
    return _reserved(unicodedata.normalize("NFKC", part).casefold())


def _reserved(folded: str) -> str:
    if DEVICES.match(folded):
        return "is the name of a device on Windows"
    if folded.endswith(OURS) or folded.startswith(SNAPSHOT):
        return "is a name of our own files (*.seg, *.idx, *.part, index.snapshot)"
    return ""
