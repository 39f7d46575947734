"""What stages tell of their work with each sign of life: checked, listed, shown to Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from asapo.errors import WrongInput
from asapo.models import check_name
from asapo_broker.sessions import Session

MAX_STAGES: Final = 16
"""Stages of one client."""
NAMES: Final = ("group", "source", "stream")
NUMBERS: Final = {
    "taken": "asapo_stage_messages_total",
    "published": "asapo_stage_published_total",
    "bytes": "asapo_stage_bytes_total",
    "errors": "asapo_stage_errors_total",
    "user_s": "asapo_stage_user_seconds_total",
    "wall_s": "asapo_stage_run_seconds_total",
}
"""Key of a number to its name for Prometheus."""


def check_work(work: list[Any]) -> list[dict[str, Any]]:
    """Return what a client tells of its stages, with the keys that are known here.

    Raises
    ------
    WrongInput
        Names the key, the value, and what was expected.
    """
    if len(work) > MAX_STAGES:
        raise WrongInput(f"work of {len(work)} stages: expected at most {MAX_STAGES} in one client")
    return [_checked(entry) for entry in work]


def _checked(entry: Any) -> dict[str, Any]:
    if type(entry) is not dict:
        raise WrongInput(f"work {entry!r:.80}: expected a map")
    found: dict[str, Any] = {name: check_name(name, entry.get(name)) for name in NAMES}
    for name in NUMBERS:
        value = entry.get(name, 0)
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            raise WrongInput(f"work: {name} {value!r:.80}: expected a number, not negative")
        found[name] = value
    return {**found, "running": entry.get("running") is True}


def listing(sessions: Iterable[Session]) -> list[dict[str, Any]]:
    """Return what all stages of these sessions told, with who they are."""
    return [
        {"beamtime": session.beamtime, "name": session.name, "session": session.key.hex()[:8], **entry}
        for session in sessions
        for entry in session.work
    ]


def metrics(work: Iterable[dict[str, Any]]) -> list[Any]:
    """Return [name, labels, value] of all numbers of all stages."""
    found = []
    for entry in work:
        labels = {key: entry[key] for key in ("beamtime", *NAMES, "session")} | {"stage": entry["name"]}
        found += [[shown, labels, entry[name]] for name, shown in NUMBERS.items()]
    return found
