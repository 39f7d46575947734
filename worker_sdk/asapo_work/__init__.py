"""Worker SDK: consume streams of messages and publish what is computed from them."""

from asapo_work.consumer import Consumer
from asapo_work.message import Message

__all__ = ["Consumer", "Message"]
