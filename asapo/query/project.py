"""Projection: of each message's metadata only the keys that somebody asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from asapo.errors import WrongInput
from asapo.query.ast import BUILTINS, MAX_KEYS, MetaKey
from asapo.query.names import NAME, split_name

_NAME: Final = re.compile(NAME)


def read_path(text: object) -> tuple[str, ...]:
    """Return the place in the metadata that a key names: `sample.name`, `meta.sample.name`, `` `odd key` ``.

    Raises
    ------
    WrongInput
        If it is no key, or a built-in one.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise WrongInput(
            f"key {text!r:.80}: expected names joined by dots such as sample.name, odd ones in backticks", key=text
        )
    parts = split_name(text)
    if len(parts) == 1 and parts[0] in BUILTINS:
        raise WrongInput(
            f"key {text!r}: every message comes with it; leave it out, or write meta.{text} for metadata", key=text
        )
    return MetaKey(tuple(parts[1:] if len(parts) > 1 and parts[0] == "meta" else parts)).path


def projector(keys: Sequence[object]) -> Callable[[str], str]:
    """Return a function that makes of metadata text another one with these keys only, nested as they were.

    Keys that a message does not have are left out. Numbers keep their values, not their spelling.

    Parameters
    ----------
    keys : sequence of str
        1 to 64 keys as a query spells them.

    Raises
    ------
    WrongInput
        If there are too few or too many, or one of them is no key.

    >>> projector(["score", "sample.name"])('{"score": 1, "sample": {"name": "x", "n": 2}, "image": [1, 2]}')
    '{"score": 1, "sample": {"name": "x"}}'
    """
    if not 1 <= len(keys) <= MAX_KEYS:
        raise WrongInput(f"{len(keys)} keys: expected 1 to {MAX_KEYS}; leave them out to get all metadata")
    paths = [read_path(key) for key in keys]

    def project(text: str) -> str:
        chosen: dict[str, Any] = {}
        try:
            meta = json.loads(text)
            for path in paths:
                _copy(meta, path, chosen)
            return json.dumps(chosen, allow_nan=False)
        except (ValueError, RecursionError):
            # JSON that Python cannot give back as it is: 1e999, integers of thousands of digits, endless nesting.
            return text

    return project


def _copy(meta: Any, path: tuple[str, ...], chosen: dict[str, Any]) -> None:
    """Put what `meta` has at `path` to the same place in `chosen`."""
    found = meta
    for part in path:
        if type(found) is not dict or part not in found:
            return
        found = found[part]
    for part in path[:-1]:
        chosen = chosen.setdefault(part, {})
    chosen[path[-1]] = found
