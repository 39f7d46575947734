"""Regular expressions by RE2: time grows with the text only, whatever the pattern, so no pattern can stop a service."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

from asapo.errors import ConfigError, WrongInput

MAX_PATTERN_CHARS: Final = 1000
"""Longest pattern."""
MAX_REGEXPS: Final = 16
"""Most patterns in one query."""
PROGRAM_BYTES: Final = 256 * 1024
"""Most memory of one compiled pattern with the states it keeps; RE2 works on with fewer states where they grow more."""
KEPT: Final = 64
"""Compiled patterns kept for the next message or query."""

Search = Callable[[bytes], bool]


@functools.lru_cache(maxsize=KEPT)
def searcher(pattern: str) -> Search:
    """Return a function that tells whether UTF-8 text holds a match of `pattern` anywhere.

    Raises
    ------
    WrongInput
        If RE2 cannot compile the pattern or it takes too much memory; field `reason` is what RE2 says.
    ConfigError
        If the package google-re2 is missing.
    """
    try:
        import re2
    except ImportError as exc:
        raise ConfigError("REGEXP needs the package google-re2; install it with: pip install 'asapo[server]'") from exc
    options = re2.Options()
    options.max_mem = PROGRAM_BYTES
    options.log_errors = False  # it would write to the stderr of the service
    options.never_capture = True
    try:
        search = re2.compile(pattern.encode(), options).search
    except re2.error as exc:
        reason = exc.args[0].decode(errors="replace") if exc.args and isinstance(exc.args[0], bytes) else str(exc)
        raise WrongInput(
            f"pattern {pattern[:40]!r}: RE2 refuses it: {reason}; see the syntax of RE2", reason=reason
        ) from None
    return lambda text: search(text) is not None


def utf8(text: str) -> bytes:
    """Return the bytes that are searched; half of a surrogate pair, which JSON can spell, is kept as databases do."""
    return text.encode("utf-8", "surrogatepass")
