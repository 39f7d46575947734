"""Worker SDK: consume streams of messages and publish what is computed from them."""

from typing import TYPE_CHECKING

from asapo_work.consumer import Consumer
from asapo_work.message import Message
from asapo_work.queries import Found
from asapo_work.stage import Result, Stage, StageCounts, run_stage

if TYPE_CHECKING:
    from asapo_work.aio import AsyncConsumer

__all__ = ["AsyncConsumer", "Consumer", "Found", "Message", "Result", "Stage", "StageCounts", "run_stage"]


def __getattr__(name: str) -> object:
    """Import the async consumer when it is first used: asyncio would double the import time of scripts without it."""
    if name != "AsyncConsumer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from asapo_work.aio import AsyncConsumer

    globals()[name] = AsyncConsumer
    return AsyncConsumer
