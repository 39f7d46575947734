"""Metadata of a message: one JSON object, encoded once, here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from asapo.errors import WrongInput
from asapo.wire.limits import MAX_META_BYTES

Meta = Mapping[str, Any] | str | None
"""Metadata of a message: an object, its JSON text, or nothing."""
NO_META: Final = "{}"


def _plain(value: Any) -> Any:
    """Turn NumPy numbers and arrays into Python's; detectors count in them."""
    to_list = getattr(value, "tolist", None)
    if to_list is None:
        raise TypeError(f"{type(value).__name__} is not JSON")
    return to_list()


def _encoder() -> Callable[[Any], str]:
    """Return a function from a dict or list to compact JSON text.

    `json.dumps` builds a new C encoder for each call, which is more than half of its time for a small dict; so the
    same C encoder is kept where this Python has it.
    """
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    quote: Any = json.encoder.encode_basestring
    try:
        chunks = make(None, _plain, quote, None, ":", ",", False, False, False)
        if "".join(chunks({"a": [1, "ü"]}, 0)) == '{"a":[1,"ü"]}':
            return lambda value: "".join(chunks(value, 0))
    except TypeError:
        pass
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


_encode: Final = _encoder()


def meta_text(meta: Meta) -> str:
    """Return metadata as JSON text; text is taken as it is and checked in full by the receiver.

    Raises
    ------
    WrongInput
        If it is no JSON object, holds NaN or infinity, or is longer than 1 MiB.
    """
    if meta is None:
        return NO_META
    if type(meta) is dict:
        text = _text_of(meta)
    elif isinstance(meta, str):
        text = meta
        if not (text.startswith("{") and text.endswith("}")):
            raise WrongInput(f"metadata {text[:60]!r}: expected one JSON object as text, or a dict")
    elif isinstance(meta, Mapping):
        text = _text_of(dict(meta))
    else:
        raise WrongInput(f"metadata of type {type(meta).__name__}: expected a dict, or JSON text of an object")
    if len(text) * 4 > MAX_META_BYTES or not text.isascii():
        _check_bytes(text)
    return text


def _text_of(meta: dict[str, Any]) -> str:
    try:
        return _encode(meta)
    except (TypeError, ValueError, RecursionError) as exc:
        raise WrongInput(f"metadata {str(meta)[:60]!r}: cannot be written as JSON ({exc}); use plain values") from exc


def _check_bytes(text: str) -> None:
    try:
        nbytes = len(text.encode())
    except UnicodeEncodeError as exc:
        raise WrongInput(f"metadata {text[:60]!r}: cannot be written as UTF-8 ({exc.reason})") from exc
    if nbytes > MAX_META_BYTES:
        raise WrongInput(
            f"metadata of {nbytes} bytes: expected at most {MAX_META_BYTES}; put large things in the payload"
        )


def meta_texts(metas: Sequence[Meta] | None, n: int) -> list[str]:
    """Return the metadata of the `n` messages of a batch."""
    if metas is None:
        return [NO_META] * n
    if len(metas) != n:
        raise WrongInput(f"{len(metas)} metadata objects for {n} frames: give one for each")
    return _texts_at_once(metas) or list(map(meta_text, metas))


def _texts_at_once(metas: Sequence[Any]) -> list[str] | None:
    """Encode many dicts by one call, a third of the time; None when that is not possible without doubt.

    The text of the list is cut at "},{". Each of the n - 1 borders is one, so n pieces are the dicts; when there are
    more (a border lies within a text), the dicts are encoded one by one. NUL cannot stand in JSON text.
    """
    if set(map(type, metas)) != {dict}:
        return None
    try:
        text = _encode(metas if type(metas) is list else list(metas))
    except (TypeError, ValueError, RecursionError):
        return None  # one by one, to name the one at fault
    if not text.isascii():
        return None
    texts = text[1:-1].replace("},{", "}\0{").split("\0")
    if len(texts) != len(metas) or (len(text) > MAX_META_BYTES and max(map(len, texts)) > MAX_META_BYTES):
        return None
    return texts
