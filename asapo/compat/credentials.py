"""Who a producer of ASAP::O says it is: one line of text, parts divided by `%`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from asapo.errors import WrongInput
from asapo.models import check_name

AUTO: Final = "auto"
"""Beamtime: the current one of the beamline. Beamline: that of the beamtime."""
DEFAULT_SOURCE: Final = "detector"
DEFAULT_STEP: Final = "DefaultStep"
MAX_CREDENTIALS_BYTES: Final = 16 * 1024
_SOURCE_TYPES: Final = ("raw", "processed")
_BEAMTIME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who sends, from where, and what kind of data."""

    source_type: str
    """`raw` or `processed`: first part of all its paths."""
    beamtime: str
    beamline: str
    source: str
    token: str
    instance: str = ""
    step: str = DEFAULT_STEP


def check_beamtime(beamtime: object) -> str:
    """Return `beamtime` when clients can name it: they write it into paths as it is.

    Raises
    ------
    WrongInput
        If there is anything but letters, digits, `_` and `-` in it, or it is longer than 64.
    """
    if not isinstance(beamtime, str) or not _BEAMTIME.match(beamtime):
        raise WrongInput(f"beamtime {beamtime!r:.60}: expected 1 to 64 letters, digits, '_' and '-'")
    return beamtime


def read_credentials(raw: bytes) -> Credentials:
    """Read TYPE%INSTANCE%STEP%BEAMTIME%BEAMLINE%SOURCE%TOKEN, or the five fields of clients before 25.3.0.

    The source may hold `%`, so it is what the first fields and the last one leave. Five fields are therefore told by
    their number: seven or more are the new form.

    Raises
    ------
    WrongInput
        If there are other fields, or one of them is not acceptable.

    >>> read_credentials(b"processed%node7_14543%DefaultStep%bt1%auto%det%tok").source
    'det'
    """
    if len(raw) > MAX_CREDENTIALS_BYTES:
        raise WrongInput(f"credentials of {len(raw)} bytes: expected at most {MAX_CREDENTIALS_BYTES}")
    try:
        fields = raw.decode().split("%")
    except UnicodeDecodeError:
        raise WrongInput("credentials: expected UTF-8") from None
    instance, step = "", DEFAULT_STEP
    if len(fields) >= 7:
        source_type, instance, step, beamtime, beamline, *source, token = fields
    elif len(fields) == 5:
        source_type, beamtime, beamline, *source, token = fields
    else:
        raise WrongInput(f"credentials of {len(fields)} fields: expected 7 divided by '%', or 5 of older clients")
    if "\0" in instance or "\0" in step or "\0" in token:
        raise WrongInput("credentials: expected text without NUL")
    if source_type not in _SOURCE_TYPES:
        raise WrongInput(f"source type {source_type!r:.40}: expected raw or processed")
    beamtime, beamline = beamtime or AUTO, beamline or AUTO
    if beamtime == AUTO == beamline:
        raise WrongInput("beamtime and beamline are both 'auto': expected at least one of them by name")
    name = check_name("source", "%".join(source) or DEFAULT_SOURCE)
    if beamtime != AUTO:
        check_beamtime(beamtime)
    return Credentials(source_type, beamtime, check_name("beamline", beamline), name, token, instance, step)
