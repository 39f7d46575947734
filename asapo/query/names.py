"""How keys are spelled, in query text and in a projection."""

from __future__ import annotations

import re
from typing import Final

NAME: Final = r"(?:[A-Za-z_][A-Za-z0-9_]*|`(?:[^`]|``)*`)(?:\.(?:[A-Za-z_][A-Za-z0-9_]*|`(?:[^`]|``)*`))*"
"""Regular expression of a key: names or anything in backticks, joined by dots."""

_PART: Final = re.compile(r"`((?:[^`]|``)*)`|([^.`]+)")


def split_name(name: str) -> list[str]:
    """Return the parts of a key, those in backticks unquoted.

    >>> split_name("sample.`odd key`")
    ['sample', 'odd key']
    """
    return [m[2] if m[1] is None else m[1].replace("``", "`") for m in _PART.finditer(name)]
