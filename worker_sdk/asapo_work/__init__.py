"""Worker SDK: consume streams of messages and publish what is computed from them."""

from importlib import import_module
from typing import TYPE_CHECKING

from asapo_work.consumer import Consumer
from asapo_work.groups import DeadLetter, GroupInfo
from asapo_work.message import Message
from asapo_work.queries import Found
from asapo_work.stage import Result, Stage, StageCounts, run_stage

if TYPE_CHECKING:
    from asapo_work.aio import AsyncConsumer
    from asapo_work.offline import OfflineConsumer, OpenReport
    from asapo_work.offline import open as open

__all__ = [
    "AsyncConsumer",
    "Consumer",
    "DeadLetter",
    "Found",
    "GroupInfo",
    "Message",
    "OfflineConsumer",
    "OpenReport",
    "Result",
    "Stage",
    "StageCounts",
    "run_stage",
]

_LATER = {
    "AsyncConsumer": ("asapo_work.aio", "AsyncConsumer"),
    "OfflineConsumer": ("asapo_work.offline", "OfflineConsumer"),
    "OpenReport": ("asapo_work.offline", "OpenReport"),
    "open": ("asapo_work.offline", "open"),
}
"""Imported when first used: asyncio or an index would double the import time of scripts without them."""


def __getattr__(name: str) -> object:
    """Import what few scripts need when it is first used."""
    home = _LATER.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home[0]), home[1])
    globals()[name] = value
    return value
