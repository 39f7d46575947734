"""JSON as it comes from strangers: an object, or a clear error; and as clients of ASAP::O can read it."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from asapo.errors import WrongInput

MAX_SHOWN: Final = 40


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_decoder: Final = json.JSONDecoder(parse_constant=_no_constant)


def decode_object(what: str, raw: bytes | str) -> dict[str, Any]:
    """Return the JSON object that `raw` holds.

    Raises
    ------
    WrongInput
        If it is not UTF-8, not JSON, no object, or nested too deeply to be read.
    """
    try:
        found = _decoder.decode(raw if isinstance(raw, str) else raw.decode())
    except (ValueError, RecursionError) as exc:
        raise WrongInput(f"{what} {raw[:MAX_SHOWN]!r}: expected a JSON object ({exc})") from None
    if type(found) is not dict:
        raise WrongInput(f"{what} {raw[:MAX_SHOWN]!r}: expected a JSON object, found {type(found).__name__}")
    return found


def metadata_text(raw: bytes) -> str:
    """Return the metadata of a message as text, as it was sent; none at all are `{}`.

    Raises
    ------
    WrongInput
        If they are no JSON object: a client could not read the message that has them.
    """
    if not raw:
        return "{}"
    decode_object("metadata", raw)
    return raw.decode()


def encode(document: Any) -> bytes:
    """Return a document as clients read it: UTF-8, no blanks, no NaN."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
